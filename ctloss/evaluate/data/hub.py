"""Labelled data from the Hugging Face hub, or from a local folder laid out like one of its data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...shared.text import DataError, nfc
from .labelled import (
    LabelledPair,
    Row,
    TaggedSentence,
    Task,
    check_alike,
    check_equal_lengths,
    check_label,
    check_sentences,
    without_language,
)

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"
# Names of google/xtreme's configurations that are not language codes.
_NAMES = """
    af=Afrikans ar=Arabic bg=Bulgarian de=German el=Greek en=English es=Spanish et=Estonian eu=Basque fa=Persian
    fi=Finnish fr=French he=Hebrew hi=Hindi hu=Hungarian id=Indonesian it=Italian ja=Japanese kk=Kazakh ko=Korean
    mr=Marathi nl=Dutch pt=Portuguese ru=Russian ta=Tamil te=Telugu th=Thai tl=Tagalog tr=Turkish ur=Urdu
    vi=Vietnamese yo=Yoruba zh=Chinese
"""
UDPOS_NAMES = dict(name.split("=") for name in _NAMES.split())
TOGETHER = "XNLI"
SPLITS = {"train": ("train",), "dev": ("validation", "dev"), "test": ("test",)}
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"))
WORDS = ("tokens", "words")
LABELS = {
    "xnli": ("label", "gold_label"),
    "pawsx": ("label", "gold_label"),
    "udpos": ("upos", "pos_tags", "tags"),
    "panx": ("ner_tags", "tags"),
}


def read_hub(name: str, task: Task, split: str, languages: Sequence[str] | None) -> dict[str, list[Row]]:
    """Reads a split of a task from a data set of the hub, see :func:`ctloss.evaluate.data.sources.read_split`.

    It knows the configurations of google/xtreme (``XNLI``, ``PAWS-X.de``, ``udpos.German``, ``PAN-X.de``), of data sets
    with one per language (``de``, as in facebook/xnli, google-research-datasets/paws-x and unimelb-nlp/wikiann) and of
    Universal Dependencies (``de_gsd``; several treebanks of a language are read in the order of their names).

    Raises:
        DataError: no such data set, configuration, split or column, or a row that does not fit the task.
    """
    from datasets import get_dataset_config_names

    try:
        there = sorted(get_dataset_config_names(name))
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(
            f"{HUB}{name}: expected a data set on the hub or a local folder, got {str(error).splitlines()[0]}; check "
            "the name and the connection"
        ) from error
    if task.name == "xnli" and TOGETHER in there:
        rows = _read_together(name, task, split, languages)
    else:
        rows = {}
        for language in _languages(task, there) if languages is None else languages:
            rows[language] = [
                row
                for config in _configs(name, task, language, there)
                for row in _rows(_load(name, config, split), f"{HUB}{name}, {config}, {split}", task)
            ]
    if not rows:
        raise DataError(
            f"{HUB}{name}: expected configurations named by languages, got {', '.join(there)}; give --languages"
        )
    if task.parallel:
        check_equal_lengths(rows, {language: f"{HUB}{name}, {split}, {language}" for language in rows})
    return rows


def _candidates(task: Task, language: str) -> tuple[str, ...]:
    ours = {
        "pawsx": f"PAWS-X.{language}",
        "panx": f"PAN-X.{language}",
        "udpos": f"udpos.{UDPOS_NAMES.get(language, language)}",
    }
    return (ours.get(task.name, language), language)


def _configs(name: str, task: Task, language: str, there: Sequence[str]) -> list[str]:
    for config in _candidates(task, language):
        if config in there:
            return [config]
    treebanks = [config for config in there if task.name == "udpos" and config.startswith(f"{language}_")]
    if not treebanks:
        raise DataError(
            f"{HUB}{name}: expected a configuration {' or '.join(dict.fromkeys(_candidates(task, language)))}, got "
            f"{', '.join(there)}; name another language or data set"
        )
    return treebanks


def _languages(task: Task, there: Sequence[str]) -> list[str]:
    codes = {code for config in there if (code := config.rpartition(".")[2].partition("_")[0]) and len(code) <= 3}
    if task.name == "udpos":
        codes |= {code for code, language in UDPOS_NAMES.items() if f"udpos.{language}" in there}
    fitting = []
    for code in sorted(codes):
        named = set(_candidates(task, code)) & set(there)
        if named or (task.name == "udpos" and any(config.startswith(f"{code}_") for config in there)):
            fitting.append(code)
    return fitting


def _load(name: str, config: str, split: str) -> Dataset:
    from datasets import get_dataset_split_names, load_dataset

    there = get_dataset_split_names(name, config)
    found = next((known for known in SPLITS.get(split, (split,)) if known in there), None)
    if found is None:
        raise DataError(
            f"{HUB}{name}, {config}: expected a split {' or '.join(SPLITS.get(split, (split,)))}, got "
            f"{', '.join(there)}; give files for that split, or another data set"
        )
    return load_dataset(name, config, split=found)


def _read_together(name: str, task: Task, split: str, languages: Sequence[str] | None) -> dict[str, list[Row]]:
    table, place = _load(name, TOGETHER, split), f"{HUB}{name}, {TOGETHER}, {split}"
    of_row = list(table[_column(place, table, ("language",))])
    rows = {}
    for language in sorted(set(of_row)) if languages is None else languages:
        chosen = [index for index, code in enumerate(of_row) if code == language]
        if not chosen:
            raise DataError(
                f"{place}: expected rows in {language}, got {', '.join(sorted(set(of_row)))}; name another language"
            )
        rows[language] = _rows(table.select(chosen), f"{place}, {language}", task)
    return rows


def _rows(table: Dataset, place: str, task: Task) -> list[Row]:
    label = _column(place, table, LABELS[task.name])
    name = _namer(table, label)
    if task.unit == "pair":
        pair = next((pair for pair in PAIRS if set(pair) <= set(table.column_names)), PAIRS[0])
        columns = [_column(place, table, (column,)) for column in pair]
    else:
        columns = [_column(place, table, WORDS)]
    rows: list[Row] = []
    bare: bool | None = None
    for number, item in enumerate(table, start=1):
        value = item[label]
        row: Row
        if task.unit == "pair":
            first, second = (nfc(item[column]).strip() for column in columns)
            check_sentences(f"{place}, row {number}", first, second)
            row = LabelledPair(first, second, None if value is None else name(value), f"{place}, row {number}")
            labels, nothing = [row.label], row.label is None
        else:
            words = [nfc(word) for word in item[columns[0]]]
            tags = [None] * len(words) if value is None else [name(number) for number in value]
            if len(words) != len(tags):
                raise DataError(f"{place}, row {number}: expected {len(words)} tags, got {len(tags)}")
            # Contractions in Universal Dependencies have no tag; their parts follow.
            kept = [(word, tag) for word, tag in zip(words, tags, strict=True) if tag != "_"]
            if not kept:
                continue
            labels, nothing = [tag for _, tag in kept], kept[0][1] is None
            row = TaggedSentence(
                tuple(word for word, _ in kept), None if nothing else tuple(str(tag) for _, tag in kept)
            )
        for one in labels:
            check_label(f"{place}, row {number}", one, task.labels)
        check_alike(f"{place}, row {number}", nothing, bare)
        bare = nothing
        rows.append(row)
    if not rows:
        raise DataError(f"{place}: expected labelled rows, got none")
    return rows if task.unit == "pair" else without_language(rows)


def _column(place: str, table: Dataset, names: Sequence[str]) -> str:
    found = next((name for name in names if name in table.column_names), None)
    if found is None:
        raise DataError(f"{place}: expected a column {' or '.join(names)}, got {', '.join(table.column_names)}")
    return found


def _namer(table: Dataset, label: str) -> Callable[[Any], str | None]:
    """Returns a function from a stored label, a number or a name, to its name; a number below 0 means no label."""
    feature = table.features[label]
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)

    def name(value: Any) -> str | None:
        if isinstance(value, str):
            return value or None
        if value < 0:
            return None
        return names[value] if names else str(value)

    return name
