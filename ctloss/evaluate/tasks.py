"""The four tasks that a model is fine-tuned for: their names, labels and file names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)


@dataclass(frozen=True)
class Task:
    """A labelled task.

    Args:
        name: XTREME's name for it, which is also the folder of its data and of its submission.
        unit: what carries a label, a pair of sentences or a word.
        labels: all labels there are.
        parallel: whether item i is the same in every language, so that files of a split have equal lengths.
        folders: names its data go by.
    """

    name: str
    unit: Literal["pair", "word"]
    labels: tuple[str, ...]
    parallel: bool
    folders: tuple[str, ...]


XNLI = Task("xnli", "pair", ("contradiction", "entailment", "neutral"), True, ("xnli",))
PAWSX = Task("pawsx", "pair", ("0", "1"), True, ("pawsx",))
UDPOS = Task("udpos", "word", UPOS, False, ("udpos", "ud"))
PANX = Task("panx", "word", ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"), False, ("panx", "ner"))


@dataclass(frozen=True)
class LabelledPair:
    """Two sentences and the label of the pair, None in a test set without labels."""

    first: str
    second: str
    label: str | None


@dataclass(frozen=True)
class TaggedSentence:
    """The words of a sentence and a tag of each, None in a test set without tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None


Row = LabelledPair | TaggedSentence
