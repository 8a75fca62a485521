"""Small parallel text and a tokenizer for it, made in memory, and text with what real corpora hold besides letters."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st
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
# Each line a script or a kind: letters whose case folding changes their number, marks, joiners, controls, emoji.
_ODD_PIECES = [
    *("dog", "Dog", "DOG", "dogs", "hot", "L'eau", "x_ray", "2", "２"),
    *("Straße", "STRASSE", "İ", "ﬁ", "Σας", "σασ", "café", "cafe\u0301", "\u0345", "ᾳ"),
    *("дом", "Дом", "हिन्दी", "हि", "ह", "كِتَاب", "كتاب", "שָׁלוֹם", "می\u200cخواهم", "한국어", "க்ஷ"),
    *("狗", "上", "晚上", "ひらがな", "カー", "ก", "กี่", "กำ", "ລາວ", "ខ្មែរ", "မြန်မာ", "𠮷"),
    *(" ", " ", " ", ".", "。", "-", "’", "_", "\u0301", "\u200d", "\u200c", "\u200f", "\u0000", "\u2028", "\u00a0"),
    *("👩\u200d👩\u200d👧", "❤\ufe0f", "1\ufe0f\u20e3", "🇫🇷"),
]
ODD_TEXT = st.one_of(
    st.lists(st.sampled_from(_ODD_PIECES), max_size=10).map("".join),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
)


def parallel(pairs: Iterable[tuple[str, str]], source: str = "en", target: str = "fr") -> list[ParallelSentence]:
    return [ParallelSentence(a, b, source, target) for a, b in pairs]


def wordpiece_tokenizer(texts: Iterable[str], vocabulary: int = 400) -> PreTrainedTokenizerBase:
    return train_wordpiece(texts, vocabulary=vocabulary, lower_case=True, max_length=128)
