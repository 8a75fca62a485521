"""Fine-tuning on questions end to end: answers are found after it, also in later windows, and what comes out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import fmean

import pytest
from transformers import ByT5Tokenizer

from ctloss.evaluate import (
    DataError,
    FinetuneOptions,
    QuestionOptions,
    answer_score,
    evaluate_mlqa,
    evaluate_tydiqa,
    evaluate_xquad,
    write_submission,
)
from ctloss.evaluate.data.labelled import XQUAD
from ctloss.evaluate.data.questions import Question, read_squad
from ctloss.evaluate.models import finetune
from ctloss.evaluate.models.options import XTREME_OPTIONS
from ctloss.evaluate.tasks.classification import english_rows
from ctloss.evaluate.tasks.questions import SpanHead
from ctloss.shared.models import load_tokenizer
from support import tiny_tasks
from support.tiny_results import value

pytestmark = pytest.mark.numeric

QUICK = QuestionOptions(learning_rate=2e-3, max_steps=80, warmup_steps=5, max_length=24)
Facts = dict[str, list[tuple[str, str, str]]]


def written(path: Path, rows: list[tuple[str, str, str]], **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tiny_tasks.squad_text(rows, **how), encoding="utf-8")
    return path


def test_answers_are_learnt_from_english_and_found_in_another_language(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_questions(tmp_path)
    outcome = evaluate_xquad(model, tmp_path / "xquad", options=dataclasses.replace(QUICK, output=tmp_path / "out"))
    for path in write_submission(tmp_path / "submission", "xquad", outcome.predictions):
        language = path.stem.removeprefix("test-")
        answers = json.loads(path.read_text(encoding="utf-8"))
        rows = read_squad(tmp_path / "xquad" / f"xquad.{language}.json")
        assert list(answers) == [row.id for row in rows]
        for metric in ("f1", "exact_match"):
            expected = [getattr(answer_score(answers[row.id], [row.answers[0][0]]), metric) for row in rows]
            [items] = [one for one in outcome.items if (one.language, one.metric) == (language, metric)]
            assert items.numerators.tolist() == expected
            assert items.aligned == "xquad"
            assert value(outcome, language, metric, seed=1) == pytest.approx(fmean(expected)) == items.value > 0.9
    means = [score.metric for score in outcome.scores if score.language == "mean"]
    assert means == ["f1", "exact_match"]
    # Without dev files the last step is kept, as in XTREME.
    assert [path.name for path in (tmp_path / "out" / "xquad" / "seed-1").glob("best*")] == ["best-80"]


def test_answers_in_later_windows_in_several_scripts(tmp_path: Path, reader: Path, facts: Facts) -> None:
    """Overfitted on the tested questions, so that what is asked is only whether spans are read and told right."""
    filler = {"en": "u v w x y z " * 2, "zh": "五月在河边，" * 2, "ar": "في أيار . " * 4}
    rows = {
        language: [
            (question, f"{filler[language]}{text} {filler[language]}", answer) for question, text, answer in part
        ]
        for language, part in facts.items()
    }
    for language, part in rows.items():
        written(tmp_path / "mlqa" / f"test-context-{language}-question-{language}.json", part)
    train = written(tmp_path / "train.json", [row for part in rows.values() for row in part])
    options = dataclasses.replace(QUICK, train=(train,), doc_stride=6, max_length=20)
    outcome = evaluate_mlqa(str(reader), tmp_path, options=options)
    found = {language: list(json.loads("".join(lines)).values()) for language, lines in outcome.predictions.items()}
    assert found == {language: [answer for *_, answer in part] for language, part in facts.items()}
    assert {value(outcome, language, "exact_match", seed=1) for language in facts} == {1.0}


def test_marks_of_answers_in_the_features(reader: Path, facts: Facts) -> None:
    """Every window of a question is marked: with the answer where it has it, else at the first token."""
    head = SpanHead(XQUAD.labels, doc_stride=3, max_question_length=64, max_answer_length=30, n_best=20)
    tokenizer = load_tokenizer(reader)
    for question, text, answer in [row for part in facts.values() for row in part]:
        rows = [Question("a", question, text, ((answer, text.index(answer)), ("Mira", 0)))]
        marked = []
        for features in head.encode(tokenizer, rows, 15).features:
            low, high = features["start_positions"], features["end_positions"]
            if low == 0:
                assert high == 0
            else:
                marked.append(tokenizer.convert_ids_to_tokens(features["input_ids"][low : high + 1]))
        assert marked
        assert all(pieces == tokenizer.tokenize(answer) for pieces in marked)


def test_dev_files_or_held_out_texts_choose_the_step(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tasks.write_questions(tmp_path)
    scores = iter([0.5, 0.7, 0.6])
    monkeypatch.setattr(SpanHead, "score", lambda *_: next(scores))
    dev = tmp_path / "xquad" / "xquad.en.json"
    options = dataclasses.replace(QUICK, dev=(dev,), max_steps=3, evaluate_every=1, output=tmp_path / "out")
    evaluate_tydiqa(model, tmp_path, ["de"], options)
    folder = tmp_path / "out" / "tydiqa" / "seed-1"
    assert finetune.best(folder) == (folder / "best-2", 0.7)
    with pytest.raises(ValueError, match="got one with doc_stride 128 instead of 64"):
        evaluate_tydiqa(model, tmp_path, ["de"], dataclasses.replace(options, doc_stride=64))
    # Questions about one text stay together.
    train, held = english_rows(tmp_path, XQUAD, dataclasses.replace(QUICK, hold_out=0.2))
    texts = [{row.context for row in rows if isinstance(row, Question)} for rows in (train, held)]
    assert texts[1]
    assert not texts[0] & texts[1]
    assert len(train) + len(held) == 192


def test_score_of_the_head_is_the_mean_f1() -> None:
    head = SpanHead(XQUAD.labels, 128, 64, 30, 20)
    rows = [Question("a", "?", "old bridge", (("old bridge", 0),)), Question("b", "?", "May", (("May", 0),))]
    assert head.score(rows, ["bridge", "June"]) == pytest.approx((2 / 3 + 0) / 2)


def test_a_test_set_without_answers_is_predicted_and_not_scored(tmp_path: Path, model: str) -> None:
    """As in XTREME's own download."""
    tiny_tasks.write_questions(tmp_path)
    written(tmp_path / "xquad" / "xquad.de.json", tiny_tasks.question_rows(5, 7), answers=False)
    outcome = evaluate_xquad(model, tmp_path, options=dataclasses.replace(QUICK, max_steps=1))
    assert {score.language for score in outcome.scores} == {"en", "mean"}
    assert {items.language for items in outcome.items} == {"en"}
    assert list(json.loads("".join(outcome.predictions["de"]))) == [f"q{number}" for number in range(5)]


