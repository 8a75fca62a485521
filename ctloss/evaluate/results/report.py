"""The report: Markdown tables like the paper's Table 1 and by language, bars by language, and the picture of words."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...shared import pictures
from ...shared.pictures import Point, write_figure
from ...shared.text import text_files
from ..data.parallel import read_alignments
from ..data.sources import EVALUATIONS
from ..models.encoder import Encoder
from ..models.options import XTREME_OPTIONS
from .comparison import ALPHA, COLUMNS, MARK, Column, Comparison, rows_of
from .scores import ALL, MAJORITY, Results, Spread, TaskResult, over_seeds
from .significance import LEVEL, Interval

NOTHING = "–"
# Table 1 of Chen et al. 2022 (arXiv 2202.13083), in per cent, for the first columns below: means over all of XTREME's
# languages. mBERT, XLM and MMTE come from Hu et al. 2020 (arXiv 2003.11080).
PUBLISHED: dict[str, tuple[float, ...]] = {
    "mBERT": (65.4, 81.9, 70.3, 62.2, 56.7, 38.7),
    "XLM": (69.1, 80.9, 70.1, 61.2, 56.8, 32.6),
    "MMTE": (67.4, 81.3, 72.3, 58.3, 59.8, 37.9),
    "info-snt": (66.255, 84.092, 71.544, 62.157, 76.426, 41.148),
    "CZ-snt": (66.862, 84.485, 71.733, 62.337, 77.403, 41.751),
    "ML-CTL-CZ": (67.750, 85.321, 72.289, 62.865, 78.440, 43.389),
}


# The metric drawn for each evaluation, and how the languages drawn begin.
DRAWN = dict.fromkeys(EVALUATIONS, "accuracy") | {"align": "aer"}
DRAWN |= dict.fromkeys(("pos", "ner", "bucc", "xquad", "mlqa", "tydiqa"), "f1")
STARTS = {"tatoeba": "eng-", "flores": "eng_Latn-", "ntrex": "eng-"}
# Options of single evaluations that the notes name.
OWN = ("language_pairs", "flores_split", "method", "threshold", "one_based")
# More languages than these are counted in the notes, not named.
NAMED = 60
# t-SNE separates a few dozen points per class; more only cost time.
POINTS = 8

# Where a word occurs: the sentence in words, and the word's position.
Place = tuple[tuple[str, ...], int]


def report(results: Sequence[Results], compared: Comparison | None = None) -> str:
    """Returns the whole report: the table of means, notes on what they average, and a table by language per task.

    Args:
        compared: intervals and differences, see :func:`ctloss.evaluate.results.comparison.compare_results`.
    """
    parts = ["# Evaluation, zero-shot from English", "", table_of_means(results, compared), "", notes(results), ""]
    if compared is not None and compared.rows:
        parts += ["## Intervals and differences", "", table_of_intervals(results, compared), ""]
    for task, evaluation in EVALUATIONS.items():
        if any(task in model.tasks for model in results):
            parts += [f"## {evaluation.title} by language", "", table_by_language(results, task, compared), ""]
            shown = {language for *_, language in rows_of(results, task)}
            there = {score.language for model in results if task in model.tasks for score in model.tasks[task].scores}
            if there - shown:
                parts += [f"{len(there - shown)} directions without English are in results.json only.", ""]
    return "\n".join(parts)


def table_of_means(results: Sequence[Results], compared: Comparison | None = None) -> str:
    """Returns a table with one row per model, in per cent, the paper's rows first; ± is the spread over seeds.

    A mark follows scores that differ from the first model's beyond chance.
    """
    marks = {} if compared is None else compared.marks(column.key for column in COLUMNS)
    published = len(next(iter(PUBLISHED.values())))
    shown = [
        column
        for place, column in enumerate(COLUMNS)
        if place < published or any(column.task in model.tasks for model in results)
    ]
    others = [NOTHING] * (len(shown) - published)

    def cells(model: Results, *, majority: bool, number: int = -1) -> list[str]:
        return [
            _cell(_headline(model, column, majority=majority), 100, 1, marks.get((column.key, number), ""))
            for column in shown
        ]

    rows = [[f"{name} (paper's)", *(f"{value:.1f}" for value in row), *others] for name, row in PUBLISHED.items()]
    seen = [[NOTHING] * len(shown)]
    for model in results:
        if (row := cells(model, majority=True)) not in seen:
            seen.append(row)
            rows.append([f"{MAJORITY} of {model.name}'s test data", *row])
    rows += [
        [f"**{model.name}**", *cells(model, majority=False, number=number)] for number, model in enumerate(results)
    ]
    return _table(["model", *(column.title for column in shown)], rows)


def table_by_language(results: Sequence[Results], task: str, compared: Comparison | None = None) -> str:
    """Returns a table of an evaluation's scores: one row per metric and language, one column per model.

    A mark follows scores that differ from the first model's beyond chance.
    """
    rows: dict[tuple[str, str, str], dict[int, Spread]] = {row: {} for row in rows_of(results, task)}
    for number, model in enumerate(results):
        for spread in _spreads(model, task):
            if (row := (spread.metric, spread.about, spread.language)) in rows:
                rows[row][number] = spread
    keys = {row: (task, row[0], row[2]) for row in rows if MAJORITY not in row[1]}
    marks = {} if compared is None else compared.marks(dict.fromkeys(keys.values()))
    lines = []
    for row, spreads in rows.items():
        metric, about, language = row
        cells = [
            _cell(spreads.get(number), 1, 3, marks.get((keys[row], number), "") if row in keys else "")
            for number in range(len(results))
        ]
        lines.append([f"{metric} ({about})" if about else metric, language, *cells])
    return _table(["metric", "language", *(model.name for model in results)], lines)


def table_of_intervals(results: Sequence[Results], compared: Comparison) -> str:
    """Returns a table of the means' intervals and of the differences from the first model, and how they were found."""
    corrected = compared.corrected(column.key for column in COLUMNS)
    first = results[0].name
    lines = []
    untested = False
    for column in COLUMNS:
        intervals, differences = compared.rows.get(column.key, ([], []))
        for number, (interval, difference) in enumerate(zip(intervals, differences, strict=True)):
            if interval is None:
                continue
            cells = [results[number].name, column.title, f"{100 * interval.value:.1f}", _between(interval, "")]
            if difference is not None:
                p = corrected.get((column.key, number))
                mark = f" {MARK}" if p is not None and p < ALPHA else ""
                cells += [f"{100 * difference.value:+.1f}{mark}", _between(difference, "+")]
                cells += [NOTHING if value is None else f"{value:.4f}" for value in (difference.p, p)]
                untested = untested or p is None
            lines.append([*cells, *[NOTHING] * (8 - len(cells))])
    level = f"{100 * LEVEL:.0f} %"
    columns = ["model", "score", "per cent", f"{level} interval", f"less {first}", f"{level} interval", "p", "p (Holm)"]
    told = (
        "Paired bootstrap over the items of each test set, and over a model's seeds where it has several: "
        f"{compared.options.resamples} resamples, seed {compared.options.resampling_seed}, percentiles. p is "
        f"two-sided. {MARK} marks p < {ALPHA:g} after Holm's correction for the {len(corrected)} differences of this "
        f"table, and in each of the others for those in it. Differences are from {first}, and only between scores of "
        "the same items."
    )
    if untested:
        told += (
            " Where a model was fine-tuned with one seed only, nothing tells how far its runs spread: the difference "
            "has no p and no mark, and the intervals are of these runs, over items alone. Give both models several "
            "--seeds to compare them."
        )
    return "\n".join([_table(columns, lines), "", told])


