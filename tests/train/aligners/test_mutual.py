"""Word pairs by an encoder are those of a transcription in loops, however sentences are batched and cut."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ctloss.shared.options import OptionError
from ctloss.train.text import mutual
from ctloss.train.text.mutual import MutualAligner
from ctloss.train.text.sentences import ParallelSentence, WordPair
from ctloss.train.text.words import word_spans
from support.tiny_text import ENGLISH_FRENCH, parallel, wordpiece_tokenizer

pytestmark = pytest.mark.numeric

LAYERS, POSITIONS = 4, 40


def save_encoder(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A vocabulary so small that most words are several wordpieces.
    tokenizer = wordpiece_tokenizer([text for pair in ENGLISH_FRENCH for text in pair], vocabulary=60)
    return save_encoder(tmp_path_factory.mktemp("encoder"), tokenizer)


def by_loops(folder: Path, sentence: ParallelSentence, layer: int) -> list[WordPair]:
    """SimAlign's Argmax at word level, for one sentence that is not cut."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    sides = []
    for text, language in (
        (sentence.source, sentence.source_language),
        (sentence.target, sentence.target_language),
    ):
        coded = tokenizer(text, return_offsets_mapping=True)
        with torch.no_grad():
            states = model(torch.tensor([coded["input_ids"]]), output_hidden_states=True).hidden_states[layer][0]
        words = []
        for start, end in word_spans(text, language):
            pieces = [k for k, (s, e) in enumerate(coded["offset_mapping"]) if s < end and e > start]
            words.append(((start, end), sum(states[k] for k in pieces) / len(pieces)))
        sides.append(words)

    def nearest(vector: torch.Tensor, others: list[torch.Tensor]) -> int:
        return int(torch.stack([torch.cosine_similarity(vector, other, dim=0) for other in others]).argmax())

    first, second = ([vector for _, vector in side] for side in sides)
    pairs = []
    for i, vector in enumerate(first):
        j = nearest(vector, second)
        if nearest(second[j], first) == i:
            pairs.append((sides[0][i][0], sides[1][j][0]))
    return pairs


@pytest.mark.parametrize("layer", [0, 2, LAYERS])
def test_pairs_are_those_of_loops(encoder: Path, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = parallel(ENGLISH_FRENCH)
    expected = [by_loops(encoder, sentence, layer) for sentence in corpus]
    assert sum(map(len, expected)) > len(corpus)
    assert MutualAligner(encoder, layer=layer, device="cpu").word_pairs(corpus) == expected
    monkeypatch.setattr(mutual, "TOKENS", 1)
    assert MutualAligner(encoder, layer=layer, device="cpu").word_pairs(corpus) == expected


def test_two_thirds_of_the_layers_are_the_default(encoder: Path) -> None:
    assert MutualAligner(encoder).fingerprint() == MutualAligner(encoder, layer=3).fingerprint()
    assert MutualAligner(encoder).fingerprint() != MutualAligner(encoder, layer=2).fingerprint()


def test_sentence_without_words_has_no_pairs(encoder: Path) -> None:
    aligner = MutualAligner(encoder, device="cpu")
    assert aligner.word_pairs([]) == []
    assert aligner.word_pairs(parallel([("", ""), ("...", "!")])) == [[], []]
    found = aligner.word_pairs(parallel([("", "chien"), ENGLISH_FRENCH[0]]))
    assert found[0] == []
    assert found[1] == aligner.word_pairs(parallel([ENGLISH_FRENCH[0]]))[0]


def test_part_cut_off_gives_no_pairs(encoder: Path) -> None:
    """A word of several wordpieces, repeated, so that the cut falls within one of them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder)

    def end_of_kept(text: str) -> int:
        coded = tokenizer(text, truncation=True, max_length=POSITIONS, return_offsets_mapping=True)
        return max(end for _, end in coded["offset_mapping"])

    texts = [" ".join([*["the"] * few, *["teacher"] * POSITIONS]) for few in range(4)]
    text, cut = next((text, cut) for text in texts if text[cut := end_of_kept(text)] != " ")
    # Both sides are the same text: every word's nearest is itself.
    (found,) = MutualAligner(encoder, device="cpu").word_pairs([ParallelSentence(text, text, "en", "en")])
    whole = [span for span in word_spans(text, "en") if span[1] <= cut]
    assert found == [(span, span) for span in whole]


def test_characters_of_one_wordpiece_are_one_word(tmp_path: Path) -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "葡萄": 2, "生": 3, "长": 4, "grapes": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    aligner = MutualAligner(save_encoder(tmp_path, fast), layer=0, device="cpu")
    sentence = ParallelSentence("葡萄|生|长", "葡萄|生|长", "zh", "zh")
    assert aligner.word_pairs([sentence]) == [[((0, 2), (0, 2)), ((3, 4), (3, 4)), ((5, 6), (5, 6))]]


def test_pickle_holds_no_model(encoder: Path) -> None:
    corpus = parallel(ENGLISH_FRENCH)
    aligner = MutualAligner(encoder, device="cpu")
    expected = aligner.word_pairs(corpus)
    pickled = pickle.dumps(aligner)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).word_pairs(corpus) == expected
    assert pickle.loads(pickled).fingerprint() == aligner.fingerprint()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_fingerprint_changes_with_the_models_files(encoder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(encoder, folder)
    before = MutualAligner(folder).fingerprint()
    # copytree keeps times, and the folder's name is no part of it.
    assert before == MutualAligner(encoder).fingerprint()
    if name.endswith("json"):
        (folder / name).write_text((folder / name).read_text() + "\n")
    else:
        os.utime(folder / name, (1, 1))
    assert MutualAligner(folder).fingerprint() != before


def test_impossible_wishes_are_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"layer: expected 0 .* to {LAYERS} .*, got {LAYERS + 1}"):
        MutualAligner(encoder, layer=LAYERS + 1)
    with pytest.raises(ValueError, match="expected the name or folder of a Hugging Face encoder"):
        MutualAligner(tmp_path)
    with pytest.raises(ValueError, match=r"expected a device of torch.*'toaster'"):
        MutualAligner(encoder, device="toaster")


def test_hidden_states_that_are_not_finite_are_refused(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    model = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    model.embeddings.LayerNorm.weight.data.fill_(3e38)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected finite hidden states"):
        MutualAligner(tmp_path, device="cpu").word_pairs(parallel(ENGLISH_FRENCH))
