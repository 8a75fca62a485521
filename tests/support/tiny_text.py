"""Small parallel text and a tokenizer for it, made in memory."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ctloss.train.text.corpus import ParallelSentence

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


def wordpiece_tokenizer(texts: Iterable[str], vocabulary: int = 400) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
