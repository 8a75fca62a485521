"""What a run leaves to look at: the table of its measures and the picture of its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...shared import pictures
from ...shared.pictures import NOTHING, Point, markdown
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
UNMEASURED = "Nothing was measured: no language pair has two test sentences."
# t-SNE separates classes of a few dozen points; more only cost time.
POINTS = 12


def table(stages: Mapping[str, Measured], languages: str = "mean", *, held_out: bool = True) -> str:
    """Returns a Markdown table of the measures at each stage (``"before"``, ``"after"``), as they are and centred.

    It shows one language pair or the ``"mean"`` of all, and only rows and columns with a value; without any, a sentence
    says so. ``held_out`` tells whether word translations were held out of training.
    """
    header = ["", *stages, *(f"{stage}, centred" for stage in stages)]
    rows = []
    queries = max((stage[languages].get("word_queries", 0.0) for stage in stages.values()), default=0.0)
    kind = "held-out" if held_out else "all, including trained ones"
    for name, label in LABELS.items():
        if name.startswith("word") and queries:
            label += f", {kind} ({queries:.0f} queries in both directions)"
        cells = [
            f"{stages[stage][languages][name + suffix]:.3f}" if name + suffix in stages[stage][languages] else NOTHING
            for suffix in ("", "_centred")
            for stage in stages
        ]
        if set(cells) != {NOTHING}:
            rows.append([label, *cells])
    return markdown(header, rows) if rows else UNMEASURED


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


class WordPictures:
    """The words of a picture and their vectors, see :func:`choose_words`.

    Args:
        rows: word positioned samples of a held-out part.
        meanings: how many words, with their translations.
    """

    def __init__(self, rows: Sequence[Row], meanings: int) -> None:
        self._places = [
            (word, language, ids, span)
            for word, by_language in choose_words(rows, meanings).items()
            for language, found in by_language.items()
            for ids, span in found
        ]

    def vectors(self, encoder: CCEEncoder) -> Tensor:
        """Returns the vectors of the words in their sentences, (words, H) on the CPU."""
        _, found = embed(encoder, [ids for _, _, ids, _ in self._places], [[span] for *_, span in self._places])
        return torch.cat(found) if found else torch.zeros(0, encoder.backbone.config.hidden_size)

    def draw(self, panels: Mapping[str, Tensor], path: Path, *, seed: int) -> bool:
        """Draws t-SNE pictures, one panel for each of the vectors, titled by their names.

        See :func:`ctloss.shared.pictures.draw_words` for the rest.
        """
        points = {
            title: [
                Point(word, language, vector) for (word, language, *_), vector in zip(self._places, found, strict=True)
            ]
            for title, found in panels.items()
        }
        title = "Word vectors in held-out sentences: colour is meaning, marker is language"
        return pictures.draw_words(points, path, title=title, seed=seed)
