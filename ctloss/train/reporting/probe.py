"""Runs an encoder over held-out pairs: its sentence and word vectors, and what they retrieve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..model.encoder import CCEEncoder

Row = Mapping[str, Any]
Span = tuple[int, int]


@torch.no_grad()
def embed(
    encoder: CCEEncoder, sentences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]], *, batch: int = 128
) -> tuple[Tensor, list[Tensor]]:
    """Pools sentences and any number of words of each, without the head, in float32, dropout off.

    Args:
        encoder: the CCE encoder; it is left in the mode it was in.
        sentences: wordpieces of each sentence, special tokens included.
        spans: of each sentence the words' (start, end), end exclusive; possibly none.
        batch: sentences at a time, taken in the order of their lengths.

    Returns:
        Sentence vectors (m, H), and for each sentence its word vectors (number of spans, H); on the CPU.
    """
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    pad = encoder.backbone.config.pad_token_id
    pooled: list[Tensor] = [torch.empty(0)] * len(sentences)
    words: list[Tensor] = [torch.empty(0)] * len(sentences)
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        longest = len(sentences[part[-1]])
        ids = torch.full((len(part), longest), pad)
        for row, i in enumerate(part):
            ids[row, : len(sentences[i])] = torch.tensor(sentences[i])
        lengths = torch.tensor([len(sentences[i]) for i in part])
        mask = (torch.arange(longest) < lengths.unsqueeze(1)).long()
        states = encoder.first_and_last(ids.to(device), mask.to(device))[0].cpu()
        for row, i in enumerate(part):
            pooled[i] = states[row, : len(sentences[i])].mean(dim=0)
            vectors = [states[row, first:last].mean(dim=0) for first, last in spans[i]]
            words[i] = torch.stack(vectors) if vectors else states.new_empty(0, states.shape[2])
    encoder.train(was_training)
    return torch.stack(pooled), words


def by_languages(rows: Sequence[Row], most: int) -> dict[str, list[Row]]:
    """Groups rows by language pair (``"en-fr"``), at most so many each, leaving out rows that repeat a sentence."""
    groups: dict[str, list[Row]] = {}
    seen: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        name = f"{row['source_language']}-{row['target_language']}"
        group, known = groups.setdefault(name, []), seen.setdefault(name, set())
        sides = {("source", row["source"].casefold()), ("target", row["target"].casefold())}
        if len(group) < most and not sides & known:
            group.append(row)
            known |= sides
    return groups


class Probe:
    """Measures an encoder on held-out sentence pairs and their words.

    Sentence retrieval: for each sentence the nearest of the other side's, by cosine. Word retrieval: a word form is
    the mean of its vectors over the sentences; each form with a held-out translation looks for the nearest of the other
    side's forms. Its held-out translations are right; its other translations in the sentences, which training may have
    used, are not among the candidates. Both ways, as they are and with each side's mean taken out (centred).
    ``word_queries`` counts the forms that looked, both ways; under ``"mean"`` it is the sum over language pairs.

    Args:
        rows: word positioned samples, see :func:`ctloss.train.samples.wps.build_wps`.
        most: sentence pairs a language pair at most.
        is_held_out: tells of the numbers in a row's ``word_types`` which were kept out of training, as booleans.
    """

    def __init__(
        self, rows: Sequence[Row], *, most: int, is_held_out: Callable[[Sequence[int]], Iterable[bool]]
    ) -> None:
        self._groups = {name: group for name, group in by_languages(rows, most).items() if len(group) >= 2}
        self._is_held_out = is_held_out
        self._spans: dict[tuple[int, ...], dict[Span, int]] = {}
        for group in self._groups.values():
            for row in group:
                for side, offset in (("source", 0), ("target", 2)):
                    numbered = self._spans.setdefault(tuple(row[f"{side}_ids"]), {})
                    for pair in row["word_pairs"]:
                        numbered.setdefault((pair[offset], pair[offset + 1]), len(numbered))

    def __call__(self, encoder: CCEEncoder) -> dict[str, dict[str, float]]:
        """Returns the measures of each language pair, and their means under ``"mean"``."""
        sentences = list(self._spans)
        pooled, words = embed(encoder, sentences, [list(self._spans[ids]) for ids in sentences])
        number = {ids: i for i, ids in enumerate(sentences)}
        measured = {}
        for name, group in self._groups.items():
            x, y = (pooled[[number[tuple(row[f"{side}_ids"])] for row in group]] for side in ("source", "target"))
            measured[name] = _both("sentence", x, y) | {
                "random_pair_cosine": random_pair_cosine(x, y),
                "random_pair_cosine_centred": random_pair_cosine(centred(x), centred(y)),
            }
            measured[name] |= self._words(group, lambda ids, span: words[number[ids]][self._spans[ids][span]])
        names = dict.fromkeys(key for values in measured.values() for key in values)
        mean = {key: _mean([values[key] for values in measured.values() if key in values]) for key in names}
        if "word_queries" in mean:
            mean["word_queries"] = sum(values.get("word_queries", 0.0) for values in measured.values())
        return {**measured, "mean": mean}

    def _words(self, group: Sequence[Row], vector: Any) -> dict[str, float]:
        sums: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
        held: set[tuple[str, str]] = set()
        trained: set[tuple[str, str]] = set()
        for row in group:
            source_ids, target_ids = tuple(row["source_ids"]), tuple(row["target_ids"])
            flags = self._is_held_out(row["word_types"])
            found = zip(row["word_pairs"], row["source_words"], row["target_words"], flags, strict=True)
            for (a, b, c, d), source, target, is_held_out in found:
                sums[0].setdefault(source, []).append(vector(source_ids, (a, b)))
                sums[1].setdefault(target, []).append(vector(target_ids, (c, d)))
                (held if is_held_out else trained).add((source, target))
        if not held:
            return {}
        number = tuple({form: i for i, form in enumerate(side)} for side in sums)
        x, y = (torch.stack([torch.stack(found).mean(dim=0) for found in side.values()]) for side in sums)
        forth, back = _Queries(), _Queries()
        for source, target in sorted(held):
            i, j = number[0][source], number[1][target]
            forth.right.setdefault(i, set()).add(j)
            back.right.setdefault(j, set()).add(i)
        for source, target in trained:
            i, j = number[0][source], number[1][target]
            forth.removed.setdefault(i, set()).add(j)
            back.removed.setdefault(j, set()).add(i)
        return {**_both("word", x, y, forth, back), "word_queries": float(len(forth.right) + len(back.right))}


@dataclass
class _Queries:
    """Rows that look for their translations: by row, the right candidates, and those it leaves out."""

    right: dict[int, set[int]] = field(default_factory=dict)
    removed: dict[int, set[int]] = field(default_factory=dict)


def _both(
    name: str, x: Tensor, y: Tensor, forth: _Queries | None = None, back: _Queries | None = None
) -> dict[str, float]:
    measured = {}
    for suffix, a, b in (("", x, y), ("_centred", centred(x), centred(y))):
        for way, queries, candidates, asked in (("forth", a, b, forth), ("back", b, a, back)):
            measured[f"{name}_{way}{suffix}"] = (
                retrieval_accuracy(queries, candidates)
                if asked is None
                else retrieval_accuracy(
                    queries[list(asked.right)],
                    candidates,
                    list(asked.right.values()),
                    [asked.removed.get(i, set()) for i in asked.right],
                )
            )
    return measured


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def centred(vectors: Tensor) -> Tensor:
    """Returns the vectors less their mean: what is left once a language's common direction is taken out."""
    return vectors - vectors.mean(dim=0)


