"""The report: Markdown tables like the paper's Table 1 and by language, and the picture of words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...shared import pictures
from ...shared.pictures import NOTHING, Point, markdown
from ...shared.text import text_files
from ..data.parallel import read_alignments
from ..data.sources import EVALUATIONS
from ..models.encoder import Encoder
from ..models.options import XTREME_OPTIONS
from .comparison import ALPHA, COLUMNS, MARK, Column, Comparison, published_values, rows_of
from .scores import MAJORITY, Results, Spread, TaskResult, is_mean, over_seeds
from .significance import LEVEL, Interval

# Options of single evaluations that the notes name.
OWN = ("language_pairs", "flores_split", "method", "threshold", "one_based")
# More languages than these are counted in the notes, not named.
NAMED = 60
# t-SNE separates a few dozen points per class; more only cost time.
POINTS = 8

# Where a word occurs: the sentence in words, and the word's position.
Place = tuple[tuple[str, ...], int]


def report(results: Sequence[Results], compared: Comparison | None = None, *, picture: str | None = None) -> str:
    """Returns the whole report: the table of means, notes on what they average, and a table by language per task.

    Args:
        compared: intervals and differences, see :func:`ctloss.evaluate.results.comparison.compare_results`.
        picture: name of the scores by language, drawn beside the report (:func:`ctloss.evaluate.draw_languages`).
    """
    tuned = any(EVALUATIONS[task].task is not None for model in results for task in model.tasks)
    parts = [f"# Evaluation{', zero-shot from English' if tuned else ''}", ""]
    parts += [table_of_means(results, compared), "", notes(results), ""]
    if picture is not None:
        parts += [pictures.shown(picture, "Scores by language"), ""]
    means = [] if compared is None else [compared.rows[column.key] for column in COLUMNS if column.key in compared.rows]
    if compared is not None and any(interval for intervals, _ in means for interval in intervals):
        differ = any(difference for _, differences in means for difference in differences)
        parts += [f"## Intervals{' and differences' if differ else ''}", "", table_of_intervals(results, compared), ""]
    for task, evaluation in EVALUATIONS.items():
        shown = {language for *_, language in rows_of(results, task)}
        if shown:
            parts += [f"## {evaluation.title} by language", "", table_by_language(results, task, compared), ""]
            there = {score.language for model in results if task in model.tasks for score in model.tasks[task].scores}
            if there - shown:
                parts += [f"{len(there - shown)} directions without English are in results.json only.", ""]
    return "\n".join(parts)


def table_of_means(results: Sequence[Results], compared: Comparison | None = None) -> str:
    """Returns a table with one row per model, in per cent; ± is the spread over seeds.

    It has the columns in which a model has a score. The paper's rows come first, where they can be compared
    (:func:`ctloss.evaluate.results.comparison.published_values`). A mark follows scores that differ from the first
    model's beyond chance.
    """
    marks = {} if compared is None else compared.marks(column.key for column in COLUMNS)

    def cells(model: Results, *, majority: bool, number: int = -1) -> list[str]:
        return [
            _cell(_headline(model, column, majority=majority), 100, 1, marks.get((column.key, number), ""))
            for column in columns
        ]

    columns = _columns(results)
    if not columns:
        return "No scores."
    rows = [
        [f"{name} (paper's)", *(NOTHING if value is None else f"{value:.1f}" for value in values)]
        for name, values in published_values(results, columns).items()
    ]
    seen = [[NOTHING] * len(columns)]
    for model in results:
        if (row := cells(model, majority=True)) not in seen:
            seen.append(row)
            rows.append([f"{MAJORITY} of {model.name}'s test data", *row])
    rows += [
        [f"**{model.name}**", *cells(model, majority=False, number=number)] for number, model in enumerate(results)
    ]
    return markdown(["model", *(column.title for column in columns)], rows)


def table_by_language(results: Sequence[Results], task: str, compared: Comparison | None = None) -> str:
    """Returns a table of an evaluation's scores: one row per metric and language, one column per model that has any.

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
    return markdown(["metric", "language", *(model.name for model in results)], lines, names=2)


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
    told = [
        "Paired bootstrap over the items of each test set, and over a model's seeds where it has several: "
        f"{compared.options.resamples} resamples, seed {compared.options.resampling_seed}, percentiles."
    ]
    if any(difference and difference.p is not None for _, found in compared.rows.values() for difference in found):
        told.append(
            f"p is two-sided. {MARK} marks p < {ALPHA:g} after Holm's correction for the number of differences in "
            f"each table, in this one {len(corrected)}."
        )
    if len(results) > 1:
        told.append(f"Differences are from {first}, and only between scores of the same items.")
    if untested:
        told.append(
            "Where a model was fine-tuned with one seed only, nothing tells how far its runs spread: the difference "
            "has no p and no mark, and the intervals are of these runs, over items alone. Give both models several "
            "--seeds to compare them."
        )
    return "\n".join([markdown(columns, lines, names=2), "", " ".join(told)])


def _between(interval: Interval, sign: str) -> str:
    return f"{100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f}"


def notes(results: Sequence[Results]) -> str:
    """Returns what the means average, and where a model was evaluated differently from XTREME."""
    columns = _columns(results)
    told = ["Means over the languages below, in per cent."]
    if published_values(results, columns):
        told.append(
            "Rows marked as the paper's are Table 1 of Chen et al. 2022: means over all of XTREME's languages, "
            "zero-shot from English. They have values where the split and the languages below are XTREME's, and can be "
            "compared if the texts are."
        )
    found = [_headline(model, column, majority=False) for model in results for column in columns]
    if any(spread is not None and spread.deviation is not None for spread in found):
        told.append("The standard deviation over seeds is after ±.")
    lower = [column.title for column in columns if column.lower]
    told.append(f"Higher is better{', except for ' + ' and '.join(lower) if lower else ''}.")
    lines = [" ".join(told), ""] if columns else []
    for model in results:
        for task, result in model.tasks.items():
            lines.append(f"- {model.name}, {EVALUATIONS[task].title}: {'; '.join(_facts(task, result))}")
    return "\n".join(lines)


def _facts(task: str, result: TaskResult) -> list[str]:
    languages = list(dict.fromkeys(score.language for score in result.scores if not is_mean(score.language)))
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


def _columns(results: Sequence[Results]) -> list[Column]:
    """Returns the columns of the table of means: those in which a model has a score."""
    return [
        column for column in COLUMNS if any(_headline(model, column, majority=False) is not None for model in results)
    ]


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
