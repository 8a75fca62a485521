"""Encoders given by folder that cannot be trained are refused before anything is built from the corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ctloss.train.__main__ import main
from support.tiny_encoder import drop_layer, saved, word_tokenizer
from support.tiny_runs import write_corpus

PIECES = ["the", "cat", "le", "chat"]
T5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=9)


def drop_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def add_tokens(folder: Path) -> None:
    word_tokenizer([*PIECES, "neu", "nouveau"]).save_pretrained(folder)


def drop_padding(folder: Path) -> None:
    backend = word_tokenizer(PIECES).backend_tokenizer
    drop_the_tokenizer(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]").save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_layer, "expected all weights of BertModel"),
        (drop_the_tokenizer, "expected a tokenizer with the model"),
        (add_tokens, "expected a tokenizer of at most 9 tokens"),
        (drop_padding, "expected a tokenizer with the special tokens pad, mask"),
        (T5EncoderModel(T5).save_pretrained, "expected a transformer encoder"),
        (lambda folder: saved(folder, PIECES, positions=31), "expected max_length at most 31, the wordpieces that "),
    ],
)
def test_an_encoder_that_would_train_to_nonsense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    folder, output = saved(tmp_path / "given", PIECES), tmp_path / "run"
    damage(folder)
    given = ["--encoder", str(folder), "--max-length", "32", "--output", str(output)]
    assert main(["--corpus", str(write_corpus(tmp_path)), *given]) == 2
    said = capsys.readouterr().err
    assert f"error: encoder: {message}" in said
    assert "; " in said
    assert not (output / "data").exists()
