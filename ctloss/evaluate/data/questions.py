"""Questions that a part of a text answers (XQuAD, MLQA, TyDiQA-GoldP): their files, SQuAD 1.1's JSON, and rows."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...shared.text import DataError, is_unicode, seekable, stripped, text_files

# Where XTREME's download has the files of a split: patterns of a path below the folder of a task's data; the star is
# the language. A release's own folder, given by itself, is searched too.
LAYOUTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("xquad", "test"): ("xquad.*.json",),
    ("mlqa", "test"): ("MLQA_V1/test/test-context-*-question-*.json", "test-context-*-question-*.json"),
    ("mlqa", "dev"): ("MLQA_V1/dev/dev-context-*-question-*.json", "dev-context-*-question-*.json"),
    ("tydiqa", "test"): (
        *("tydiqa-goldp-v1.1-dev/tydiqa.goldp.*.dev.json", "tydiqa-goldp-v1.1-dev/tydiqa.*.dev.json"),
        *("tydiqa.goldp.*.dev.json", "tydiqa.*.dev.json"),
    ),
}
# The English training data. XQuAD and MLQA have none of their own: XTREME trains on SQuAD 1.1, which lies beside them.
TRAIN: dict[str, tuple[str, ...]] = {
    "xquad": ("squad/train-v1.1.json", "../squad/train-v1.1.json"),
    "mlqa": ("squad/train-v1.1.json", "../squad/train-v1.1.json"),
    "tydiqa": tuple(
        f"{folder}{name}"
        for folder in ("tydiqa-goldp-v1.1-train/", "", "../tydiqa-goldp-v1.1-train/")
        for name in ("tydiqa.goldp.en.train.json", "tydiqa.en.train.json")
    ),
}


@dataclass(frozen=True)
class Question:
    """A question about a text, and the gold answers: each a part of the text, and the character that it starts at.

    Without gold answers, as in XTREME's test files, ``answers`` is empty; ``place`` is the file and the path within.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    # No part of what the question is: runs are told apart by the representations of their rows.
    place: str = field(default="", repr=False, compare=False)


def find_questions(data: Path, task: str, split: str, folders: Sequence[str]) -> dict[str, list[Path]]:
    """Returns a split's files by language, from the first folder with any: one of ``folders`` in ``data``, or ``data``.

    Of ``"train"`` only the English file is looked for. A file of MLQA counts if its two languages are the same.
    """
    for folder in (*(data / name for name in folders), data):
        if split == "train":
            for path in (folder / name for name in TRAIN[task]):
                if found := text_files(path.parent, path.name):
                    return {"en": [*found.values()]}
        for pattern in map(Path, LAYOUTS.get((task, split), ())):
            form = re.compile(re.escape(pattern.name).replace(r"\*", r"([\w-]+)", 1).replace(r"\*", r"\1", 1))
            files = {
                match[1]: [path]
                for name, path in text_files(folder / pattern.parent, pattern.name).items()
                if (match := form.fullmatch(name))
            }
            if files:
                return files
    return {}


def expected_files(task: str, split: str, language: str | None = None) -> str:
    """Returns the names of the files that hold a split of a task, as an error says them."""
    patterns = TRAIN[task][:1] if split == "train" else LAYOUTS.get((task, split), ())[:1]
    names = [pattern.replace("*", language or "LANGUAGE") for pattern in patterns]
    return names[0] if names else f"a split {split}, which {task} does not have"


def read_squad(path: Path) -> list[Question]:
    """Reads the questions of a file in SQuAD 1.1's JSON, plain or compressed.

    The text is taken as it stands, without Unicode's normal form, since ``answer_start`` counts its characters (code
    points). A file in which no question has an answer, or only empty ones, as XTREME's test files, is unlabelled;
    otherwise questions without one are left out, and a warning counts them.

    Raises:
        DataError: it is not such JSON, a question or its text is empty, or an answer does not stand where
            ``answer_start`` says.
    """
    rows = [
        _question(place, context, item, article_place)
        for article_place, context, items in _paragraphs(path)
        for place, item in items
    ]
    if not rows:
        raise DataError(f"{path}: expected questions, got none; fetch the file again")
    answered = [row for row in rows if row.answers]
    if answered and len(answered) < len(rows):
        first = next(row for row in rows if not row.answers)
        warnings.warn(
            f"{first.place}: {len(rows) - len(answered)} of the file's {len(rows)} questions, of which this is the "
            "first, have no answer in the text and are left out",
            stacklevel=2,
        )
        return answered
    return rows


