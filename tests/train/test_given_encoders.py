"""Encoders given by folder that cannot be trained are refused before anything is built from the corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ctloss.train.__main__ import main
from ctloss.train.text.tokenizer import train_wordpiece
from support.tiny_runs import write_corpus

TOKENIZER = train_wordpiece(
    ["the cat sees a house", "le chat voit un pain"], vocabulary=100, lower_case=True, max_length=9
)


def write_encoder(folder: Path) -> None:
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)


def drop_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.2." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def drop_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def add_tokens(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["neu", "nouveau"])
    tokenizer.save_pretrained(folder)


def drop_padding(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, mask_token="[MASK]")
    drop_the_tokenizer(folder)
    tokenizer.save_pretrained(folder)


def write_half_of_t5(folder: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": len(TOKENIZER)}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_layer, "expected all weights of BertModel"),
        (drop_the_tokenizer, "expected a tokenizer with the model"),
        (add_tokens, f"expected a tokenizer of at most {len(TOKENIZER)} tokens"),
        (drop_padding, "expected a tokenizer with the special tokens pad, mask"),
        (write_half_of_t5, "expected a transformer encoder"),
    ],
)
def test_an_encoder_that_would_train_to_nonsense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    write_encoder(tmp_path / "given")
    damage(tmp_path / "given")
    output = tmp_path / "run"
    given = ["--encoder", str(tmp_path / "given"), "--max-length", "32", "--output", str(output)]
    assert main(["--corpus", str(write_corpus(tmp_path)), *given]) == 2
    said = capsys.readouterr().err
    assert f"error: encoder: {message}" in said
    assert "; " in said
    assert not (output / "data").exists()
