"""Vectors of sentences and wordpieces against transformers called by hand, and the encoders that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from ctloss.evaluate import Encoder
from support.tiny_encoder import saved, tiny_bert, word_tokenizer

pytestmark = pytest.mark.numeric

PIECES = ["the", "dog", "##s", "red", "house", "sleep", "query", ":", "a"]
TEXTS = ["the red house", "dogs", "the dogs sleep the red dog", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "bert", PIECES, mlm=True)


def by_hand(folder: Path, text: str) -> tuple[torch.Tensor, ...]:
    """The hidden states of one sentence, (tokens, H) each, without batch or padding."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt"), output_hidden_states=True)
    return tuple(state[0] for state in states.hidden_states)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_poolings_by_hand(folder: Path, batch_size: int) -> None:
    expected = {
        ("layer", 2): lambda states: states[2].mean(0),
        ("layer", 0): lambda states: states[0].mean(0),
        ("mean", None): lambda states: states[3].mean(0),
        ("avg-first-last", None): lambda states: states[1].mean(0) + states[3].mean(0),
        ("cls", None): lambda states: states[3][0],
    }
    for (pooling, layer), pool in expected.items():
        found = Encoder(folder, pooling=pooling, layer=layer, batch_size=batch_size).sentences(TEXTS)
        assert found.dtype == np.float32
        by_one = torch.stack([pool(by_hand(folder, text)) for text in TEXTS])
        torch.testing.assert_close(torch.from_numpy(found), by_one, atol=1e-5, rtol=1e-5)


def test_models_in_memory_are_left_as_they_are() -> None:
    model = tiny_bert(14, mlm=True).train()
    encoder = Encoder(model, tokenizer=word_tokenizer(PIECES), pooling="mean")
    first = encoder.sentences(TEXTS)
    assert model.training
    np.testing.assert_array_equal(first, encoder.sentences(TEXTS))
    assert encoder.sentences([]).shape == (0, 16)
    assert encoder.pieces([]) == []


def test_a_model_in_training_stays_so_after_an_error() -> None:
    model = tiny_bert(14).train()
    encoder = Encoder(model, tokenizer=word_tokenizer([*PIECES, "more"]), pooling="mean")
    model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.sentences(TEXTS)
    assert model.training


def test_prefix_is_part_of_the_sentence(folder: Path) -> None:
    prefixed = Encoder(folder, pooling="mean", prefix="query: ").sentences(TEXTS)
    whole = Encoder(folder, pooling="mean").sentences([f"query: {text}" for text in TEXTS])
    np.testing.assert_array_equal(prefixed, whole)


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_pieces_know_their_words(folder: Path, prefix: str) -> None:
    encoder = Encoder(folder, layer=1, prefix=prefix, batch_size=2)
    sentences = [["the", "dogs", "sleep"], ["a"], [" ", "red"], ["reddogs"]]
    one, two, three, four = encoder.pieces(sentences)
    assert (one.words, two.words, three.words, four.words) == ([0, 1, 1, 2], [0], [1], [0])
    states = by_hand(folder, f"{prefix}the dogs sleep")[1]
    before = 1 + 2 * bool(prefix)
    np.testing.assert_allclose(one.vectors, states[before : before + 4].numpy(), atol=1e-5)


def test_words_of_byte_level_tokenizers_are_cut_as_in_their_sentence() -> None:
    """They split a word differently after a space, and between words passed separately there is none."""
    pieces = ["<pad>", *"dogcat", "Ġ", "do", "dog", "Ġd", "Ġdo", "Ġdog", "Ġc"]
    merges = [("d", "o"), ("do", "g"), ("Ġ", "d"), ("Ġ", "do"), ("Ġ", "dog"), ("Ġ", "c")]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    assert fast("dog dog cat").tokens() == ["dog", "Ġdog", "Ġc", "a", "t"]
    encoder = Encoder(tiny_bert(len(fast)), tokenizer=fast, pooling="mean")
    [found] = encoder.pieces([["dog", "dog", "cat"]])
    assert found.words == [0, 1, 2, 2, 2]
    np.testing.assert_allclose(found.vectors.mean(axis=0), encoder.sentences(["dog dog cat"])[0], atol=1e-6)


def test_default_layer_is_eight_or_the_last_with_a_warning(folder: Path) -> None:
    with pytest.warns(UserWarning, match="3 layers, fewer than 8: its last layer is used"):
        assert Encoder(folder).layer == 3
    deep = tiny_bert(14, layers=9)
    assert Encoder(deep, tokenizer=word_tokenizer(PIECES)).layer == 8


