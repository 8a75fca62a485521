"""The CCE encoder: what is pooled, what the head sees, that it is saved and read; and tokenizers trained or given."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from ctloss.shared.models import load_encoder
from ctloss.train import CCEEncoder
from ctloss.train.model.encoder import freeze_word_embeddings, small_backbone
from ctloss.train.model.objective import Objective
from ctloss.train.text.tokenizer import read_tokenizer, train_wordpiece

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the cat sleeps", "le chat dort", "Été à Paris", "我爱你", "кот и йод", "قطة نائمة"]


def backbone(mlm: bool = False, layers: int = 3) -> PreTrainedModel:
    torch.manual_seed(0)
    return small_backbone(vocabulary=50, layers=layers, hidden=16, heads=2, dropout=0.1, max_length=12, pad=0, mlm=mlm)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]])
    return ids, (ids != 0).long(), torch.tensor([[2, 4], [1, 2]])


def test_pools_first_plus_last_layer_over_sentence_and_word() -> None:
    encoder = CCEEncoder(backbone(), levels="multi", head=False).eval()
    ids, mask, spans = batch()
    with torch.no_grad():
        states = encoder.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        pooled = encoder.vectors(ids, mask, spans)
    assert len(states) == 4
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        start, end = spans[row].tolist()
        sentence = states[1][row, :length].mean(dim=0) + states[3][row, :length].mean(dim=0)
        word = states[1][row, start:end].mean(dim=0) + states[3][row, start:end].mean(dim=0)
        torch.testing.assert_close(pooled[row], torch.stack([sentence, word]))


@pytest.mark.parametrize(("levels", "width"), [("multi", 32), ("sentence", 16)])
def test_head_is_two_layers_over_the_concatenation(levels: str, width: int) -> None:
    encoder = CCEEncoder(backbone(), levels=levels, head=True).eval()
    assert encoder.head is not None
    ids, mask, spans = batch()
    pooled = encoder.vectors(ids, mask, spans)
    joined = pooled.flatten(1) if levels == "multi" else pooled[:, 0]
    first, last = encoder.head[0], encoder.head[2]
    assert isinstance(first, nn.Linear)
    assert first.weight.shape == last.weight.shape == (width, width)
    torch.testing.assert_close(encoder(ids, mask, spans), last(first(joined).relu()))


def test_balanced_halves_are_of_one_length() -> None:
    encoder = CCEEncoder(backbone(), levels="multi", head=False, balance=True).eval()
    ids, mask, spans = batch()
    pooled = encoder.vectors(ids, mask, spans)
    sentence, word = encoder(ids, mask, spans).chunk(2, dim=1)
    for half, vectors in ((sentence, pooled[:, 0]), (word, pooled[:, 1])):
        torch.testing.assert_close(half, vectors / vectors.norm(dim=1, keepdim=True))
    assert not torch.allclose(pooled[:, 0].norm(dim=1), pooled[:, 1].norm(dim=1), rtol=0.01)
    with_head = CCEEncoder(encoder.backbone, levels="multi", head=True, balance=True).eval()
    assert with_head.head is not None
    torch.testing.assert_close(with_head(ids, mask, spans), with_head.head(torch.cat([sentence, word], dim=1)))
    for levels in ("apart", "sentence"):
        with pytest.raises(ValueError, match=f"expected levels 'multi' with balance=True, got '{levels}'"):
            CCEEncoder(encoder.backbone, levels=levels, head=False, balance=True)


def test_padding_changes_nothing() -> None:
    encoder = CCEEncoder(backbone(), levels="multi", head=True).eval()
    ids, mask, spans = batch()
    longer = nn.functional.pad(ids, (0, 4))
    torch.testing.assert_close(encoder(longer, (longer != 0).long(), spans), encoder(ids, mask, spans))


def test_vectors_are_float32_under_autocast() -> None:
    encoder = CCEEncoder(backbone(), levels="multi", head=True)
    ids, mask, spans = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(ids, mask, spans).dtype == torch.float32


@pytest.mark.parametrize("mlm", [False, True])
def test_saved_encoder_is_read_back(tmp_path: Path, mlm: bool) -> None:
    encoder = CCEEncoder(backbone(mlm), levels="multi", head=True).eval()
    encoder.save(tmp_path)
    again = CCEEncoder.load(tmp_path).eval()
    assert type(again.backbone) is type(encoder.backbone)
    # The weights bit for bit; what comes of them may depend on where in memory they lie.
    saved, read = encoder.state_dict(), again.state_dict()
    assert saved.keys() == read.keys()
    assert [name for name in saved if not torch.equal(saved[name], read[name])] == []
    torch.testing.assert_close(again(*batch()), encoder(*batch()))
    ids, mask, _ = batch()
    plain = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        plain(input_ids=ids, attention_mask=mask).last_hidden_state,
        encoder.backbone.base_model(input_ids=ids, attention_mask=mask).last_hidden_state,
    )
    assert not list(tmp_path.glob("*.bin"))


def test_balance_and_learnt_temperature_are_saved(tmp_path: Path) -> None:
    encoder = CCEEncoder(backbone(), levels="multi", head=False, balance=True)
    Objective(encoder, loss="cz_nce", temperature=0.07, learn_temperature=True)
    assert encoder.temperature is not None
    with torch.no_grad():
        next(encoder.temperature.parameters()).mul_(1.0371)
    encoder.save(tmp_path)
    again = CCEEncoder.load(tmp_path)
    assert again.balance
    saved, read = encoder.state_dict(), again.state_dict()
    assert saved.keys() == read.keys()
    assert torch.equal(saved["temperature.log_temperature"], read["temperature.log_temperature"])


def test_folders_from_before_there_was_a_choice_are_read(tmp_path: Path) -> None:
    encoder = CCEEncoder(backbone(), levels="multi", head=True).eval()
    encoder.save(tmp_path)
    settings = json.loads((tmp_path / "cce.json").read_text(encoding="utf-8"))
    assert settings == {"levels": "multi", "head": True, "pooling": "avg-first-last", "balance": False}
    del settings["balance"]
    (tmp_path / "cce.json").write_text(json.dumps(settings), encoding="utf-8")
    again = CCEEncoder.load(tmp_path).eval()
    assert again.temperature is None
    torch.testing.assert_close(again(*batch()), encoder(*batch()))


def test_folder_without_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without cce\.json"):
        CCEEncoder.load(tmp_path)


SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}


masked_models = pytest.mark.parametrize(
    "model",
    [
        BertForMaskedLM(BertConfig(**SIZES, intermediate_size=32)),
        RobertaForMaskedLM(RobertaConfig(**SIZES, intermediate_size=32)),
        DistilBertForMaskedLM(
            DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, pad_token_id=0)
        ),
    ],
    ids=lambda model: type(model).__name__,
)


@masked_models
def test_mlm_logits_are_the_models_own(model: PreTrainedModel) -> None:
    encoder = CCEEncoder(model.eval(), levels="sentence", head=False)
    ids, mask, _ = batch()
    _, states = encoder.first_and_last(ids, mask)
    expected = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(encoder.mlm_logits(states[mask.bool()]), expected[mask.bool()])


@masked_models
def test_frozen_word_embeddings_stay(model: PreTrainedModel) -> None:
    model = copy.deepcopy(model)
    freeze_word_embeddings(model)
    encoder = CCEEncoder(model, levels="sentence", head=False)
    words, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    assert output.weight is words
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    ids, mask, _ = batch()
    _, states = encoder.first_and_last(ids, mask)
    logits = encoder.mlm_logits(states[mask.bool()])
    nn.functional.cross_entropy(logits, ids[mask.bool()]).backward()
    torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1).step()
    assert words.grad is None
    stayed = [name for name, value in encoder.named_parameters() if torch.equal(value, before[name])]
    assert [name.rpartition(".word_embeddings.")[2] for name in stayed] == ["weight"]
    assert output.bias is not None
    assert output.bias.grad is not None


def test_pooler_is_not_trained(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**SIZES, intermediate_size=32)).save_pretrained(tmp_path)
    encoder = CCEEncoder(AutoModel.from_pretrained(tmp_path), levels="sentence", head=False)
    frozen = [name for name, parameter in encoder.named_parameters() if not parameter.requires_grad]
    assert sorted(frozen) == ["backbone.pooler.dense.bias", "backbone.pooler.dense.weight"]
    assert "pooler" not in "".join(name for name, _ in load_encoder(tmp_path).named_parameters())


def test_trained_tokenizer_keeps_accents_and_splits_chinese(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(TEXTS, vocabulary=200, lower_case=True, max_length=16)
    assert tokenizer.tokenize("ÉTÉ 我爱") == ["été", "我", "爱"]
    assert "й" in "".join(tokenizer.tokenize("Йод"))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_trained_vocabulary_is_the_same_in_every_process() -> None:
    script = (
        "from ctloss.train.text.tokenizer import train_wordpiece as t\n"
        "texts = [f'w{i}{i * 7 % 31} v{i * 13 % 101}x' for i in range(400)]\n"
        "print(sorted(t(texts, vocabulary=150, lower_case=True, max_length=9).get_vocab().items()))"
    )
    run = [sys.executable, "-c", script]
    outputs = {subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(outputs) == 1


def test_lower_casing_of_a_given_tokenizer_is_saved(tmp_path: Path) -> None:
    train_wordpiece(TEXTS, vocabulary=200, lower_case=False, max_length=16).save_pretrained(tmp_path / "cased")
    cased = read_tokenizer(str(tmp_path / "cased"), lower_case=False)
    lowered = read_tokenizer(str(tmp_path / "cased"), lower_case=True)
    assert cased.tokenize("THE") != cased.tokenize("the")
    lowered.save_pretrained(tmp_path / "lowered")
    again = AutoTokenizer.from_pretrained(tmp_path / "lowered")
    for tokenizer in (lowered, again):
        assert tokenizer("THE CAT")["input_ids"] == cased("the cat")["input_ids"]
