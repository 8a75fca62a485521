"""What a model is given for labelled tasks: windows of words, pairs, labels by number, its weights, and the order."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from ctloss.evaluate.data.labelled import PAWSX, UPOS, XNLI, LabelledPair
from ctloss.evaluate.models.finetune import POOL, ByLength, Collate, load_model
from ctloss.evaluate.tasks.classification import PairHead
from ctloss.evaluate.tasks.tagging import WordHead, WordPieces, join

STEP = 8


def test_windows_hold_every_word_once(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    draw = random.Random(0)
    # "unknown" is two pieces, "long" * 9 and the lone zero-width space become one unknown token each.
    words = ("cat", "unknown", "\u200b", "long" * 9, "the")
    sentences = [[draw.choice(words) for _ in range(draw.randrange(0, 30))] for _ in range(50)]
    for max_length in (4, 5, 7, 64):
        windows = WordPieces(tokenizer, max_length).windows(sentences)
        assert max(len(window.ids) for window in windows) <= max_length
        assert all(window.ids[0] == 2 and window.ids[-1] == 3 for window in windows)
        # Each word has a number, which is set only at its first piece and read back.
        numbers = [[100 * index + place for place in range(len(words))] for index, words in enumerate(sentences)]
        width = max(len(window.ids) for window in windows)
        labels = np.full((len(windows), width), -100)
        for row, window in zip(labels, windows, strict=True):
            row[: len(window.ids)] = window.labels(numbers[window.sentence])
        assert (labels >= 0).sum() == sum(map(len, sentences))
        order = list(range(len(windows)))
        draw.shuffle(order)
        lengths = [len(words) for words in sentences]
        assert join([windows[i] for i in order], labels[order], lengths) == numbers
    with pytest.raises(ValueError, match="expected a max_length over the 2 special tokens, got 2"):
        WordPieces(tokenizer, 2)


def test_first_pieces_are_labelled(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    (window,) = WordPieces(tokenizer, 64).windows([["the", "unknown", "cat"]])
    assert tokenizer.convert_ids_to_tokens(list(window.ids)) == ["[CLS]", "the", "un", "##known", "cat", "[SEP]"]
    assert window.labels([5, 6, 7]) == [-100, 5, 6, -100, 7, -100]
    # Five pieces do not fit into four and two special tokens: the last word has a window of its own.
    first, second = WordPieces(tokenizer, 5).windows([["the", "unknown", "cat"]])
    assert (first.firsts, second.firsts, second.start) == ((1, 2), (1,), 2)


@pytest.mark.parametrize("chunk", [1, 5000])
def test_pairs_are_read_as_one_input(model: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctloss.evaluate.tasks.classification.CHUNK", chunk)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [LabelledPair("the cat", "a dog .", "1"), LabelledPair("the cat and the dog and the cat", "a dog", None)]
    encoded = PairHead(PAWSX.labels).encode(tokenizer, rows, 9)
    long, short = encoded.features
    assert tokenizer.convert_ids_to_tokens(long["input_ids"]) == (
        ["[CLS]", "the", "cat", "and", "the", "[SEP]", "a", "dog", "[SEP]"]
    )
    assert short["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (short["labels"], "labels" in long) == (1, False)
    assert encoded.decode(np.array([0, 1])) == ["1", "0"]
    batch = Collate(pad=7)([{"input_ids": [1, 2], "labels": [3, 3]}, {"input_ids": [4], "labels": [5]}])
    assert batch["input_ids"].tolist() == [[1, 2], [4, 7]]
    assert batch["labels"].tolist() == [[3, 3], [5, -100]]


def test_heads_number_labels_as_they_name_them(model: str) -> None:
    pair = load_model(model, PairHead(XNLI.labels))
    word = load_model(model, WordHead(UPOS, prefixed=False))
    assert isinstance(pair, type(AutoModelForSequenceClassification.from_config(pair.config)))
    assert isinstance(word, type(AutoModelForTokenClassification.from_config(word.config)))
    assert pair.config.id2label == dict(enumerate(XNLI.labels))
    assert word.config.label2id["VERB"] == UPOS.index("VERB")


def test_encoders_with_and_without_another_head_are_loaded_alike(tmp_path: Path, model: str) -> None:
    """A masked language model's files name the encoder's weights otherwise; half precision becomes single."""
    from transformers import AutoModel, AutoModelForMaskedLM

    torch.manual_seed(3)
    masked = AutoModelForMaskedLM.from_config(AutoModel.from_pretrained(model).config)
    masked.save_pretrained(tmp_path / "masked")
    masked.base_model.save_pretrained(tmp_path / "bare")
    head = WordHead(UPOS, prefixed=False)
    for name in ("masked", "bare"):
        loaded = load_model(str(tmp_path / name), head).base_model.state_dict()
        for key, weight in masked.base_model.state_dict().items():
            assert torch.equal(loaded[key], weight), key
    masked.half().save_pretrained(tmp_path / "half")
    assert load_model(str(tmp_path / "half"), head).dtype == torch.float32


def padded(order: list[int], lengths: list[int]) -> int:
    """Wordpieces of all steps, each padded to its longest item."""
    steps = [[lengths[index] for index in order[at : at + STEP]] for at in range(0, len(order), STEP)]
    return sum(max(step) * len(step) for step in steps)


def test_every_item_once_an_epoch_with_little_padding() -> None:
    draw = random.Random(0)
    # Two pools and a half, and a last step of three items.
    lengths = [draw.randrange(3, 129) for _ in range(POOL * STEP * 5 // 2 + 3)]
    sampler = ByLength(lengths, STEP, seed=1)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(len(sampler)))
        assert padded(epochs[-1], lengths) < 1.05 * sum(lengths)
    assert padded(draw.sample(range(len(lengths)), len(lengths)), lengths) > 1.5 * sum(lengths)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_steps_are_in_random_order_and_the_seed_chooses_it() -> None:
    lengths = list(range(POOL * STEP))
    first, again, other = (list(ByLength(lengths, STEP, seed)) for seed in (1, 1, 2))
    assert first == again != other
    longest = [max(first[at : at + STEP]) for at in range(0, len(first), STEP)]
    falls = sum(one > following for one, following in pairwise(longest))
    assert POOL // 4 < falls < POOL * 3 // 4
