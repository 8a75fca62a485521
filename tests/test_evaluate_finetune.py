"""Fine-tuning on four tasks end to end, its scores, its windows, and going on after a kill."""

from __future__ import annotations

import dataclasses
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tasks
import torch
from sklearn.metrics import accuracy_score
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from ctloss.evaluate import DataError, Outcome, Score, finetune, kept
from ctloss.evaluate.classification import (
    PairHead,
    accuracy,
    evaluate_pawsx,
    evaluate_xnli,
    majority_accuracy,
)
from ctloss.evaluate.head import Collate, load_model
from ctloss.evaluate.labelled import read_pairs, read_tagged
from ctloss.evaluate.options import XTREME_OPTIONS, FinetuneOptions
from ctloss.evaluate.pieces import WordPieces, join
from ctloss.evaluate.spread import over_seeds, with_means
from ctloss.evaluate.submission import write_submission
from ctloss.evaluate.tagging import (
    WordHead,
    entity_f1,
    evaluate_panx,
    evaluate_udpos,
    pos_f1,
    submission_lines,
    token_accuracy,
)
from ctloss.evaluate.tasks import PANX, PAWSX, UDPOS, UPOS, XNLI, LabelledPair, TaggedSentence

QUICK = FinetuneOptions(learning_rate=4e-3, batch_size=16, max_steps=40, max_length=32, evaluate_every=20, clip=1.0)
Entry = Callable[..., Outcome]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_tasks.save_model(tmp_path_factory.mktemp("model"))


def value(outcome: Outcome, language: str, metric: str, about: str, seed: int | None = 1) -> float:
    (found,) = (
        score.value
        for score in outcome.scores
        if (score.language, score.metric, score.about, score.seed) == (language, metric, about, seed)
    )
    return found


@pytest.mark.parametrize(("task", "entry"), [(XNLI, evaluate_xnli), (PAWSX, evaluate_pawsx)], ids=["xnli", "pawsx"])
def test_pairs_end_to_end(tmp_path: Path, model: str, task: Any, entry: Entry) -> None:
    tiny_tasks.write_task(tmp_path, task.name)
    outcome = entry(model, tmp_path, options=dataclasses.replace(QUICK, max_steps=60))
    assert sorted(outcome.predictions) == ["en", "xx"]
    for language, answers in outcome.predictions.items():
        rows = read_pairs(tmp_path / task.name / f"test-{language}.tsv", task.labels)
        gold = [row.label for row in rows if isinstance(row, LabelledPair)]
        assert value(outcome, language, "accuracy", "") == accuracy_score(gold, answers) > 0.9
        majority = max(gold.count(label) for label in task.labels) / len(gold)
        assert value(outcome, language, "accuracy", "majority class", None) == majority < 0.8
    for path in write_submission(tmp_path / "submission", task.name, outcome.predictions):
        language = path.stem.removeprefix("test-")
        assert path.read_text(encoding="utf-8").splitlines() == outcome.predictions[language]


@pytest.mark.parametrize(("task", "entry"), [(UDPOS, evaluate_udpos), (PANX, evaluate_panx)], ids=["udpos", "panx"])
def test_words_end_to_end(tmp_path: Path, model: str, task: Any, entry: Entry) -> None:
    """With windows so short that most sentences are split, every word of every sentence has its prediction."""
    tiny_tasks.write_task(tmp_path, task.name)
    outcome = entry(model, tmp_path, ["xx"], dataclasses.replace(QUICK, max_length=6))
    rows = read_tagged(tmp_path / task.name / "test-xx.tsv", task.labels)
    gold = [row.tags for row in rows if isinstance(row, TaggedSentence) and row.tags is not None]
    predicted = [block.split("\n") for block in "\n".join(outcome.predictions["xx"]).split("\n\n")]
    assert [len(tags) for tags in predicted] == [len(tags) for tags in gold]
    assert value(outcome, "xx", "f1", "") == (pos_f1 if task is UDPOS else entity_f1)(gold, predicted) > 0.9
    right = accuracy_score([tag for tags in gold for tag in tags], [tag for tags in predicted for tag in tags])
    assert value(outcome, "xx", "accuracy", "words") == right > 0.9


