"""Where the data of each evaluation lie, and digests that tell data and models apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Protocol

from ...shared.files import digest_of_files
from ...shared.languages import is_language
from ...shared.text import DataError, home_path, text_files
from .hub import HUB, read_hub
from .labelled import MLQA, PANX, PAWSX, TYDIQA, UDPOS, XNLI, XQUAD, Row, Task, find_files, read_folder
from .multiway import FLORES, NTREX, Layout, files_of_layout
from .questions import expected_files


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that the command offers; :mod:`ctloss.evaluate.suite` says which function runs it.

    Args:
        title: what tables call it.
        places: where its data lie in a folder of several tasks' data: folders, or for ``pairs`` files' common name.
        patterns: names of its files; for a fine-tuned task they follow from ``task``.
        task: what is fine-tuned; None where an encoder is used as it is.
        submission: XTREME's name for it; None if XTREME does not have it.
        layout: how its files are named, of sentences in many languages.
    """

    title: str
    places: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    task: Task | None = None
    submission: str | None = None
    layout: Layout | None = None


EVALUATIONS = {
    "xnli": Evaluation("XNLI", XNLI.folders, task=XNLI, submission="xnli"),
    "pawsx": Evaluation("PAWS-X", PAWSX.folders, task=PAWSX, submission="pawsx"),
    "pos": Evaluation("POS", (*UDPOS.folders, "ud/pud"), task=UDPOS, submission="udpos"),
    "ner": Evaluation("NER", PANX.folders, task=PANX, submission="panx"),
    "xquad": Evaluation("XQuAD", XQUAD.folders, task=XQUAD, submission="xquad"),
    "mlqa": Evaluation("MLQA", MLQA.folders, task=MLQA, submission="mlqa"),
    "tydiqa": Evaluation("TyDiQA-GoldP", TYDIQA.folders, task=TYDIQA, submission="tydiqa"),
    "bucc": Evaluation("BUCC", ("bucc2018", "bucc"), ("*-en.*",), submission="bucc2018"),
    "tatoeba": Evaluation("Tatoeba", ("tatoeba",), ("*-eng.*", "*-en.*", "test-*.tsv"), submission="tatoeba"),
    "pairs": Evaluation("line-aligned pairs", ("multi30k/test_2016_flickr",)),
    "flores": Evaluation("FLORES-200", ("flores", "flores200", "flores200_dataset"), layout=FLORES),
    "ntrex": Evaluation("NTREX-128", ("ntrex", "NTREX"), layout=NTREX),
    "words": Evaluation("word translation", ("lexicon",), ("*.txt",)),
    "align": Evaluation("word alignment", ("align",), ("*.txt", "*.gold")),
}


class Splits(Protocol):
    """What a fine-tuning reads: see :class:`ctloss.evaluate.FinetuneOptions`."""

    @property
    def train(self) -> tuple[str | Path, ...]: ...
    @property
    def dev(self) -> tuple[str | Path, ...]: ...
    @property
    def test_split(self) -> str: ...


def find_data(given: Sequence[str], splits: Mapping[str, Splits | None]) -> dict[str, str]:
    """Returns where the data of each evaluation lie.

    Args:
        given: folders of several tasks' data, searched in this order, and ``TASK=PATH`` or ``TASK=hub:NAME``, which
            take precedence. ``~`` is the home folder.
        splits: by evaluation to be run, what its fine-tuning reads, None where there is none.

    Raises:
        DataError: an evaluation has none; names all places that were searched.
        ValueError: a name is not an evaluation's, or a hub data set is given for an evaluation that only reads files.
    """
    named, folders = {}, []
    for item in given:
        name, equals, value = item.partition("=")
        if equals and name in EVALUATIONS:
            named[name] = value if value.startswith(HUB) else str(home_path(value))
        elif equals and not home_path(item).exists():
            raise ValueError(f"expected TASK=PATH with a task of {', '.join(EVALUATIONS)}, got {item!r}")
        else:
            folders.append(home_path(item))
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of data, got no such folder; check --data")
    found = {}
    for task, chosen in splits.items():
        evaluation = EVALUATIONS[task]
        if task in named:
            if named[task].startswith(HUB) and (evaluation.task is None or evaluation.task.unit == "question"):
                raise ValueError(
                    f"expected files for {task}, got {named[task]!r}; only xnli, pawsx, pos and ner read the hub"
                )
            candidates = [named[task]]
        else:
            candidates = [str(folder / place) for folder in folders for place in evaluation.places]
            if task != "pairs":
                candidates += [str(folder) for folder in folders]
        for place in candidates:
            if place.startswith(HUB) or _files_of(evaluation, place, chosen):
                found[task] = place
                break
        else:
            raise DataError(
                f"{task}: expected {_wanted(evaluation, chosen)}, got none in {', '.join(candidates) or 'no folder'}; "
                f"give --data FOLDER that holds them, or {task}=PATH"
            )
    return found