def _between(interval: Interval, sign: str) -> str:
    return f"{100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def notes(results: Sequence[Results]) -> str:
    """Returns what the means average, and where a model was evaluated differently from XTREME."""
    lines = [
        "Per cent. Rows marked as the paper's are Table 1 of Chen et al. 2022: means over all of XTREME's languages, "
        "zero-shot from English. The others are means over the languages below, with the standard deviation over seeds "
        "after ±. Higher is better, except for xsim and the alignment error rate.",
        "",
    ]
    for model in results:
        for task, result in model.tasks.items():
            lines.append(f"- {model.name}, {EVALUATIONS[task].title}: {'; '.join(_facts(task, result))}")
    return "\n".join(lines)


def _facts(task: str, result: TaskResult) -> list[str]:
    languages = list(dict.fromkeys(score.language for score in result.scores if not _is_mean(score.language)))
    named = ", ".join(languages) if len(languages) <= NAMED else f"{len(languages)} directions"
    facts = [named or "no labels, so no scores"]
    finetuned = EVALUATIONS[task].task
    if finetuned is None:
        wanted = ("pooling", "layer", "prefix", "max_length", *OWN)
        facts += [f"{name} {result.settings[name]!r}" for name in wanted if result.settings.get(name) not in (None, "")]
        return facts
    usual = dataclasses.asdict(XTREME_OPTIONS[finetuned.name])
    usual |= {"train": [], "dev": [], "seeds": result.settings["seeds"]}
    changed = {name: value for name, value in result.settings.items() if name in usual and value != usual[name]}
    runs = len(result.settings["seeds"])
    facts.append(f"{runs} seed{'s' if runs > 1 else ''}")
    facts += [f"{name} {', '.join(value) if isinstance(value, list) else value}" for name, value in changed.items()]
    return [*facts, "otherwise XTREME's settings" if changed else "XTREME's settings"]


