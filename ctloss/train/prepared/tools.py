"""The third pass: the tokenizer, and where word pairs come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...shared.models import check_inputs, read_config
from ...shared.text import DataError
from ..recipe import Data, EncoderChoice
from ..text.alignment import GoldWords
from ..text.cooccurrence import CooccurrenceAligner
from ..text.finder import WordSource
from ..text.lexicon import read_lexicon
from ..text.mutual import MutualAligner
from ..text.sentences import ParallelSentence
from ..text.tokenizer import read_tokenizer, train_wordpiece
from .mapping import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batches = Callable[[], Iterator[Sequence[ParallelSentence]]]


def make_tokenizer(data: Data, encoder: EncoderChoice, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a given encoder, or for a small one a tokenizer trained on the texts.

    Raises:
        DataError: the encoder or its tokenizer cannot be used, or its positions are fewer than ``max_length``.
    """
    if encoder.encoder == "small":
        return train_wordpiece(
            texts, vocabulary=encoder.vocabulary, lower_case=encoder.lower_case, max_length=data.max_length
        )
    try:
        config = read_config(encoder.encoder)
        tokenizer = read_tokenizer(encoder.encoder, lower_case=encoder.lower_case)
        check_inputs(encoder.encoder, config, tokenizer, data.max_length)
    except ValueError as error:
        raise DataError(f"encoder: {error}") from error
    return tokenizer


def word_source(
    data: Data,
    batches: Batches,
    pairs: int,
    *,
    languages: Sequence[tuple[str, str]],
    has_words: bool,
    folder: Path,
) -> WordSource:
    """Returns where word pairs come from.

    Args:
        data: names lexicons or an encoder that aligns; without either, words are aligned by co-occurrence.
        batches: returns the training pairs from the first on, whenever it is called.
        pairs: how many these are.
        languages: the language pairs of the corpus.
        has_words: whether the word pairs come with the text.
        folder: for tables of the word source.

    Raises:
        DataError: a lexicon cannot be used.
    """
    if has_words:
        return GoldWords()
    if data.lexicon:
        return read_lexicon(data.lexicon, languages)
    if data.align:
        return MutualAligner(data.align)
    place = folder / "cooccurrence"
    try:
        return CooccurrenceAligner.open(place)
    except DataError:
        # Not counted yet, or not to the end.
        with progress("words by co-occurrence", pairs) as move:
            return CooccurrenceAligner.count(batches, place, stop_words=data.stop_words, progress=move)


def runs_here(words: WordSource) -> bool:
    """Tells whether a word source has to stay in this process: an encoder may be on a GPU, which does not fork."""
    return isinstance(words, MutualAligner)