def read_split(
    data: str | Path, task: Task, split: str, languages: Sequence[str] | None = None
) -> dict[str, list[Row]]:
    """Reads a split of a labelled task in several languages.

    Args:
        data: a folder, or ``"hub:NAME"`` for a data set of the Hugging Face hub (see :mod:`ctloss.evaluate.data.hub`).
            The folder, or a folder in it named after the task, holds XTREME's files SPLIT-LANGUAGE.tsv, or Universal
            Dependencies' files LANGUAGE_TREEBANK-ud-SPLIT ending in tsv or conllu. Several treebanks of a language
            are read one after another, in the order of their names.
        split: ``"train"``, ``"dev"`` or ``"test"``.
        languages: codes as in the files' names; None for all that are there.

    Raises:
        DataError: no file for a language, a malformed line, an unknown label, labels on some lines only, or, where
            item i is the same in all languages, a file with fewer items than another.
    """
    if str(data).startswith(HUB) and task.unit == "question":
        raise DataError(f"{data}: expected a folder of {task.name}, got a data set of the hub; fetch its JSON files")
    if str(data).startswith(HUB):
        return read_hub(str(data).removeprefix(HUB), task, split, languages)
    return read_folder(Path(data), task, split, languages)


def digest_of_data(
    evaluation: Evaluation, data: str, splits: Splits | None, languages: Sequence[str] | None = None
) -> str:
    """Returns a digest of the files that an evaluation may read; a hub data set is known by its name.

    ``languages`` are those asked for, if any: endings that only they say are languages.

    Raises:
        DataError: a file given by name is missing.
    """
    try:
        if not data.startswith(HUB):
            return digest_of_files(_files_of(evaluation, data, splits, languages or ()))
        return digest_of_files([Path(file) for file in (*splits.train, *splits.dev)] if splits else [], start=data)
    except OSError as error:
        raise DataError(f"{error.filename}: expected a readable file, got {error.strerror}; check the path") from error


def digest_of_model(model: str) -> str:
    """Returns what identifies a model: a digest of its folder's configuration, tokenizer and weights, or its name."""
    patterns = ("config.json", "tokenizer*", "vocab*", "*.model", "*.safetensors")
    files = sorted({path for pattern in patterns for path in Path(model).glob(pattern) if path.is_file()})
    return digest_of_files(files) if files else model


def _files_of(evaluation: Evaluation, data: str, splits: Splits | None, languages: Sequence[str] = ()) -> list[Path]:
    """Returns all files that an evaluation may read, in all languages."""
    place = Path(data)
    if (layout := evaluation.layout) is not None:
        found = {path for split in layout.splits or ("",) for path in files_of_layout(place, layout, split).values()}
        return sorted(found)
    if evaluation.task is not None and splits is not None:
        tests = find_files(place, evaluation.task, splits.test_split)
        files = [path for paths in tests.values() for path in paths]
        if files:
            for split, given in (("train", splits.train), ("dev", splits.dev)):
                files += map(Path, given) if given else find_files(place, evaluation.task, split).get("en", [])
        return files
    if evaluation.patterns:
        there = {path for pattern in evaluation.patterns for path in place.glob(pattern) if path.is_file()}
        return sorted(there.union(*(text_files(place, pattern).values() for pattern in evaluation.patterns)))
    aligned = text_files(place.parent, f"{escape(place.name)}.*")
    codes = {name: name.removeprefix(f"{place.name}.") for name in aligned}
    return [path for name, path in aligned.items() if is_language(codes[name]) or codes[name] in languages]


def _wanted(evaluation: Evaluation, splits: Splits | None) -> str:
    if evaluation.task is not None and evaluation.task.unit == "question" and splits is not None:
        return f"files {expected_files(evaluation.task.name, splits.test_split)}"
    if evaluation.layout is not None:
        return f"{evaluation.layout.name} as it was unpacked, with files such as {evaluation.layout.example()}"
    if splits is not None:
        return f"files {splits.test_split}-LANGUAGE.tsv"
    if evaluation.patterns:
        return f"files {', '.join(evaluation.patterns)}"
    return "files PREFIX.LANGUAGE, such as test.de and test.en for the path test"