def test_a_test_set_without_labels_is_predicted_and_not_scored(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    tiny_tasks.write_pairs(tmp_path / "pawsx" / "test-xx.tsv", tiny_tasks.paraphrase_rows(30, 4), labels=False)
    outcome = evaluate_pawsx(model, tmp_path, options=dataclasses.replace(QUICK, max_steps=1))
    assert {score.language for score in outcome.scores} == {"en", "mean"}
    assert len(outcome.predictions["xx"]) == 30


def test_english_files_by_name_and_held_out_rows(tmp_path: Path, model: str) -> None:
    """PAWS-X trained on its English dev file, the last quarter of which chooses the step; two seeds."""
    tiny_tasks.write_task(tmp_path, "pawsx")
    (tmp_path / "pawsx" / "train-en.tsv").unlink()
    options = dataclasses.replace(
        QUICK, max_steps=2, train=(tmp_path / "pawsx" / "dev-en.tsv",), hold_out=0.25, seeds=(3, 5)
    )
    outcome = evaluate_pawsx(model, tmp_path, ["xx"], options)
    assert [(score.language, score.seed) for score in outcome.scores] == [
        (language, seed) for language in ("xx", "mean") for seed in (3, 5, None)
    ]
    with pytest.raises(DataError, match=r"expected train-en\.tsv"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, train=()))
    with pytest.raises(DataError, match=r"expected rows enough to hold out 0\.999 of them, got 24"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, hold_out=0.999))
    bare = tmp_path / "bare.tsv"
    tiny_tasks.write_pairs(bare, tiny_tasks.paraphrase_rows(3, 0), labels=False)
    with pytest.raises(DataError, match="expected labels in the English train rows, got none"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, train=(bare,)))


