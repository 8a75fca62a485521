"""Small parallel text and a tokenizer for it, made in memory."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from ctloss.train.text.sentences import ParallelSentence
from ctloss.train.text.tokenizer import train_wordpiece

ENGLISH_FRENCH = [
    ("The red house", "La maison rouge"),
    ("A black dog sleeps.", "Un chien noir dort."),
    ("The dog sees a dog", "Le chien voit un chien"),
    ("Our teacher reads the letter", "Notre professeur lit la lettre"),
    ("The garden and the river", "Le jardin et la rivière"),
]
LEXICON = [
    ("house", "maison"),
    ("red", "rouge"),
    ("dog", "chien"),
    ("black", "noir"),
    ("teacher", "professeur"),
    ("letter", "lettre"),
    ("garden", "jardin"),
    ("river", "rivière"),
    ("the", "la"),
]


def parallel(pairs: Iterable[tuple[str, str]], source: str = "en", target: str = "fr") -> list[ParallelSentence]:
    return [ParallelSentence(a, b, source, target) for a, b in pairs]


def wordpiece_tokenizer(texts: Iterable[str], vocabulary: int = 400) -> PreTrainedTokenizerBase:
    return train_wordpiece(texts, vocabulary=vocabulary, lower_case=True, max_length=128)
