"""Encoders and tokenizers read from folders: what comes back, and every folder that is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    IBertConfig,
    IBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLNetConfig,
)

from ctloss.shared.models import (
    check_fast,
    check_inputs,
    load_encoder,
    load_tokenizer,
    load_with_head,
    positions,
    random_like,
    read_config,
)
from support.tiny_encoder import change_weights, drop_layer, saved, tiny_bert, word_tokenizer

PIECES = ["the", "house", "dog", "##s", "sleep"]
T5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
# The three ways in: as evaluation, as training and as fine-tuning reads an encoder.
READERS: dict[str, Callable[[Path], PreTrainedModel]] = {
    "bare": load_encoder,
    "mlm": lambda folder: load_encoder(folder, mlm=True),
    "head": lambda folder: load_with_head(folder, AutoModelForTokenClassification, num_labels=3),
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder with its MLM head and tokenizer, for a test to break."""
    return saved(tmp_path / "encoder", PIECES, mlm=True)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@every_reader
def test_weights_are_those_of_the_files(folder: Path, read: Callable[[Path], PreTrainedModel]) -> None:
    kept = load_file(folder / "model.safetensors")
    for name, weight in read(folder).base_model.named_parameters():
        assert torch.equal(weight, kept[f"bert.{name}"])


def test_heads_and_poolers_come_only_where_wanted(folder: Path, tmp_path: Path) -> None:
    assert not any("pooler" in name or "cls" in name for name, _ in load_encoder(folder).named_parameters())
    head = load_encoder(folder, mlm=True).state_dict()["cls.predictions.bias"]
    assert torch.equal(head, load_file(folder / "model.safetensors")["cls.predictions.bias"])
    pooled = saved(tmp_path / "pooled", PIECES, pooler=True)
    kept = load_file(pooled / "model.safetensors")["pooler.dense.weight"]
    assert torch.equal(load_encoder(pooled, pooler=True).state_dict()["pooler.dense.weight"], kept)
    with pytest.raises(ValueError, match=r"without pooler\.dense\.bias, pooler\.dense\.weight, .* another pooling"):
        load_encoder(folder, pooler=True)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    tiny_bert(10).half().save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_encoder(tmp_path).parameters()} == {torch.float32}


def test_mlm_head_that_is_not_there_starts_at_random_with_a_warning(tmp_path: Path) -> None:
    bare = saved(tmp_path, PIECES)
    with pytest.warns(UserWarning, match="has no MLM head: it starts from random numbers"):
        assert "cls.predictions.bias" in load_encoder(bare, mlm=True).state_dict()


def test_reading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_encoder(folder)
    load_with_head(folder, AutoModelForTokenClassification, num_labels=3)
    assert capfd.readouterr() == ("", "")


def test_head_of_other_labels_is_refused(tmp_path: Path) -> None:
    config = tiny_bert(10).config
    config.num_labels = 5
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"fit the configuration, got .* without a head of other labels"):
        load_with_head(tmp_path, AutoModelForTokenClassification, num_labels=3)


def fill_a_row(folder: Path, value: float) -> None:
    change_weights(folder, lambda weights: weights["bert.encoder.layer.1.output.dense.weight"][0].fill_(value))


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


UNKNOWN = "expected the name or folder of a Hugging Face encoder, got '.*encoder'"
NOT_FINITE = r"expected finite weights, got NaN or infinity in .*layer\.1\.output\.dense"
OTHER_WEIGHTS = "expected whole weights that fit the configuration"
ENCODER_DECODER = r"expected a transformer encoder, got .* \(t5\), which is an encoder-decoder"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing layer": (drop_layer, r"expected all weights of .*, got .*encoder\.layer\.2\..* be random numbers"),
    "NaN": (lambda folder: fill_a_row(folder, torch.nan), NOT_FINITE),
    "infinity": (lambda folder: fill_a_row(folder, torch.inf), NOT_FINITE),
    "other shapes": (lambda folder: change_config(folder, intermediate_size=48), OTHER_WEIGHTS),
    "cut short": (cut_short, OTHER_WEIGHTS),
    "pickle": (pickle, "expected an encoder with its weights as safetensors, got .*; convert them"),
    "no folder": (shutil.rmtree, UNKNOWN),
    "empty folder": (empty, UNKNOWN),
    "broken configuration": (lambda folder: (folder / "config.json").write_text("{"), UNKNOWN),
    "encoder-decoder": (T5ForConditionalGeneration(T5).save_pretrained, ENCODER_DECODER),
    "half of one": (T5EncoderModel(T5).save_pretrained, ENCODER_DECODER),
}