def test_what_is_refused_before_training(tmp_path: Path, model: str, reader: Path, facts: Facts) -> None:
    tiny_tasks.write_questions(tmp_path)
    with pytest.raises(ValueError, match="expected QuestionOptions for xquad, got FinetuneOptions"):
        evaluate_xquad(model, tmp_path, options=FinetuneOptions())
    written(tmp_path / "mlqa" / "MLQA_V1" / "test" / "test-context-fr-question-fr.json", facts["en"])
    with pytest.raises(DataError, match=r"expected one of MLQA's languages .* got 'fr', for which it has no rules"):
        evaluate_mlqa(model, tmp_path, options=QUICK)
    train = written(tmp_path / "train.json", facts["en"], answers=False)
    with pytest.raises(DataError, match="expected labels in the English train rows, got none"):
        evaluate_xquad(model, tmp_path, options=dataclasses.replace(QUICK, train=(train,)))
    with pytest.raises(ValueError, match=r"expected max_length at most 64, .* got 384; lower it"):
        evaluate_xquad(model, tmp_path, options=dataclasses.replace(QUICK, max_length=384))
    written(tmp_path / "xquad" / "xquad.de.json", [("\ufffd\ufffd", "u v", "u")])
    with pytest.raises(DataError, match=r"qas\[0\] \(id 'q0'\): expected a sentence that the tokenizer reads"):
        evaluate_xquad(str(reader), tmp_path, options=QUICK)


def test_a_tokenizer_that_does_not_tell_places_is_refused(tmp_path: Path, reader: Path) -> None:
    tiny_tasks.write_questions(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "slow").mkdir(exist_ok=True)
        (tmp_path / "slow" / name).write_bytes((reader / name).read_bytes())
    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    with pytest.raises(ValueError, match="expected a fast tokenizer, which tells where words are, got ByT5Tokenizer"):
        evaluate_xquad(str(tmp_path / "slow"), tmp_path, options=QUICK)


def test_defaults_are_xtremes() -> None:
    """scripts/train_qa.sh for mBERT: steps of 8 times 4 windows; third_party/run_squad.py for what it leaves out."""
    for task in ("xquad", "mlqa", "tydiqa"):
        options = XTREME_OPTIONS[task]
        assert isinstance(options, QuestionOptions)
        assert (options.learning_rate, options.epochs, options.batch_size, options.max_length) == (3e-5, 3.0, 32, 384)
        assert (options.weight_decay, options.warmup_steps, options.clip) == (1e-4, 500, 1.0)
        assert (options.doc_stride, options.max_question_length) == (128, 64)
        assert (options.max_answer_length, options.n_best) == (30, 20)


@pytest.mark.parametrize("name", ["doc_stride", "max_question_length", "max_answer_length", "n_best"])
def test_refused_options(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        QuestionOptions(**{name: 0})
