"""The embedded parallel corpus: six-way sentences (ar, en, es, fr, ru, zh) with gold word alignment.

Templates over a lexicon of inflected forms, both written for this package; standard library only. The sentences are
a fixed function of the package's data files: the same on every machine and in every run.

>>> from ctloss.train.text.embedded import sentences
>>> first = next(sentences("test"))
>>> sorted(first.texts)
['ar', 'en', 'es', 'fr', 'ru', 'zh']
>>> concept, spans = next(iter(first.words.items()))
>>> start, end = spans["en"]
>>> first.texts["en"][start:end].strip() == first.texts["en"][start:end]
True
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .generation import EmbeddedSentence, all_sentences
from .tables import LANGUAGES, concept_tables

__all__ = ["LANGUAGES", "SPLITS", "Concept", "EmbeddedSentence", "lexicon", "sentences"]

Split = Literal["train", "validation", "test"]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Concept:
    """A meaning with its semantic class (`kind`) and its dictionary form in every language (`citation`)."""

    id: str
    kind: str
    citation: dict[str, str]


def sentences(split: Split) -> Iterator[EmbeddedSentence]:
    """The sentences of one split, in a fixed shuffled order.

    Splits share no text in any language, and no text occurs twice within a split in any language: any other sentence
    is a true negative in contrastive training.

    Args:
        split: ``"train"`` (more than 20,000 sentences), ``"validation"`` or ``"test"`` (1,000 each).

    Raises:
        ValueError: `split` is none of these.
    """
    if split not in SPLITS:
        raise ValueError(f"expected split to be one of {SPLITS}, got {split!r}; choose one of them")
    return iter(all_sentences()[split])


def lexicon() -> dict[str, Concept]:
    """All content concepts by id, with semantic class and dictionary form in every language.

    >>> from ctloss.train.text.embedded import lexicon
    >>> lexicon()["teacher"].citation["fr"]
    'professeur'
    """
    return {
        entry.id: Concept(entry.id, entry.kind, {language: entry.citation(language) for language in LANGUAGES})
        for entry in concept_tables().values()
    }