def test_resuming_a_killed_run_gives_the_same(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in mid-epoch, after a checkpoint and while writing the next: the rest is as if nothing had happened."""
    tiny_tasks.write_task(tmp_path, "udpos")
    # The later, the better: what is compared has gone through all steps.
    monkeypatch.setattr(WordHead, "score", lambda *_: time.monotonic())
    options = dataclasses.replace(
        QUICK, max_steps=18, accumulation=2, evaluate_every=5, checkpoint_every=4, output=tmp_path / "unbroken"
    )
    unbroken = evaluate_udpos(model, tmp_path, ["xx"], options)

    killed = dataclasses.replace(options, output=tmp_path / "killed")
    folder = tmp_path / "killed" / "udpos" / "seed-1"
    save = finetune._Keeper.on_save

    def kill(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 12:
            (folder / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")
            raise KeyboardInterrupt
        save(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(finetune._Keeper, "on_save", kill)
        with pytest.raises(KeyboardInterrupt):
            evaluate_udpos(model, tmp_path, ["xx"], killed)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    assert kept.last_checkpoint(folder) == folder / "checkpoint-8"

    assert evaluate_udpos(model, tmp_path, ["xx"], killed) == unbroken
    runs = [tmp_path / name / "udpos" / "seed-1" for name in ("unbroken", "killed")]
    assert (runs[0] / "best-18" / "model.safetensors").read_bytes() == (
        runs[1] / "best-18" / "model.safetensors"
    ).read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    options = dataclasses.replace(QUICK, max_steps=3, output=tmp_path / "runs")
    first = evaluate_pawsx(model, tmp_path, ["xx"], options)
    monkeypatch.setattr(finetune._Finetuner, "train", None)
    assert evaluate_pawsx(model, tmp_path, ["xx"], options) == first
    with pytest.raises(
        ValueError, match=r"run with the same settings, got one with learning_rate 0\.004 instead of 0\.1"
    ):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, learning_rate=0.1))
    tiny_tasks.write_pairs(tmp_path / "pawsx" / "dev-en.tsv", tiny_tasks.paraphrase_rows(24, 9))
    with pytest.raises(ValueError, match="got one with dev"):
        evaluate_pawsx(model, tmp_path, ["xx"], options)


def test_the_best_step_on_dev_is_kept_the_earlier_of_two(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.2])
    monkeypatch.setattr(PairHead, "score", lambda *_: next(scores))
    options = dataclasses.replace(QUICK, max_steps=9, evaluate_every=2, output=tmp_path / "runs")
    evaluate_pawsx(model, tmp_path, ["xx"], options)
    folder = tmp_path / "runs" / "pawsx" / "seed-1"
    assert kept.best(folder) == (folder / "best-4", 0.7)
    assert [path.name for path in folder.glob("best*")] == ["best-4"]
    # Nothing is left of the checkpoints, and the fifth score, of the last step, was asked for.
    assert list(folder.glob("checkpoint-*")) == []
    assert next(scores, None) is None


@pytest.mark.parametrize("unit", ["pair", "word"])
def test_accumulated_parts_make_the_step_of_the_whole_batch(tmp_path: Path, unit: str) -> None:
    """Pairs exactly; words as XTREME averages, over parts, so sentences of one length are compared."""
    model = tiny_tasks.save_model(tmp_path / "model", dropout=0.0)
    rows: list[Any]
    head: Any
    if unit == "pair":
        head, rows = PairHead(PAWSX.labels), [LabelledPair(*row) for row in tiny_tasks.paraphrase_rows(16, 1)]
    else:
        head = WordHead(PANX.labels, prefixed=True)
        columns = (tuple(zip(*sentence, strict=True)) for sentence in tiny_tasks.entity_sentences(16, 1))
        rows = [TaggedSentence(words, tags) for words, tags in columns]
    weights = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        finetune.finetune(
            model,
            head,
            rows,
            rows,
            {},
            dataclasses.replace(QUICK, max_steps=3, learning_rate=1e-3, accumulation=parts),
            seed=1,
            folder=folder,
            settings={},
        )
        found = kept.best(folder)
        assert found is not None
        trained = load_model(str(found[0]), head)
        weights.append(torch.cat([value.flatten() for value in trained.state_dict().values()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-5)


def test_refused_settings(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    for changes, message in (
        ({"max_length": 65}, "expected max_length at most 64, the wordpieces that .* takes, got 65"),
        ({"accumulation": 3}, "expected a batch_size that 1 processes times 3 accumulated parts divide, got 16"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(QUICK, **changes))
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((Path(model) / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((Path(model) / name).read_text())
    with pytest.raises(ValueError, match="expected a transformer encoder with its weights as safetensors"):
        evaluate_pawsx(str(tmp_path), tmp_path, ["xx"], QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "expected batch_size at least 1, got 0"),
        ({"max_steps": 0}, "expected max_steps at least 1, got 0"),
        ({"learning_rate": 0.0}, "expected learning_rate above 0"),
        ({"warmup_steps": -1}, "expected warmup_steps at least 0"),
        ({"hold_out": 1.0}, "expected hold_out at least 0 and below 1"),
        ({"hold_out": 0.1, "dev": ("dev.tsv",)}, "expected either dev files or hold_out"),
        ({"seeds": (1, 1)}, "expected seeds, each once"),
        ({"seeds": ()}, "expected seeds, each once"),
        ({"precision": "fp16"}, "expected precision 'fp32' or 'bf16'"),
    ],
)
def test_refused_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneOptions(**changes)


def test_defaults_are_xtremes() -> None:
    """scripts/train_xnli.sh, train_pawsx.sh, train_udpos.sh and train_panx.sh for mBERT: 8 times 4 items a step."""
    assert {name: (options.epochs, options.evaluate_every) for name, options in XTREME_OPTIONS.items()} == {
        "xnli": (5, 100),
        "pawsx": (5, 200),
        "udpos": (10, 500),
        "panx": (10, 1000),
    }
    for options in XTREME_OPTIONS.values():
        assert (options.learning_rate, options.batch_size, options.max_length) == (2e-5, 32, 128)
        assert (options.weight_decay, options.warmup_steps, options.clip, options.seeds) == (0.0, 0, 1.0, (1,))


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
        # Each word is numbered, the number set at its first piece alone, and read back.
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
    monkeypatch.setattr("ctloss.evaluate.classification.CHUNK", chunk)
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


def test_bfloat16(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "panx")
    options = dataclasses.replace(QUICK, precision="bf16")
    assert value(evaluate_panx(model, tmp_path, ["xx"], options), "xx", "f1", "") > 0.9


def test_accuracy_and_majority() -> None:
    assert accuracy(["0", "1", "1"], ["0", "0", "1"]) == pytest.approx(2 / 3)
    assert majority_accuracy(["0", "1", "1", "1"]) == 0.75
    with pytest.raises(ValueError, match="expected as many predictions as labels, at least 1, got 1 for 2"):
        accuracy(["0", "1"], ["0"])
    with pytest.raises(ValueError, match="got 0 for 0"):
        accuracy([], [])


def runs(tags: tuple[str, ...] | list[str]) -> set[tuple[str, int, int]]:
    """The chunks of unprefixed tags, written down anew: runs of one tag, SCONJ and SYM alone."""
    found, start = set(), 0
    for end in range(1, len(tags) + 1):
        if end == len(tags) or tags[end] != tags[start] or tags[start][0] == "S":
            found.add((tags[start], start, end))
            start = end
    return found


def f1_of_runs(gold: list[list[str]], predicted: list[list[str]]) -> float:
    sides = [{(i, *run) for i, tags in enumerate(side) for run in runs(tags)} for side in (gold, predicted)]
    return 2 * len(sides[0] & sides[1]) / (len(sides[0]) + len(sides[1]))


def test_parts_of_speech_by_hand() -> None:
    """Gold chunks: CCONJ, NOUN NOUN, PUNCT; predicted: SCONJ, NOUN, VERB, PUNCT. One is common: 2 / (3 + 4)."""
    gold, predicted = [["CCONJ", "NOUN", "NOUN", "PUNCT"]], [["SCONJ", "NOUN", "VERB", "PUNCT"]]
    assert pos_f1(gold, predicted) == pytest.approx(2 / 7)
    assert token_accuracy(gold, predicted) == 0.5


def test_cconj_and_sconj_are_two_parts_of_speech() -> None:
    """The installed seqeval, given tags as they are, makes them one; XTREME's score keeps them apart."""
    from seqeval.metrics import f1_score

    gold, predicted = [["CCONJ", "NOUN"]], [["SCONJ", "NOUN"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert f1_score(gold, predicted) == 1.0
    assert pos_f1(gold, predicted) == 0.5
    assert pos_f1(gold, gold) == 1.0
    # Two of SCONJ stand alone, each a chunk; two of CCONJ are one.
    assert pos_f1([["SCONJ", "SCONJ"]], [["SCONJ", "X"]]) == 0.5
    assert pos_f1([["CCONJ", "CCONJ"]], [["CCONJ", "X"]]) == 0.0


def test_parts_of_speech_against_runs() -> None:
    draw = random.Random(1)
    for _ in range(50):
        gold = [[draw.choice(UPOS) for _ in range(draw.randrange(1, 20))] for _ in range(5)]
        predicted = [[tag if draw.random() < 0.7 else draw.choice(UPOS) for tag in tags] for tags in gold]
        assert pos_f1(gold, predicted) == pytest.approx(f1_of_runs(gold, predicted), abs=1e-12)
        flat = [[tag for tags in side for tag in tags] for side in (gold, predicted)]
        assert token_accuracy(gold, predicted) == accuracy_score(*flat)


def test_entities_by_hand_and_by_seqeval() -> None:
    """Gold: PER at 0-1, LOC at 3. Predicted: PER at 0-1, LOC at 3 and at 4. F1 = 2 * 2 / (2 + 3)."""
    gold = [["B-PER", "I-PER", "O", "B-LOC", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]]
    assert entity_f1(gold, predicted) == pytest.approx(0.8)
    assert entity_f1([["O"]], [["O"]]) == 0.0
    from seqeval.metrics import f1_score

    draw = random.Random(2)
    gold, predicted = ([[draw.choice(PANX.labels) for _ in range(9)] for _ in range(30)] for _ in range(2))
    assert entity_f1(gold, predicted) == f1_score(gold, predicted)
    with pytest.raises(ValueError, match="expected 9 tags in sentence 0, got 8"):
        entity_f1(gold, [gold[0][:8], *gold[1:]])
    with pytest.raises(ValueError, match="expected as many sentences as gold ones, at least 1, got 29 for 30"):
        entity_f1(gold, gold[1:])


def test_submission_files(tmp_path: Path) -> None:
    lines = submission_lines([["DET", "NOUN"], ["PUNCT"]])
    (path,) = write_submission(tmp_path, "udpos", {"de": lines})
    assert path == tmp_path / "udpos" / "test-de.tsv"
    assert path.read_bytes() == b"DET\nNOUN\n\nPUNCT\n"
    write_submission(tmp_path, "xnli", {"fr": ["neutral", "entailment"]})
    assert (tmp_path / "xnli" / "test-fr.tsv").read_text() == "neutral\nentailment\n"
    with pytest.raises(ValueError, match="expected the two-letter code of a language"):
        write_submission(tmp_path, "tatoeba", {"deu": ["1"]})
    with pytest.raises(ValueError, match="expected a task of xnli"):
        write_submission(tmp_path, "ner", {"de": ["O"]})
    with pytest.raises(ValueError, match="line 2: expected one line"):
        write_submission(tmp_path, "xnli", {"de": ["neutral", "neu\ntral"]})


def test_means_and_spread() -> None:
    scores = [
        Score("xnli", language, "accuracy", value, seed)
        for seed, values in ((1, (0.4, 0.6)), (2, (0.6, 0.8)))
        for language, value in zip(("de", "fr"), values, strict=True)
    ]
    means = [spread for spread in over_seeds(with_means(scores)) if spread.language == "mean"]
    assert [(round(spread.mean, 12), spread.runs) for spread in means] == [(0.6, 2)]
    assert means[0].deviation == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert over_seeds(scores[:1])[0].deviation is None
