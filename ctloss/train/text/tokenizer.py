"""Tokenizers: a WordPiece vocabulary trained on the corpus, or a Hugging Face encoder's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...shared.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(
    texts: Iterable[str], *, vocabulary: int, lower_case: bool, max_length: int
) -> PreTrainedTokenizerBase:
    """Trains a BERT tokenizer whose WordPiece vocabulary fits the texts.

    Each Chinese character is a word, and accents are kept because they distinguish words in several of the languages.
    The same texts in the same order give the same vocabulary.

    Args:
        texts: the sentences of every language.
        vocabulary: at most this many wordpieces, including special tokens.
        lower_case: whether the tokenizer lower-cases its input.
        max_length: length to which the tokenizer truncates, if it does.

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
    # number. Listed in advance, like special tokens, they have fixed numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL_TOKENS, *continuations], show_progress=False
    )
    tokenizer.train_from_iterator(distinct, trainer)
    return BertTokenizer(
        vocab=tokenizer.get_vocab(), do_lower_case=lower_case, strip_accents=False, model_max_length=max_length
    )


def read_tokenizer(name: str, *, lower_case: bool) -> PreTrainedTokenizerBase:
    """Returns the fast tokenizer of a Hugging Face encoder, on request lower-casing its input.

    Lower-casing comes before the tokenizer's own normalisation: it is saved with the tokenizer, and character offsets
    still refer to the original text. Accents are left to the tokenizer.

    Raises:
        ValueError: there is no tokenizer, or it is not fast, or has no vocabulary, padding token or mask token.
    """
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_tokenizer(name, needs=("pad", "mask"))
    if not lower_case:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    # The encoder's own tokenizer class would rebuild its normaliser on loading and lose this one.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def definition(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the definition of a fast tokenizer as text, without truncation and padding.

    A tokenizer stores, and is saved with, how it truncated and padded its last input; that is not part of what it is.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return str(plain.to_str())
