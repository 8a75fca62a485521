"""Scores of answers to questions: exact match and F1 of words, normalised as SQuAD's and MLQA's scripts do."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

# What MLQA's script takes out of an answer, by language; languages without an entry have no articles.
ARTICLES = {
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    # Wherever it stands, also within a word: so does the script.
    "ar": "ال",
}
MLQA_LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
# Characters that are words by themselves in MLQA's Chinese.
IDEOGRAPH = re.compile("([\u4e00-\u9fa5])")


class AnswerScore(NamedTuple):
    """How an answer compares with the gold ones; both are shares."""

    f1: float
    exact_match: float


def normalised(text: str, language: str | None = None) -> str:
    """Returns an answer in the form in which answers are compared: in lower case, without punctuation and articles.

    Args:
        language: None for SQuAD 1.1's rules (ASCII punctuation, English articles), by which XTREME scores XQuAD and
            TyDiQA-GoldP in all languages; a code for MLQA's (all of Unicode's punctuation, the language's articles,
            in Chinese each ideograph is a word).

    Raises:
        ValueError: MLQA has no rules for the language.

    Example:
        >>> normalised("The  Lion’s den."), normalised("Der Löwe!", "de"), normalised("在1920年", "zh")
        ('lion’s den', 'löwe', '在 1920 年')
    """
    if language is not None and language not in MLQA_LANGUAGES:
        raise ValueError(
            f"expected one of MLQA's languages {', '.join(MLQA_LANGUAGES)}, got {language!r}; leave it out"
        )
    text = "".join(one for one in text.lower() if not _is_punctuation(one, ascii_only=language is None))
    articles = ARTICLES.get(language or "en")
    if articles is not None:
        text = re.sub(articles, " ", text)
    if language == "zh":
        text = IDEOGRAPH.sub(r" \1 ", text)
    return " ".join(text.split())


def answer_score(predicted: str, gold: Sequence[str], language: str | None = None) -> AnswerScore:
    """Returns the best F1 and the best exact match of an answer over the gold ones.

    F1 is that of the words of both, with their numbers of occurrences, as Rajpurkar et al. 2016 (arXiv 1606.05250)
    define it; where no word is shared it is 0. ``language`` is that of :func:`normalised`.

    Example:
        >>> answer_score("the red house", ["a house", "red houses"])
        AnswerScore(f1=0.66..., exact_match=0.0)
    """
    ours = normalised(predicted, language)
    theirs = [normalised(text, language) for text in gold]
    return AnswerScore(max(_f1(ours, text) for text in theirs), float(ours in theirs))


def _f1(first: str, second: str) -> float:
    words, others = first.split(), second.split()
    shared = sum((Counter(words) & Counter(others)).values())
    return 2 * shared / (len(words) + len(others)) if shared else 0.0


def _is_punctuation(character: str, *, ascii_only: bool) -> bool:
    return character in string.punctuation or (not ascii_only and unicodedata.category(character).startswith("P"))
