"""Runs an encoder on held-out pairs: its sentence and word vectors, and what they retrieve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn.utils.rnn import pad_sequence

from ...shared.vectors import centred, random_pair_cosine, retrieval_accuracy
from ..model.encoder import CCEEncoder

Row = Mapping[str, Any]
Span = tuple[int, int]


@torch.no_grad()
def embed(
    encoder: CCEEncoder,
    sentences: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Span]],
    *,
    batch: int = 128,
    together: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Pools sentences and any number of words in each, without the head, in float32, without dropout.

    The encoder stays in its mode, training or not.

    Args:
        encoder: the CCE encoder.
        sentences: wordpieces of each sentence, including special tokens.
        spans: (start, end) of the words in each sentence, end exclusive; may be empty.
        batch: sentences per batch, in the order of their lengths.
        together: whether all processes do this at once, each with a copy of the encoder and the same sentences: then
            each takes its share of the batches, and all return the vectors of all.

    Returns:
        Sentence vectors (m, H), and for each sentence its word vectors (number of spans, H); on the CPU.
    """
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    pad, width = encoder.backbone.config.pad_token_id, encoder.backbone.config.hidden_size
    pooled = torch.zeros(len(sentences), width)
    words = list(torch.zeros(sum(map(len, spans)), width).split([len(own) for own in spans]))
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    several = together and distributed.is_available() and distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
    for start in range(rank * batch, len(order), world * batch):
        part = order[start : start + batch]
        pieces = [torch.tensor(sentences[i]) for i in part]
        ids = pad_sequence(pieces, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row) for row in pieces], batch_first=True)
        states = encoder.first_and_last(ids.to(device), mask.to(device))[0].cpu()
        for row, i in enumerate(part):
            pooled[i] = states[row, : len(sentences[i])].mean(dim=0)
            for vector, (first, last) in zip(words[i], spans[i], strict=True):
                vector.copy_(states[row, first:last].mean(dim=0))
    encoder.train(was_training)
    if world == 1:
        return pooled, words
    # Each row is one process's, and 0 on the others.
    shares = torch.cat([pooled, *words]).to(device)
    distributed.all_reduce(shares)
    pooled, *words = shares.cpu().split([len(pooled), *map(len, words)])
    return pooled, words


def by_languages(rows: Sequence[Row], most: int) -> dict[str, list[Row]]:
    """Groups rows by language pair (``"en-fr"``), at most ``most`` each, skipping rows that repeat a sentence."""
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

    Sentence retrieval: the nearest sentence of the other side, by cosine. Word retrieval: a word form is the mean of
    its vectors over the sentences, and each form with a held-out translation looks for the nearest form of the other
    side. Its held-out translations are right; its other translations in the sentences, which training may have used,
    are not candidates. Both are measured in both directions, with the vectors as they are and with each side's mean
    subtracted (centred). ``word_queries`` counts the queries in both directions; under ``"mean"`` it is their sum over
    language pairs.

    Args:
        rows: word positioned samples of a held-out part, see :class:`ctloss.train.prepared.folder.Prepared`. Language
            pairs of which fewer than two differ are left out.
        most: at most this many sentence pairs per language pair.
        is_held_out: returns a boolean for each of a row's ``word_types``: whether it was held out of training.

    Attributes:
        names: the measures, none if nothing can be measured.
    """

    def __init__(
        self, rows: Sequence[Row], *, most: int, is_held_out: Callable[[Sequence[int]], Iterable[bool]]
    ) -> None:
        self._groups = {name: group for name, group in by_languages(rows, most).items() if len(group) >= 2}
        self._is_held_out = is_held_out
        held = any(any(is_held_out(row["word_types"])) for group in self._groups.values() for row in group)
        units = ["sentence", *(["word"] if held else [])] if self._groups else []
        retrievals = [f"{unit}_{way}" for unit in units for way in ("forth", "back")]
        plain = [*retrievals, *(["random_pair_cosine"] if units else [])]
        self.names = {*plain, *(f"{name}_centred" for name in plain), *(["word_queries"] if held else [])}
        self._spans: dict[tuple[int, ...], dict[Span, int]] = {}
        for group in self._groups.values():
            for row in group:
                for side, offset in (("source", 0), ("target", 2)):
                    numbered = self._spans.setdefault(tuple(row[f"{side}_ids"]), {})
                    for pair in row["word_pairs"]:
                        numbered.setdefault((pair[offset], pair[offset + 1]), len(numbered))

    def __call__(self, encoder: CCEEncoder, *, together: bool = False) -> dict[str, dict[str, float]]:
        """Returns the measures of each language pair, and their means under ``"mean"``.

        ``together``: all processes call this, and each encodes its share of the sentences; see :func:`embed`.
        """
        sentences = list(self._spans)
        pooled, words = embed(encoder, sentences, [list(self._spans[ids]) for ids in sentences], together=together)
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
        found = {key: [values[key] for values in measured.values() if key in values] for key in names}
        mean = {key: sum(values) / len(values) for key, values in found.items()}
        if "word_queries" in mean:
            mean["word_queries"] = sum(found["word_queries"])
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
        pairs = [[(number[0][source], number[1][target]) for source, target in found] for found in (held, trained)]
        forth, back = _queries(*pairs), _queries(*([(j, i) for i, j in found] for found in pairs))
        return {**_both("word", x, y, forth, back), "word_queries": float(len(forth.rows) + len(back.rows))}


class _Queries(NamedTuple):
    """Rows that look for their translations, with the right candidates and the excluded ones of each."""

    rows: list[int]
    right: list[set[int]]
    excluded: list[set[int]]


def _queries(held: Iterable[tuple[int, int]], trained: Iterable[tuple[int, int]]) -> _Queries:
    right: dict[int, set[int]] = {}
    excluded: dict[int, set[int]] = {}
    for found, pairs in ((right, held), (excluded, trained)):
        for row, candidate in pairs:
            found.setdefault(row, set()).add(candidate)
    return _Queries(list(right), list(right.values()), [excluded.get(row, set()) for row in right])


def _both(
    name: str, x: Tensor, y: Tensor, forth: _Queries | None = None, back: _Queries | None = None
) -> dict[str, float]:
    measured = {}
    for suffix, a, b in (("", x, y), ("_centred", centred(x), centred(y))):
        for way, queries, candidates, asked in (("forth", a, b, forth), ("back", b, a, back)):
            measured[f"{name}_{way}{suffix}"] = (
                retrieval_accuracy(queries, candidates)
                if asked is None
                else retrieval_accuracy(queries[asked.rows], candidates, asked.right, asked.excluded)
            )
    return measured