@every_reader
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_and_other_models_are_refused(
    folder: Path, read: Callable[[Path], PreTrainedModel], damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_model_without_an_mlm_head_of_its_kind_is_refused(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=9, bos_token_id=1, eos_token_id=1)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"expected an MLM head as in BERT, .* got gpt2; set alpha to 0"):
        load_encoder(tmp_path, mlm=True)
    assert load_encoder(tmp_path).config.n_layer == 1


def test_config_without_a_padding_token_gets_one(folder: Path) -> None:
    change_config(folder, pad_token_id=None)
    assert load_encoder(folder).config.pad_token_id == 0
    assert read_config(folder).pad_token_id is None


def test_random_like_has_other_weights_of_the_same_shapes(folder: Path) -> None:
    given = load_encoder(folder)
    other = random_like(given)
    for (name, a), b in zip(given.named_parameters(), other.parameters(), strict=True):
        assert a.shape == b.shape
        if name.endswith("query.weight"):
            assert not torch.equal(a, b)


SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
}


@pytest.mark.parametrize(
    ("model", "most"),
    [
        (BertModel(BertConfig(**SIZES)), 12),
        (RobertaModel(RobertaConfig(**SIZES)), 10),
        (IBertModel(IBertConfig(**SIZES)), 10),
    ],
    ids=lambda value: getattr(getattr(value, "config", None), "model_type", ""),
)
def test_positions_are_what_the_model_takes(model: PreTrainedModel, most: int) -> None:
    assert positions(model.config) == most
    model.eval()(input_ids=torch.full((1, most), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 7))


def test_no_limit_of_positions_is_none() -> None:
    assert positions(BertConfig(max_position_embeddings=-1)) is None
    assert positions(RobertaConfig(max_position_embeddings=-1, pad_token_id=1)) is None
    assert positions(XLNetConfig()) is None
    assert positions(T5Config()) is None


def test_tokenizer_comes_with_its_vocabulary(folder: Path) -> None:
    assert load_tokenizer(folder, needs=("pad", "mask")).tokenize("the dogs") == ["the", "dog", "##s"]
    assert load_tokenizer(folder, model_max_length=7).model_max_length == 7


@pytest.mark.parametrize("left", ["tokenizer_config.json", None])
def test_folder_without_tokenizer_is_refused(folder: Path, left: str | None) -> None:
    for path in folder.glob("tokenizer*"):
        if path.name != left:
            path.unlink()
    with pytest.raises(ValueError, match=r"expected a tokenizer with the model, got .* without"):
        load_tokenizer(folder)


def test_tokenizer_without_special_tokens_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(PIECES)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id is None
    with pytest.raises(ValueError, match=r"the special tokens pad, mask, got that of .* without pad"):
        load_tokenizer(tmp_path, needs=("pad", "mask"))


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a fast tokenizer, .* got object"):
        check_fast(object())


def test_inputs_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    check_inputs(folder, config, tokenizer, 32)
    with pytest.raises(ValueError, match=r"expected max_length at most 32, the wordpieces that .* takes, got 33"):
        check_inputs(folder, config, tokenizer, 33)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    word_tokenizer([*PIECES, "cat"]).save_pretrained(other)
    with pytest.raises(ValueError, match=r"expected a tokenizer of at most 10 tokens, .* got one of 11"):
        check_inputs(other, read_config(other), load_tokenizer(other), 32)
