"""What a run leaves to look at: the table of its measures and the picture of its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...shared import pictures
from ...shared.pictures import Point
from ..model.encoder import CCEEncoder
from .probe import Row, Span, embed

Measured = Mapping[str, Mapping[str, float]]

LABELS = {
    "sentence_forth": "sentence retrieval, source → target",
    "sentence_back": "sentence retrieval, target → source",
    "word_forth": "word-translation retrieval, source → target",
    "word_back": "word-translation retrieval, target → source",
    "random_pair_cosine": "random-pair cosine",
}
WORDS = {
    True: "A word looks for translations that were held out of training; its other translations are not candidates.",
    False: "No word translation was held out of training (`held_out_words` 0): any translation of a word counts.",
}
# t-SNE separates classes of a few dozen points; more only cost time.
POINTS = 12


def table(stages: Mapping[str, Measured], languages: str = "mean", *, held_out: bool = True) -> str:
    """Returns a Markdown table of the measures at each stage (``"before"``, ``"after"``), as they are and centred.

    It shows one language pair or the ``"mean"`` of all. ``held_out`` tells whether word translations were held out of
    training.
    """
    header = ["", *stages, *(f"{stage}, centred" for stage in stages)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    queries = max((stage[languages].get("word_queries", 0.0) for stage in stages.values()), default=0.0)
    kind = "held-out" if held_out else "all, including trained ones"
    for name, label in LABELS.items():
        if name.startswith("word") and queries:
            label += f", {kind} ({queries:.0f} queries in both directions)"
        cells = [
            f"{stages[stage][languages][name + suffix]:.3f}" if name + suffix in stages[stage][languages] else "–"
            for suffix in ("", "_centred")
            for stage in stages
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def choose_words(rows: Sequence[Row], meanings: int) -> dict[str, dict[str, list[tuple[tuple[int, ...], Span]]]]:
    """Chooses the words of the picture: source words translated in the most language pairs, most frequent first.

    For each meaning, named by its source word, and each language it tells where the word or its translation occurs: the
    sentence's wordpieces and the span; at most a dozen per language.
    """
    languages: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for row in rows:
        for word in row["source_words"]:
            languages.setdefault(word, set()).add(row["target_language"])
            count[word] += 1
    chosen = sorted(count, key=lambda word: (-len(languages[word]), -count[word], word))[:meanings]
    places: dict[str, dict[str, list[tuple[tuple[int, ...], Span]]]] = {word: {} for word in chosen}
    for row in rows:
        for word, (a, b, c, d) in zip(row["source_words"], row["word_pairs"], strict=True):
            if word in places:
                for side, span in (("source", (a, b)), ("target", (c, d))):
                    place = tuple(row[f"{side}_ids"]), span
                    found = places[word].setdefault(row[f"{side}_language"], [])
                    if place not in found and len(found) < POINTS:
                        found.append(place)
    return places


def draw_words(
    encoders: Mapping[str, CCEEncoder], rows: Sequence[Row], path: Path, *, meanings: int, seed: int
) -> bool:
    """Draws t-SNE pictures of word vectors, one panel per encoder, titled by its name in ``encoders``.

    The words come from word positioned samples and have this many meanings in all; see
    :func:`ctloss.shared.pictures.draw_words` for the rest.
    """
    places = [
        (word, language, ids, span)
        for word, by_language in choose_words(rows, meanings).items()
        for language, found in by_language.items()
        for ids, span in found
    ]
    panels = {}
    for title, encoder in encoders.items():
        _, vectors = embed(encoder, [ids for _, _, ids, _ in places], [[span] for *_, span in places])
        panels[title] = [Point(*place[:2], vector[0]) for place, vector in zip(places, vectors, strict=True)]
    title = "Word vectors in held-out sentences: colour is meaning, marker is language"
    return pictures.draw_words(panels, path, title=title, seed=seed)