def check_ids(rows: Sequence[Question]) -> None:
    """Raises DataError for a question whose id another one has: predictions go by it."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise DataError(
                f"{row.place}: expected an id of its own, got {row.id!r} as at {seen[row.id]}; give each question one"
            )
        seen[row.id] = row.place


def _paragraphs(path: Path) -> Iterator[tuple[str, str, Iterator[tuple[str, Any]]]]:
    """Yields the place, the text and the questions with their places of every paragraph."""
    top = _entry(str(path), _parsed(path), dict, "an object with data")
    for number, article in enumerate(_get(str(path), top, "data", list)):
        place = f"{path}, data[{number}]"
        for index, paragraph in enumerate(_get(place, article, "paragraphs", list)):
            below = f"{place}.paragraphs[{index}]"
            items = _get(below, paragraph, "qas", list)
            yield (
                below,
                _get(below, paragraph, "context", str),
                ((f"{below}.qas[{at}]", item) for at, item in enumerate(items)),
            )


def _parsed(path: Path) -> Any:
    with seekable(path) as file:
        raw = file.read()
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8, got byte 0x{raw[error.start]:02x}; convert the file to UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: expected JSON in the form of SQuAD 1.1, got something else at column "
            f"{error.colno} ({error.msg}); fetch the file again"
        ) from error
    except ValueError as error:
        # Python reads no number of more than some thousand digits; the error does not say where it stands.
        limit = sys.get_int_max_str_digits()
        number = re.search(rb"\d{%d,}" % (limit + 1), raw)
        line = raw.count(b"\n", 0, number.start()) + 1 if number else 1
        raise DataError(
            f"{path}, line {line}: expected numbers of at most {limit} digits, got a longer one; fetch the file again"
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{path}: expected JSON in the form of SQuAD 1.1, got lists within lists; fetch it again"
        ) from error


def _question(place: str, context: str, item: Any, paragraph: str) -> Question:
    # SQuAD's own ids are texts; others write numbers.
    identifier = _entry(place, item, dict, "an object with id, question and answers").get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)) or identifier == "":
        raise DataError(f"{place}: expected an id, got {identifier!r}; give the question one")
    _check_unicode(f"{place}, id", str(identifier))
    question = _get(place, item, "question", str)
    place = f"{place} (id {str(identifier)[:60]!r})"
    for text, what, where in ((question, "a question", place), (context, "a context", paragraph)):
        if not stripped(text):
            raise DataError(f"{where}: expected {what}, got {text[:40]!r}, in which nothing can be seen; give its text")
    answers = []
    if not item.get("is_impossible"):
        for number, answer in enumerate(_entry(place, item.get("answers") or [], list, "a list of answers")):
            at = f"{place}, answers[{number}]"
            text, start = _get(at, answer, "text", str), _get(at, answer, "answer_start", int)
            if text.strip():
                _check_start(at, context, text, start)
                answers.append((text, start))
    return Question(str(identifier), question, context, tuple(answers), place)


def _check_start(place: str, context: str, text: str, start: int) -> None:
    if start < 0 or not context.startswith(text, start):
        there = context.find(text)
        hint = f"it stands at {there}" if there >= 0 else "it stands nowhere in the context"
        raise DataError(
            f"{place}: expected the answer {text[:40]!r} at character {start} of the context, got "
            f"{context[max(start, 0) : max(start, 0) + len(text)][:40]!r}; {hint}: correct answer_start, which counts "
            "code points from 0"
        )


def _get(place: str, item: Any, name: str, kind: type) -> Any:
    names = {list: "a list", str: "a text", int: "a whole number"}
    if not isinstance(item, dict) or name not in item:
        got = f"an object without it ({', '.join(map(str, item))})" if isinstance(item, dict) else type(item).__name__
        raise DataError(f"{place}: expected an object with {name}, got {got}; the file must be SQuAD 1.1's JSON")
    value = _entry(f"{place}, {name}", item[name], kind, names[kind])
    if kind is str:
        _check_unicode(f"{place}, {name}", value)
    return value


def _check_unicode(place: str, text: str) -> None:
    if not is_unicode(text):
        at = next(number for number, one in enumerate(text) if not is_unicode(one))
        raise DataError(
            f"{place}: expected Unicode text, got half of a surrogate pair ({text[at]!a}) at character {at}; correct it"
        )


def _entry(place: str, value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{place}: expected {name}, got {str(value)[:40]!r}; the file must be SQuAD 1.1's JSON")
    return value