def test_long_sentences_are_cut_with_a_warning(folder: Path) -> None:
    encoder = Encoder(folder, pooling="mean", max_length=5)
    with pytest.warns(UserWarning, match="1 of 2 sentences have more than 5 tokens"):
        found = encoder.sentences(["the red dog sleep sleep", "a"])
    np.testing.assert_allclose(found[0], encoder.sentences(["the red dog"])[0], atol=1e-6)
    with pytest.warns(UserWarning, match="cut there"):
        assert encoder.pieces([["the", "red", "dog", "sleep"]])[0].words == [0, 1, 2]
    assert Encoder(folder, pooling="mean").max_length == 32


def test_own_pooling_is_read_from_the_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, PIECES, pooler=True)
    encoder = Encoder(folder, pooling="model")
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(**AutoTokenizer.from_pretrained(folder)("dogs", return_tensors="pt")).pooler_output
    np.testing.assert_allclose(encoder.sentences(["dogs"]), expected.numpy(), atol=1e-5)
    assert encoder.pieces([["dogs"]])[0].vectors.shape == (2, 16)
    (tmp_path / "1_Pooling").mkdir()
    settings = tmp_path / "1_Pooling" / "config.json"
    settings.write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}))
    assert Encoder(folder, pooling="model").pooling == "mean"
    settings.write_text(json.dumps({"pooling_mode": "cls"}))
    assert Encoder(folder, pooling="model").pooling == "cls"
    settings.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match=r"got 'mean_tokens\+max_tokens' in its files"):
        Encoder(folder, pooling="model")
    (tmp_path / "cce.json").write_text(json.dumps({"pooling": "avg-first-last"}))
    assert Encoder(folder, pooling="model").pooling == "avg-first-last"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling: expected one of layer, mean, avg-first-last, cls, model, got 'max'"),
        ({"layer": 4}, r"expected layer from 0 \(embeddings\) to 3 \(the model's last\), got 4"),
        ({"pooling": "mean", "layer": 1}, "expected no layer unless pooling is 'layer', got 1"),
        ({"pooling": "mean", "max_length": 33}, "expected max_length from 3 to 32"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"pooling": "model"}, "which would be random numbers; choose another pooling"),
        ({"pooling": "mean", "device": "gpu"}, "expected a device of torch .* such as cpu or cuda, got 'gpu'"),
    ],
)
def test_refused_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(folder, **options)


def test_refused_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to name its pooling or to have a pooler, got neither"):
        Encoder(tiny_bert(14), tokenizer=word_tokenizer(PIECES), pooling="model")
    with pytest.raises(ValueError, match=r"expected the name or folder of a Hugging Face encoder, got '.*nothing'"):
        Encoder(tmp_path / "nothing")
    cut = saved(tmp_path, PIECES) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected whole weights that fit the configuration, got "):
        Encoder(tmp_path, pooling="mean")
    cut.unlink()
    with pytest.raises(ValueError, match="expected an encoder with its weights as safetensors"):
        Encoder(tmp_path)


def test_tokenizers_of_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    """Without files transformers makes up a tokenizer that reads every word as unknown, which would score nonsense."""
    tiny_bert(14).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected a tokenizer with the model, got .* without a vocabulary"):
        Encoder(tmp_path, pooling="mean")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="expected a tokenizer with the model"):
        Encoder(tmp_path, pooling="mean")
    other = Encoder(folder, tokenizer=word_tokenizer([*PIECES, "more"]), pooling="mean")
    assert other.sentences(TEXTS).shape == (4, 16)
    with pytest.raises(ValueError, match="expected wordpieces below 14, the model's vocabulary, got number 14"):
        other.sentences(["a", "more"])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(broken: float) -> None:
    """No comparison with NaN holds, so that a diverged model would score as if it had learnt nothing."""
    model, tokenizer = tiny_bert(14), word_tokenizer(PIECES)
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("red")] = broken
    encoder = Encoder(model, tokenizer=tokenizer, pooling="mean")
    assert np.isfinite(encoder.sentences(["the house", "dogs"])).all()
    with pytest.raises(ValueError, match=r"expected finite vectors, got NaN or infinity from a model in torch.float32"):
        encoder.sentences(TEXTS)
    # A sentence without the word has finite pieces.
    assert len(encoder.pieces([["the", "house"]])[0].vectors) == 2
    with pytest.raises(ValueError, match="expected finite vectors"):
        encoder.pieces([text.split() for text in TEXTS])
