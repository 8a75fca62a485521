"""The embedded parallel corpus: six-way sentences (ar, en, es, fr, ru, zh) with gold word alignment.

Templates filled from tables of inflected forms, both written for this package; standard library only. The sentences
depend only on the package's data files: they are the same on every machine and in every run.

>>> from ctloss.train.text.embedded import sentences
>>> first = next(sentences("test"))
>>> sorted(first.texts)
['ar', 'en', 'es', 'fr', 'ru', 'zh']
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .generation import EmbeddedSentence, all_sentences
from .tables import LANGUAGES

__all__ = ["LANGUAGES", "SPLITS", "EmbeddedSentence", "Split", "sentences"]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def sentences(split: Split) -> Iterator[EmbeddedSentence]:
    """The sentences of one split, in a fixed shuffled order.

    No text occurs twice in any language, neither within a split nor across them, so every other sentence is a true
    negative in contrastive training.

    There are more than 20,000 sentences to train on, and 1,000 each for validation and test.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"expected split to be one of {SPLITS}, got {split!r}; choose one of them")
    return iter(all_sentences()[split])