def _is_mean(language: str) -> bool:
    return language == ALL or language.startswith("X-") or language.endswith("-X")


def _spreads(model: Results, task: str) -> list[Spread]:
    return over_seeds(model.tasks[task].scores if task in model.tasks else [])


def _headline(model: Results, column: Column, *, majority: bool) -> Spread | None:
    """Returns a model's score in a column, or that of the majority class, if there is one."""
    for spread in _spreads(model, column.task):
        if (spread.metric, spread.language) == (column.metric, column.language) and (
            (MAJORITY in spread.about) == majority
        ):
            return spread
    return None


def _cell(spread: Spread | None, scale: int, digits: int, mark: str = "") -> str:
    if spread is None:
        return NOTHING
    deviation = "" if spread.deviation is None else f" ± {scale * spread.deviation:.{digits}f}"
    return f"{scale * spread.mean:.{digits}f}{deviation}{mark and f' {mark}'}"


def draw_languages(results: Sequence[Results], path: Path) -> bool:
    """Draws bars by language, one panel per evaluation and one colour per model; whiskers are spreads over seeds.

    The dashed line for XNLI and PAWS-X is the accuracy of always answering the most frequent label. The picture is a
    PNG file.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = {task: [_by_language(model, task) for model in results] for task in DRAWN}
    panels = {task: models for task, models in panels.items() if any(models)}
    if not panels:
        return False
    # Inches.
    legend = 0.2 + 0.2 * math.ceil(len(results) / 4)
    figure = Figure(figsize=(11, 2.6 * len(panels) + legend))
    axes = figure.subplots(len(panels), 1, squeeze=False)
    colours = colormaps["tab10" if len(results) <= 10 else "tab20"]
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
        majority = {
            spread.mean
            for model in results
            for spread in _spreads(model, task)
            if MAJORITY in spread.about and spread.language == ALL
        }
        for level in sorted(majority):
            axis.axhline(level, color="black", linestyle="--", linewidth=0.8)
        metric, start = DRAWN[task], STARTS.get(task, "")
        better = ", lower is better" if metric == "aer" else ""
        axis.set(title=f"{EVALUATIONS[task].title}: {metric}{f', {start}X' if start else ''}{better}")
        axis.set_xticks(range(len(languages)), languages, rotation=90 if len(languages) > 12 else 0)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colours(number % colours.N), label=model.name) for number, model in enumerate(results)]
    figure.legend(handles=handles, loc="upper center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - legend / figure.get_figheight()))
    write_figure(figure, path)
    return True


def _by_language(model: Results, task: str) -> dict[str, Spread]:
    metric, start = DRAWN[task], STARTS.get(task, "")
    return {
        spread.language.removeprefix(start): spread
        for spread in _spreads(model, task)
        if spread.metric == metric
        and MAJORITY not in spread.about
        and not _is_mean(spread.language)
        and spread.language.startswith(start)
    }


def draw_words(
    encoders: Mapping[str, Encoder],
    folder: Path,
    path: Path,
    *,
    languages: Sequence[str] | None = None,
    one_based: bool = False,
    meanings: int = 12,
    seed: int = 0,
) -> bool:
    """Draws t-SNE pictures of token embeddings, one panel per encoder: colours are meanings, markers languages.

    A token's vector is the mean over its wordpieces; the encoder's pooling chooses their hidden states. See
    :func:`ctloss.shared.pictures.draw_words`.

    Args:
        encoders: by the title of their panel, such as before and after an alignment.
        folder: of gold word alignments with English, see :func:`ctloss.evaluate.data.parallel.read_alignments`.
        languages: pairs such as ``"en-fr"``; by default all in the folder.
        one_based: whether gold files count words from one.
        meanings: number of English words.

    Returns:
        Whether there were enough words for a picture.

    Raises:
        DataError: a file is malformed.
    """
    places = [
        (word, language, place)
        for word, by_language in choose_words(folder, meanings, languages, one_based=one_based).items()
        for language, found in by_language.items()
        for place in found
    ]
    if len(places) < pictures.FEWEST:
        return False
    panels: dict[str, list[Point]] = {}
    for title, encoder in encoders.items():
        pieces = encoder.pieces([sentence for *_, (sentence, _) in places])
        panels[title] = [
            Point(word, language, found.vectors[rows].mean(axis=0))
            for (word, language, (_, position)), found in zip(places, pieces, strict=True)
            # A word beyond the length that the model takes has no pieces.
            if (rows := [row for row, owner in enumerate(found.words) if owner == position])
        ]
    title = "Token embeddings of translated words: colour is meaning, marker is language"
    return pictures.draw_words(panels, path, title=title, seed=seed)


def choose_words(
    folder: Path, meanings: int, languages: Sequence[str] | None = None, *, one_based: bool = False
) -> dict[str, dict[str, list[Place]]]:
    """Chooses English words that gold alignments link one to one: those in most languages, the most frequent first.

    Short words and scikit-learn's function words are left out.

    Returns:
        By English word and language, English included, where the word or its translation occurs.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    places: dict[str, dict[str, list[Place]]] = {}
    count: Counter[str] = Counter()
    for name in (name.removesuffix(".gold") for name in text_files(folder, "*.gold")):
        codes = name.partition(".")[0].split("-")
        if len(codes) != 2 or "en" not in codes or (languages is not None and name not in languages):
            continue
        english, other = codes.index("en"), codes[1 - codes.index("en")]
        for pair in read_alignments(folder / name, one_based=one_based):
            sides = (tuple(pair.first), tuple(pair.second))
            times = [Counter(link[side] for link in pair.possible) for side in (0, 1)]
            for link in sorted(pair.sure):
                word = sides[english][link[english]].lower()
                one_to_one = times[0][link[0]] == times[1][link[1]] == 1
                if not one_to_one or len(word) < 4 or not word.isalpha() or word in ENGLISH_STOP_WORDS:
                    continue
                count[word] += 1
                for code, side in (("en", english), (other, 1 - english)):
                    there = places.setdefault(word, {}).setdefault(code, [])
                    if len(there) < POINTS:
                        there.append((sides[side], link[side]))
    chosen = sorted(count, key=lambda word: (-len(places[word]), -count[word], word))[:meanings]
    return {word: places[word] for word in chosen}
