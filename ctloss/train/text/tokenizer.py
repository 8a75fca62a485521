"""Tokenizers: a WordPiece vocabulary trained on the corpus, or a Hugging Face encoder's own."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ...shared.models import load_tokenizer
from .sentences import stable_hash
from .words import UNSPACED_CHARACTERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# WordPiece makes one [UNK] of a word of more characters. For the vocabulary trained here, words are cut to this length;
# a given one takes words of so many, such as whole sentences in scripts that it was not taught to split.
LONGEST_TRAINED, LONGEST_GIVEN = 100, 1000
# Texts remembered so that one given again counts once, and words that the trainer is shown: both bound memory and time.
REMEMBERED_TEXTS, SHOWN_WORDS = 1 << 20, 1 << 26
# Parts of texts between spaces that are counted before they are split into words.
REMEMBERED_PARTS = 1 << 18


def train_wordpiece(
    texts: Iterable[str], *, vocabulary: int, lower_case: bool, max_length: int
) -> PreTrainedTokenizerBase:
    """Trains a BERT tokenizer whose WordPiece vocabulary fits the texts.

    Each character of a script written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) is a word with its marks,
    runs of other characters are cut every 100, and accents are kept because they distinguish words in several of
    the languages. At most three quarters of the vocabulary are single characters: the rarest beyond are unknown.

    The texts are read once; what is kept in memory are their distinct words. Of the first million different texts, one
    given again counts once. The same texts in the same order give the same vocabulary.

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
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case, strip_accents=False)
    tokenizer.pre_tokenizer = _splitting_scripts()
    words = _count_words(texts, tokenizer)
    alphabet = _alphabet(words, 3 * vocabulary // 4 - len(SPECIAL_TOKENS))
    words = Counter({word: count for word, count in words.items() if alphabet.issuperset(word)})
    continuations = sorted({"##" + character for word in words for character in word[1:]})
    # The trainer numbers continuation characters in the order of a randomly seeded hash table and breaks ties by
    # number. Listed in advance, like special tokens, they have fixed numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL_TOKENS, *continuations], show_progress=False
    )
    counted = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    counted.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    counted.train_from_iterator(_shown(words), trainer)

    numbers = counted.get_vocab()
    tokenizer.model = models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=LONGEST_TRAINED)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, numbers[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL_TOKENS, strict=True)}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return _as_it_is(tokenizer, model_max_length=max_length, model_input_names=inputs, **special)


def read_tokenizer(name: str, *, lower_case: bool) -> PreTrainedTokenizerBase:
    """Returns the fast tokenizer of a Hugging Face encoder, on request lower-casing its input.

    Lower-casing comes before the tokenizer's own normalisation, and character offsets still refer to the original text.
    Accents are left to the tokenizer. A WordPiece tokenizer, which makes one [UNK] of a word of more than 100
    characters, takes words of 1,000: Thai has no spaces, so a sentence is one word to BERT. Both are saved with it.

    Raises:
        ValueError: there is no tokenizer, or it is not fast, or has no vocabulary, padding token or mask token.
    """
    from tokenizers import models, normalizers

    tokenizer = load_tokenizer(name, needs=("pad", "mask"))
    backend = tokenizer.backend_tokenizer
    wordpiece = isinstance(backend.model, models.WordPiece)
    if not lower_case and not wordpiece:
        return tokenizer
    if wordpiece:
        backend.model.max_input_chars_per_word = LONGEST_GIVEN
    if lower_case:
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return _as_it_is(
        backend,
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


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of a fast tokenizer as it is saved: its definition and what stands beside that."""
    beside = (
        sorted(tokenizer.special_tokens_map.items()),
        list(tokenizer.model_input_names),
        tokenizer.model_max_length,
        tokenizer.padding_side,
        tokenizer.truncation_side,
    )
    return hashlib.blake2b((definition(tokenizer) + repr(beside)).encode(), digest_size=16).hexdigest()


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Tells whether a tokenizer's wordpieces of a text are those of its parts between spaces, each taken alone.

    It is so for BERT's, with or without lower-casing, and for those trained here.
    """
    from tokenizers import pre_tokenizers

    document = json.loads(tokenizer.to_str())
    known = (pre_tokenizers.BertPreTokenizer(), _splitting_scripts())
    normalizer = document["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    return (
        document["model"]["type"] == "WordPiece"
        and any(tokenizer.pre_tokenizer.__getstate__() == one.__getstate__() for one in known)
        and all(step["type"] in ("BertNormalizer", "Lowercase") for step in steps)
        and not any(token["lstrip"] or token["rstrip"] or " " in token["content"] for token in document["added_tokens"])
        and document["truncation"] is None
        and document["padding"] is None
    )


def _splitting_scripts() -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    # One pattern for both, as each pass over a text costs: a character with its marks, or a run too long for a word.
    single, run = rf"[{UNSPACED_CHARACTERS}]\p{{M}}*", rf"[^\s{UNSPACED_CHARACTERS}]{{{LONGEST_TRAINED}}}"
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(f"{single}|{run}"), "isolated"), pre_tokenizers.BertPreTokenizer()]
    )


def _as_it_is(backend: Tokenizer, **settings: object) -> PreTrainedTokenizerBase:
    """Returns a tokenizer saved and read as it is: an encoder's own class would rebuild its parts on reading."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def _count_words(texts: Iterable[str], tokenizer: Tokenizer) -> Counter[str]:
    words: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    seen: set[int] = set()

    def split() -> None:
        for part, count in parts.items():
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(part)):
                words[word] += count
        parts.clear()

    for text in texts:
        key = stable_hash(text)
        if key not in seen:
            if len(seen) < REMEMBERED_TEXTS:
                seen.add(key)
            # Spaces part words, and most parts come again: each is split once.
            parts.update(text.split(" "))
            if len(parts) > REMEMBERED_PARTS:
                split()
    split()
    return words


def _alphabet(words: Counter[str], most: int) -> set[str]:
    """Returns the most frequent characters that take at most ``most`` wordpieces as first and later ones of words."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    later = {character for word in words for character in word[1:]}
    alphabet: set[str] = set()
    for character in sorted(counts, key=lambda character: (-counts[character], character)):
        most -= 2 if character in later else 1
        if most < 0:
            break
        alphabet.add(character)
    return alphabet


def _shown(words: Counter[str]) -> Iterator[str]:
    """Yields each word as often as it was counted, less often in proportion if that were too many in all."""
    scale = -(-words.total() // SHOWN_WORDS) or 1
    for word, count in words.items():
        shown = -(-count // scale)
        for start in range(0, shown, 1000):
            yield " ".join([word] * min(1000, shown - start))
