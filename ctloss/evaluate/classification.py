"""XNLI and PAWS-X: labels of sentence pairs, fine-tuned on English, by accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import extra as extra
from .options import FinetuneOptions
from .score import Outcome, Score
from .spread import with_means
from .tasks import PAWSX, XNLI, LabelledPair, Row, Task
from .zeroshot import transfer

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from .head import Encoded, Features

MAJORITY = "majority class"
CHUNK = 5000


def evaluate_xnli(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English NLI and measures accuracy on XNLI (Conneau et al. 2018) in every language.

    Args:
        model: name or folder of a Hugging Face encoder.
        data: folder, or ``"hub:NAME"``; see :func:`ctloss.evaluate.labelled.read_split`.
        languages: codes; None for all that the data have.
        options: None for XTREME's; of MultiNLI's 392,702 training items, fewer can be given by name.

    Returns:
        Accuracy by language and seed, beside it that of always answering the test set's most frequent label, and their
        means over languages; none where the test set has no labels. Predictions are the first seed's.

    Raises:
        DataError: a file is missing or malformed.
        ValueError: see :func:`ctloss.evaluate.finetune.finetune`.
    """
    return _evaluate(model, data, XNLI, languages, options)


def evaluate_pawsx(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English PAWS and measures accuracy on PAWS-X (Yang et al. 2019); see :func:`evaluate_xnli`."""
    return _evaluate(model, data, PAWSX, languages, options)


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Returns the share of equal labels.

    Raises:
        ValueError: the sequences differ in length or are empty.

    Example:
        >>> accuracy(["a", "b", "b", "a"], ["a", "b", "a", "a"])
        0.75
    """
    if not gold or len(gold) != len(predicted):
        raise ValueError(f"expected as many predictions as labels, at least 1, got {len(predicted)} for {len(gold)}")
    return sum(one == other for one, other in zip(gold, predicted, strict=True)) / len(gold)


def majority_accuracy(gold: Sequence[str]) -> float:
    """Returns the accuracy of always answering the most frequent label.

    Example:
        >>> majority_accuracy(["a", "b", "b", "a", "b"])
        0.6
    """
    return max(Counter(gold).values()) / len(gold)


@dataclass(frozen=True)
class PairHead:
    """A label of a pair of sentences; the best step is chosen by accuracy."""

    labels: tuple[str, ...]

    @property
    def model_class(self) -> Any:
        """The class of transformers that puts such a head on an encoder."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """How the tokenizer is to be loaded."""
        return {}

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Encoded:
        """Returns pairs as the model reads them; of a pair that is too long, the longer sentence is cut."""
        from tqdm import tqdm

        from .head import Encoded

        pairs = [row for row in rows if isinstance(row, LabelledPair)]
        read: list[Features] = []
        # Not all at once: what the tokenizer knows of every wordpiece besides its id takes gigabytes for MultiNLI.
        for start in tqdm(range(0, len(pairs), CHUNK), desc="tokenizing", disable=len(pairs) <= CHUNK):
            chunk = pairs[start : start + CHUNK]
            batch: dict[str, Any] = dict(
                tokenizer(
                    [pair.first for pair in chunk],
                    [pair.second for pair in chunk],
                    truncation="longest_first",
                    max_length=max_length,
                )
            )
            read += [{name: values[index] for name, values in batch.items()} for index in range(len(chunk))]
        for row, pair in zip(read, pairs, strict=True):
            if pair.label is not None:
                row["labels"] = self.labels.index(pair.label)
        order = sorted(range(len(pairs)), key=lambda index: -len(read[index]["input_ids"]))

        def decode(predicted: np.ndarray) -> list[str]:
            answers = [""] * len(order)
            for index, number in zip(order, predicted, strict=True):
                answers[index] = self.labels[int(number)]
            return answers

        return Encoded([read[index] for index in order], decode)

    def score(self, rows: Sequence[Row], predicted: Sequence[str]) -> float:
        """Returns the accuracy."""
        return accuracy(_labels(rows), predicted)


def _labels(rows: Sequence[Row]) -> list[str]:
    return [row.label for row in rows if isinstance(row, LabelledPair) and row.label is not None]


def _evaluate(
    model: str, data: str | Path, task: Task, languages: Sequence[str] | None, options: FinetuneOptions | None
) -> Outcome:
    rows, predicted = transfer(model, data, task, PairHead(task.labels), languages, options)
    scores = []
    for language, tests in rows.items():
        gold = _labels(tests)
        if gold:
            for seed, answers in predicted.items():
                scores.append(Score(task.name, language, "accuracy", accuracy(gold, answers[language]), seed))
            scores.append(Score(task.name, language, "accuracy", majority_accuracy(gold), about=MAJORITY))
    return Outcome(with_means(scores), next(iter(predicted.values())))
