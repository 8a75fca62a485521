"""Scores of labelled tasks by hand and against seqeval and scikit-learn, and the submission's files."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from ctloss.evaluate import Score, over_seeds, write_submission
from ctloss.evaluate.data.labelled import PANX, UPOS
from ctloss.evaluate.results.scores import with_means
from ctloss.evaluate.tasks.classification import accuracy, majority_accuracy
from ctloss.evaluate.tasks.tagging import entity_f1, pos_f1, submission_lines, token_accuracy


def test_accuracy_and_majority() -> None:
    assert accuracy(["0", "1", "1"], ["0", "0", "1"]) == pytest.approx(2 / 3)
    assert majority_accuracy(["0", "1", "1", "1"]) == 0.75
    with pytest.raises(ValueError, match="expected as many predictions as labels, at least 1, got 1 for 2"):
        accuracy(["0", "1"], ["0"])
    with pytest.raises(ValueError, match="got 0 for 0"):
        accuracy([], [])


def runs(tags: tuple[str, ...] | list[str]) -> set[tuple[str, int, int]]:
    """The chunks of tags without prefixes, by definition: runs of one tag, with SCONJ and SYM always by themselves."""
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
    # Two SCONJ are two chunks; two CCONJ are one.
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
    for task, predictions, message in (
        ("tatoeba", {"deu": ["1"]}, "expected the two-letter code of a language"),
        ("ner", {"de": ["O"]}, "expected a task of xnli"),
        ("xnli", {"de": ["neutral", "neu\ntral"]}, "line 2: expected one line"),
    ):
        with pytest.raises(ValueError, match=message):
            write_submission(tmp_path, task, predictions)


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
