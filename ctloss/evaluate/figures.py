"""Figures: scores by language of several models, and token embeddings of translated words coloured by meaning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .classification import MAJORITY
from .encoder import Encoder
from .evaluations import EVALUATIONS
from .kept_results import Results
from .parallel import read_alignments
from .spread import ALL, Spread, over_seeds

# What is drawn of each evaluation, and how a language's name in it begins or ends.
DRAWN = {
    "xnli": ("accuracy", ""),
    "pawsx": ("accuracy", ""),
    "pos": ("f1", ""),
    "ner": ("f1", ""),
    "bucc": ("f1", ""),
    "tatoeba": ("accuracy", "eng-"),
    "pairs": ("accuracy", ""),
    "words": ("accuracy", ""),
    "align": ("aer", ""),
}
MARKERS = "os^DvP*X<>hp"
# t-SNE separates a few dozen points a class; more only cost time.
POINTS = 8
LEAST = 10

# A word's place: the sentence in words, and the word's position.
Place = tuple[tuple[str, ...], int]


def draw_languages(results: Sequence[Results], path: Path) -> bool:
    """Draws bars by language, a panel an evaluation and a colour a model; whiskers are spreads over seeds.

    The dashed line of XNLI and PAWS-X is the accuracy of the most frequent label.

    Args:
        results: of the models, in the order of their bars.
        path: PNG file to write.

    Returns:
        Whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    panels = {task: [_by_language(model, task) for model in results] for task in DRAWN}
    panels = {task: models for task, models in panels.items() if any(models)}
    if not panels:
        return False
    # Inches.
    legend = 0.2 + 0.2 * math.ceil(len(results) / 4)
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(11, 2.6 * len(panels) + legend), squeeze=False)
    colours = pyplot.get_cmap("tab10" if len(results) <= 10 else "tab20")
    for axis, (task, models) in zip(axes[:, 0], panels.items(), strict=True):
        languages = sorted({language for found in models for language in found})
        width = 0.8 / len(results)
        for number, found in enumerate(models):
            there = [place for place, language in enumerate(languages) if language in found]
            spreads = [found[languages[place]] for place in there]
            axis.bar(
                [place + (number - (len(results) - 1) / 2) * width for place in there],
                [spread.mean for spread in spreads],
                width,
                yerr=[spread.deviation or 0.0 for spread in spreads],
                color=colours(number % colours.N),
            )
        for level in sorted({spread.mean for model in results for spread in _majority(model, task)}):
            axis.axhline(level, color="black", linestyle="--", linewidth=0.8)
        metric, start = DRAWN[task]
        better = ", lower is better" if metric == "aer" else ""
        axis.set(title=f"{EVALUATIONS[task].title}: {metric}{f', {start}X' if start else ''}{better}")
        axis.set_xticks(range(len(languages)), languages, rotation=90 if len(languages) > 12 else 0)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colours(number % colours.N), label=model.name) for number, model in enumerate(results)]
    figure.legend(handles=handles, loc="upper center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - legend / figure.get_figheight()))
    _save(figure, path)
    return True


def draw_words(
    encoders: Mapping[str, Encoder],
    folder: Path,
    path: Path,
    *,
    languages: Sequence[str] | None = None,
    meanings: int = 12,
    seed: int = 0,
) -> bool:
    """Draws t-SNE pictures of token embeddings, a panel an encoder: colours are meanings, markers languages.

    After Chen et al. 2022, poster, figure 3. A token's vector is the mean of its wordpieces', which the encoder's
    pooling chooses the hidden states of.

    Args:
        encoders: by the title of their panel, such as before and after an alignment.
        folder: of gold word alignments with English, see :func:`ctloss.evaluate.parallel.read_alignments`.
        path: PNG file to write.
        languages: pairs such as ``"en-fr"``; by default all in the folder.
        meanings: how many English words.
        seed: of t-SNE.

    Returns:
        Whether there were words enough for a picture.

    Raises:
        DataError: a file is malformed.
    """
    import matplotlib
    import numpy as np
    from sklearn.manifold import TSNE

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    points = [
        (word, language, place)
        for word, languages in choose_words(folder, meanings, languages).items()
        for language, places in languages.items()
        for place in places
    ]
    if len(points) < LEAST:
        return False
    words = list(dict.fromkeys(word for word, *_ in points))
    codes = sorted({language for _, language, _ in points})
    colours = pyplot.get_cmap("tab20")
    figure, axes = pyplot.subplots(1, len(encoders), figsize=(6.5 * len(encoders) + 1.5, 6), squeeze=False)
    for axis, (title, encoder) in zip(axes[0], encoders.items(), strict=True):
        pieces = encoder.pieces([sentence for *_, (sentence, _) in points])
        vectors, kept = [], []
        for point, found in zip(points, pieces, strict=True):
            rows = [row for row, word in enumerate(found.words) if word == point[2][1]]
            # A word beyond the length that the model takes has no pieces.
            if rows:
                vectors.append(found.vectors[rows].mean(axis=0))
                kept.append(point)
        perplexity = min(30.0, (len(kept) - 1) / 3)
        flat = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(
            np.stack(vectors)
        )
        for spot, (word, language, _) in zip(flat, kept, strict=True):
            colour, marker = colours(words.index(word) % 20), MARKERS[codes.index(language) % len(MARKERS)]
            axis.scatter(*spot, color=colour, marker=marker, s=22, linewidths=0)
        axis.set(title=title, xticks=[], yticks=[])
    handles = [Line2D([], [], color=colours(i % 20), marker="o", ls="", label=word) for i, word in enumerate(words)]
    handles += [
        Line2D([], [], color="black", marker=MARKERS[i % len(MARKERS)], ls="", label=code)
        for i, code in enumerate(codes)
    ]
    figure.legend(handles=handles, loc="center right", frameon=False, fontsize=8)
    figure.suptitle("Token embeddings of translated words: colour is meaning, marker is language")
    figure.tight_layout(rect=(0, 0, 1 - 1.2 / figure.get_figwidth(), 1))
    _save(figure, path)
    return True


def choose_words(
    folder: Path, meanings: int, languages: Sequence[str] | None = None
) -> dict[str, dict[str, list[Place]]]:
    """Chooses English words that gold alignments link one to one: those of most languages, the commonest first.

    Words of the list of function words that scikit-learn has, and short ones, are left out.

    Returns:
        By English word and language, its own among them, where the word or its translation stands.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    places: dict[str, dict[str, list[Place]]] = {}
    count: Counter[str] = Counter()
    for path in sorted(folder.glob("*.gold")):
        name = path.name.removesuffix(".gold")
        codes = name.partition(".")[0].split("-")
        if len(codes) != 2 or "en" not in codes or (languages is not None and name not in languages):
            continue
        english, other = codes.index("en"), codes[1 - codes.index("en")]
        for pair in read_alignments(folder / name):
            sides = (tuple(pair.first), tuple(pair.second))
            times = [Counter(link[side] for link in pair.possible) for side in (0, 1)]
            for link in sorted(pair.sure):
                word = sides[english][link[english]].lower()
                alone = times[0][link[0]] == times[1][link[1]] == 1
                if not alone or len(word) < 4 or not word.isalpha() or word in ENGLISH_STOP_WORDS:
                    continue
                count[word] += 1
                for code, side in (("en", english), (other, 1 - english)):
                    there = places.setdefault(word, {}).setdefault(code, [])
                    if len(there) < POINTS:
                        there.append((sides[side], link[side]))
    chosen = sorted(count, key=lambda word: (-len(places[word]), -count[word], word))[:meanings]
    return {word: places[word] for word in chosen}


def _by_language(model: Results, task: str) -> dict[str, Spread]:
    metric, start = DRAWN[task]
    scores = model.tasks[task].scores if task in model.tasks else []
    return {
        spread.language.removeprefix(start): spread
        for spread in over_seeds(scores)
        if spread.metric == metric
        and MAJORITY not in spread.about
        and spread.language not in (ALL, f"{start}X")
        and spread.language.startswith(start)
    }


def _majority(model: Results, task: str) -> list[Spread]:
    scores = model.tasks[task].scores if task in model.tasks else []
    return [spread for spread in over_seeds(scores) if MAJORITY in spread.about and spread.language == ALL]


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)
    partial.replace(path)
