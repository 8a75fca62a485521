"""The tasks that answer questions by a part of a text: XQuAD, MLQA and TyDiQA-GoldP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from ...shared.text import DataError
from ..data.labelled import MLQA, TYDIQA, XQUAD, Row, Task, find_files
from ..data.questions import Question
from ..models.options import XTREME_OPTIONS, FinetuneOptions, QuestionOptions
from ..results.items import Items, digest_of_items
from ..results.scores import Outcome, Score, with_means
from .answers import MLQA_LANGUAGES, AnswerScore, answer_score
from .classification import transfer, warn_unlabelled

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from ..models.finetune import Encoded


def evaluate_xquad(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: QuestionOptions | None = None
) -> Outcome:
    """Fine-tunes on English SQuAD and measures F1 and exact match on XQuAD (Artetxe et al. 2020) in every language.

    Args:
        model: name or folder of a Hugging Face encoder with a fast tokenizer, which tells where wordpieces stand.
        data: folder with XTREME's files, see docs/guide/question-answering.md.
        languages: codes; None for all that the data have.
        options: None for XTREME's. ``train`` names files in SQuAD 1.1's JSON instead of squad/train-v1.1.json.

    Returns:
        F1 and exact match by language and seed, best over the gold answers, with their means over languages, and in
        ``items`` those of every question in the order of the file; no scores where the test set has no answers.
        Predictions are the first seed's, as the lines of XTREME's test-LANGUAGE.json.

    Raises:
        DataError: a file is missing or malformed.
        ValueError: see :func:`ctloss.evaluate.models.finetune.finetune`.
    """
    return _evaluate(model, data, XQUAD, languages, options)


def evaluate_mlqa(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: QuestionOptions | None = None
) -> Outcome:
    """Like :func:`evaluate_xquad` on MLQA (Lewis et al. 2020), question and text in one language, by MLQA's rules."""
    known = languages or sorted(find_files(Path(data), MLQA, (options or XTREME_OPTIONS["mlqa"]).test_split))
    for language in known:
        if language not in MLQA_LANGUAGES:
            raise DataError(
                f"{data}: expected one of MLQA's languages {', '.join(MLQA_LANGUAGES)}, got {language!r}, for which "
                "it has no rules; leave it out, or score such files as XQuAD's"
            )
    return _evaluate(model, data, MLQA, languages, options)


def evaluate_tydiqa(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: QuestionOptions | None = None
) -> Outcome:
    """Like :func:`evaluate_xquad` on TyDiQA-GoldP (Clark et al. 2020), fine-tuned on its own English training file."""
    return _evaluate(model, data, TYDIQA, languages, options)


@dataclass(frozen=True)
class SpanHead:
    """Marks where an answer starts and where it ends; the best step is chosen by F1.

    ``doc_stride`` and the others are those of :class:`ctloss.evaluate.QuestionOptions`.
    """

    labels: tuple[str, ...]
    doc_stride: int
    max_question_length: int
    max_answer_length: int
    n_best: int
    model_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    # Windows are counted from the left.
    tokenizer_options: ClassVar[Mapping[str, Any]] = {"truncation_side": "right"}

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Encoded:
        """Returns the windows of questions that the model reads.

        Where the first gold answer starts and ends is marked; in a window without all of it, the first token is.
        """
        from ..models.finetune import Encoded
        from .windows import Windows, best_answers

        questions = [row for row in rows if isinstance(row, Question)]
        split = Windows(tokenizer, max_length, self.doc_stride, self.max_question_length)
        # A stable order: those of one question stay in the order of its text.
        windows = sorted(split.of(questions), key=lambda window: -len(window.inside))
        features = []
        for window in windows:
            features.append(dict(window.features))
            if answers := questions[window.row].answers:
                text, start = answers[0]
                begin, stop = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
                first = _first_token(tokenizer, window.features["input_ids"])
                low, high = window.places(begin, stop) or (first, first)
                features[-1] |= {"start_positions": low, "end_positions": high}

        def decode(predicted: Sequence[np.ndarray]) -> list[str]:
            starts, ends = predicted
            return best_answers(
                windows, starts, ends, questions, n_best=self.n_best, max_answer_length=self.max_answer_length
            )

        return Encoded(features, decode)

    def score(self, rows: Sequence[Row], predicted: Sequence[str]) -> float:
        """Returns the mean F1 by SQuAD's rules."""
        questions = [row for row in rows if isinstance(row, Question)]
        return fmean(
            answer_score(answer, [text for text, _ in row.answers]).f1
            for row, answer in zip(questions, predicted, strict=True)
        )


def submission_lines(questions: Sequence[Question], answers: Sequence[str]) -> list[str]:
    """Returns the lines of a submission: JSON, each answer by its question's id, in the order of the questions.

    Example:
        >>> submission_lines([Question("q1", "Who?", "The queen.", ())], ["The queen"])
        ['{', '  "q1": "The queen"', '}']
    """
    found = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    return json.dumps(found, ensure_ascii=False, indent=2).split("\n")


def _first_token(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> int:
    places = [] if tokenizer.cls_token_id is None else (ids == tokenizer.cls_token_id).nonzero()[0].tolist()
    return places[0] if places else 0


def _evaluate(
    model: str, data: str | Path, task: Task, languages: Sequence[str] | None, options: FinetuneOptions | None
) -> Outcome:
    options = options or XTREME_OPTIONS[task.name]
    if not isinstance(options, QuestionOptions):
        raise ValueError(f"expected QuestionOptions for {task.name}, got {type(options).__name__}; make those")
    head = SpanHead(
        task.labels, options.doc_stride, options.max_question_length, options.max_answer_length, options.n_best
    )
    import numpy as np

    rows, predicted = transfer(model, data, task, head, languages, options)
    questions = {language: [row for row in tests if isinstance(row, Question)] for language, tests in rows.items()}
    # XQuAD asks the same questions in every language.
    same = len({tuple(test.id for test in tests) for tests in questions.values()}) == 1
    scores: list[Score] = []
    items: list[Items] = []
    for language, tests in questions.items():
        if not tests[0].answers:
            warn_unlabelled(task, language)
            continue
        asked = digest_of_items(tests)
        for seed, answers in predicted.items():
            found = [
                answer_score(answer, [text for text, _ in test.answers], language if task is MLQA else None)
                for test, answer in zip(tests, answers[language], strict=True)
            ]
            for metric, values in zip(AnswerScore._fields, np.array(found).T, strict=True):
                scores.append(Score(task.name, language, metric, float(values.mean()), seed))
                items.append(Items(language, metric, asked, values, seed=seed, aligned=task.name if same else ""))
    first = next(iter(predicted.values()))
    lines = {language: submission_lines(tests, first[language]) for language, tests in questions.items()}
    return Outcome(with_means(scores), lines, items)
