"""A sentence and its translation, and how texts are told apart."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

import numpy as np

Span = tuple[int, int]
WordPair = tuple[Span, Span]


@dataclass(frozen=True)
class ParallelSentence:
    """A sentence and its translation.

    Attributes:
        source, target: the sentence and its translation.
        source_language, target_language: codes of two or three letters, optionally with a region (``"en"``,
            ``"pt-br"``).
        words: pairs of character spans (start, end), end exclusive, of words that translate each other; None if the
            corpus says nothing about words.
    """

    source: str
    target: str
    source_language: str
    target_language: str
    words: tuple[WordPair, ...] | None = None


def text_key(text: str) -> str:
    """Returns the form in which equal texts are equal: NFKC, case folded, white space collapsed.

    Example:
        >>> text_key(" Le  CHIEN") == text_key("le chien")
        True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def stable_hash(*parts: str) -> int:
    """Returns a 64-bit hash of some texts that is the same in every process and on every machine.

    Example:
        >>> stable_hash("ab", "c") != stable_hash("a", "bc")
        True
    """
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mixed(values: np.ndarray) -> np.ndarray:
    """Returns splitmix64's finaliser of each value: uint64 to uint64, one to one, every bit depending on every bit.

    Steele, Lea and Flood 2014.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
