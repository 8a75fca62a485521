"""Deterministic choice of sentences: which combinations of every template are written, and into which split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .tables import LANGUAGES, Entry
from .templates import Template, templates

TOTAL = 23_000
HELD_OUT = 1_000
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class EmbeddedSentence:
    """One sentence in six languages.

    `texts` maps a language to the sentence; `words` maps a concept id to its character span (start, end exclusive)
    in every language's text. Every content concept of the sentence is there, in all six languages or not at all.
    """

    id: str
    texts: dict[str, str]
    words: dict[str, dict[str, tuple[int, int]]]


def mix(*numbers: int) -> int:
    """64-bit hash of some integers, the same on every machine (the splitmix64 finaliser, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def _combinations_in_order(template: Template, salt: int, wanted: int) -> Iterator[int]:
    """Combination numbers in a fixed shuffled order, without repetition."""
    total = template.combinations
    if total <= 4 * wanted:
        yield from sorted(range(total), key=lambda number: mix(salt, number))
        return
    seen: set[int] = set()
    draw = 0
    while len(seen) < total // 2:
        number = mix(salt, draw) % total
        draw += 1
        if number not in seen:
            seen.add(number)
            yield number


def _quotas(capacities: list[int], total: int) -> list[int]:
    """Share `total` evenly; what a small template cannot take goes to the others."""
    quotas = [0] * len(capacities)
    order = sorted(range(len(capacities)), key=capacities.__getitem__)
    for taken, index in enumerate(order):
        quotas[index] = min(capacities[index], (total - sum(quotas)) // (len(order) - taken))
    return quotas


def _sentence(template: Template, chosen: tuple[Entry, ...]) -> EmbeddedSentence:
    texts: dict[str, str] = {}
    words: dict[str, dict[str, tuple[int, int]]] = {}
    for language in LANGUAGES:
        texts[language], spans = template.render(language, chosen)
        for concept, span in spans.items():
            words.setdefault(concept, {})[language] = span
    return EmbeddedSentence(f"{template.name}/{'.'.join(entry.id for entry in chosen)}", texts, words)


@cache
def all_sentences() -> dict[str, tuple[EmbeddedSentence, ...]]:
    """Every sentence by split. No text occurs twice in any language, within a split or across them."""
    quotas = _quotas([template.combinations // 2 for template in templates()], TOTAL)
    taken: dict[str, set[str]] = {language: set() for language in LANGUAGES}
    sentences = []
    for salt, (template, quota) in enumerate(zip(templates(), quotas, strict=True)):
        count = 0
        for number in _combinations_in_order(template, salt, quota):
            if count == quota:
                break
            chosen = template.fill(number)
            if len({entry.id for entry in chosen}) < len(chosen):
                continue
            sentence = _sentence(template, chosen)
            if any(sentence.texts[language] in taken[language] for language in LANGUAGES):
                continue
            for language in LANGUAGES:
                taken[language].add(sentence.texts[language])
            sentences.append((mix(salt, number, 1), sentence))
            count += 1
    ordered = tuple(sentence for _, sentence in sorted(sentences, key=lambda pair: (pair[0], pair[1].id)))
    return {
        "train": ordered[2 * HELD_OUT :],
        "validation": ordered[HELD_OUT : 2 * HELD_OUT],
        "test": ordered[:HELD_OUT],
    }