def nearest(
    queries: Tensor, candidates: Tensor, *, removed: Sequence[set[int]] | None = None, rows: int = 1024
) -> Tensor:
    """Returns for each query the index of the candidate of the largest cosine, (m,) int64; the first of equals.

    Args:
        queries: (m, d).
        candidates: (k, d).
        removed: the candidates that each query leaves out; never all of them.
        rows: queries compared at a time, which bounds the memory.

    Example:
        >>> nearest(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([1])
        >>> nearest(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), removed=[{1}])
        tensor([0])
    """
    unit = functional.normalize(candidates.float(), dim=1)
    found = []
    for start in range(0, len(queries), rows):
        cosines = functional.normalize(queries[start : start + rows].float(), dim=1) @ unit.T
        for row, left_out in zip(cosines, (removed or ())[start : start + rows], strict=False):
            row[list(left_out)] = -torch.inf
        found.append(cosines.argmax(dim=1))
    return torch.cat(found)


def retrieval_accuracy(
    queries: Tensor,
    candidates: Tensor,
    gold: Sequence[set[int]] | None = None,
    removed: Sequence[set[int]] | None = None,
) -> float:
    """Share of the queries whose nearest candidate is a right one.

    Args:
        queries: (m, d).
        candidates: (k, d).
        gold: the right candidates of each query; without it row i of both is a pair.
        removed: the candidates that each query leaves out.

    Example:
        >>> x = torch.eye(3)
        >>> retrieval_accuracy(x, x), round(retrieval_accuracy(x, x, [{0}, {2}, {1, 2}]), 4)
        (1.0, 0.6667)
    """
    found = nearest(queries, candidates, removed=removed).tolist()
    right = [index == i if gold is None else index in gold[i] for i, index in enumerate(found)]
    return sum(right) / len(right)


def random_pair_cosine(x: Tensor, y: Tensor) -> float:
    """Mean cosine of x's rows with y's rows of another index, over all n (n - 1) of them.

    Near 0 the vectors use their whole space; near 1 they crowd in a cone. Computed from the sums of the unit rows, so
    exactly and without the n × n cosines.

    Args:
        x, y: (n, d), n ≥ 2; row i of y translates row i of x.

    Example:
        >>> round(random_pair_cosine(torch.eye(2), torch.ones(2, 2)), 4)
        0.7071
    """
    x, y = (functional.normalize(side.double(), dim=1) for side in (x, y))
    n = len(x)
    return float((x.sum(dim=0) @ y.sum(dim=0) - (x * y).sum()) / (n * (n - 1)))
