"""Tokenizers: a WordPiece vocabulary trained on the corpus, or a Hugging Face encoder's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(
    texts: Iterable[str], *, vocabulary: int, lower_case: bool, max_length: int
) -> PreTrainedTokenizerBase:
    """Trains a BERT tokenizer whose WordPiece vocabulary fits the texts.

    Chinese characters are words of their own and accents are kept: in several of the languages they tell words apart.
    The same texts in the same order give the same vocabulary.

    Args:
        texts: the sentences of every language.
        vocabulary: number of wordpieces at most, special tokens included.
        lower_case: whether the tokenizer lower-cases its input.
        max_length: longest input that the tokenizer's own truncation allows.

    Returns:
        A fast BertTokenizer.

    Example:
        >>> tokenizer = train_wordpiece(["the cat", "le chat"], vocabulary=100, lower_case=True, max_length=16)
        >>> tokenizer.tokenize("The cat")
        ['the', 'cat']
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    distinct = list(dict.fromkeys(texts))
    continuations = sorted(
        {
            "##" + character
            for text in distinct
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
            for character in word[1:]
        }
    )
    # The trainer numbers continuation characters in the order of a randomly seeded hash table and breaks ties by
    # number; numbered in advance, as special tokens are, they leave it nothing to draw.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL_TOKENS, *continuations], show_progress=False
    )
    tokenizer.train_from_iterator(distinct, trainer)
    return BertTokenizer(
        vocab=tokenizer.get_vocab(), do_lower_case=lower_case, strip_accents=False, model_max_length=max_length
    )


def load_tokenizer(name: str, *, lower_case: bool) -> PreTrainedTokenizerBase:
    """Returns the fast tokenizer of a Hugging Face encoder, lower-casing first where asked.

    Lower-casing is put in front of the tokenizer's own normalisation, so that it is saved with the tokenizer and
    character offsets still refer to the text as given; accents are left to the tokenizer.

    Raises:
        ValueError: the encoder has no fast tokenizer, or one without a mask token.
    """
    from tokenizers import normalizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"expected one with a fast tokenizer (word spans come from its offsets), got {name!r}, "
            "whose tokenizer is not; choose another encoder"
        )
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise ValueError(
            f"expected a tokenizer with padding and mask tokens, got {name!r}; choose a masked language model"
        )
    if lower_case:
        backend = tokenizer.backend_tokenizer
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        # The encoder's own tokenizer class would rebuild its normaliser on loading and forget this one.
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=tokenizer.model_max_length,
            model_input_names=tokenizer.model_input_names,
            **tokenizer.special_tokens_map,
        )
    return tokenizer


def definition(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns what a fast tokenizer makes of a sentence, as text.

    How the last sentences were cut and padded, which a tokenizer keeps and is saved with, is left out of it.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return str(plain.to_str())
