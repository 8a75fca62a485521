"""Zero-shot transfer of labelled tasks from English, and the tasks that label sentence pairs: XNLI and PAWS-X."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...shared.models import load_tokenizer
from ...shared.text import DataError
from ..data.labelled import PAWSX, XNLI, LabelledPair, Row, TaggedSentence, Task, is_labelled, read_files
from ..data.sources import digest_of_model, read_split
from ..models.encoder import EmptySentence
from ..models.options import XTREME_OPTIONS, FinetuneOptions
from ..results.items import Items, digest_of_items
from ..results.scores import MAJORITY, Outcome, Score, with_means

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from ..models.finetune import Encoded, Features, Head

# Pairs tokenized at a time.
CHUNK = 5000
# How a run may differ from the one it resumes: of the files, only the rows they hold are compared.
NOT_COMPARED = frozenset(
    {"seeds", "train", "dev", "hold_out", "test_split", "output", "evaluation_batch_size", "checkpoint_every"}
)


def transfer(
    model: str,
    data: str | Path,
    task: Task,
    head: Head,
    languages: Sequence[str] | None,
    options: FinetuneOptions | None,
) -> tuple[dict[str, list[Row]], dict[int, dict[str, list[Any]]]]:
    """Fine-tunes on English once per seed and predicts the test rows of every language.

    The other arguments are those of :func:`evaluate_xnli`.

    Returns:
        The test rows by language, and by seed and language one prediction per row.

    Raises:
        DataError: a file is missing or malformed.
        ValueError: see :func:`ctloss.evaluate.models.finetune.finetune`.
    """
    options = options or XTREME_OPTIONS[task.name]
    # All files are read before anything is trained, so that a malformed one shows at once and not after hours.
    tests = read_split(data, task, options.test_split, languages)
    train, dev = english_rows(data, task, options)
    _refuse_empty(load_tokenizer(model), chain(train, dev, *tests.values()))
    if options.output is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("expected an output folder that all processes share, got None; name one")
    from ..models.finetune import finetune

    settings = {
        **{name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_COMPARED},
        "task": task.name,
        "model": digest_of_model(model),
        "train": _digest(train),
        "dev": _digest(dev),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.output is None else Path(options.output) / task.name
        return tests, {
            seed: finetune(
                model,
                head,
                train,
                dev,
                tests,
                options,
                seed=seed,
                folder=folder / f"seed-{seed}",
                settings={**settings, "seed": seed},
            )
            for seed in options.seeds
        }


def _digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()


def _refuse_empty(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]) -> None:
    for number, row in enumerate(row for row in rows if not isinstance(row, TaggedSentence)):
        for text in (row.first, row.second) if isinstance(row, LabelledPair) else (row.question, row.context):
            # Letters and digits always have a token: few texts need a closer look.
            if not any(map(str.isalnum, text)) and not tokenizer(text, add_special_tokens=False)["input_ids"]:
                raise EmptySentence(text, number, row.place)


def english_rows(data: str | Path, task: Task, options: FinetuneOptions) -> tuple[list[Row], list[Row]]:
    """Returns the English rows to train on, and those that choose the best step.

    For questions there are none of the latter unless asked for: XTREME takes the last step.

    Raises:
        DataError: they have no labels, or are too few to hold any out.
    """

    def rows(files: Sequence[str | Path], split: str) -> list[Row]:
        found = (
            read_files([Path(file) for file in files], task) if files else read_split(data, task, split, ["en"])["en"]
        )
        if not is_labelled(found):
            raise DataError(
                f"{', '.join(map(str, files)) or data}: expected labels in the English {split} rows, got none; use "
                "labelled files"
            )
        return found

    train = rows(options.train, "train")
    if not options.hold_out:
        return train, rows(options.dev, "dev") if options.dev or task.unit != "question" else []
    trained, held_out = _split(train, options.hold_out)
    if not (trained and held_out):
        raise DataError(
            f"{', '.join(map(str, options.train)) or data}: expected enough rows to hold out {options.hold_out} "
            f"of them, got {len(train)}; give more rows, or dev files"
        )
    return trained, held_out


def _split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Splits rows by their text only: equal texts stay together, and the order of the file does not matter."""

    def place(row: Row) -> str:
        if isinstance(row, TaggedSentence):
            text = " ".join(row.words)
        else:
            text = row.first if isinstance(row, LabelledPair) else row.context
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    places = list(map(place, rows))
    # Rows whose places are up to this one are held out.
    number = round(share * len(rows))
    last = sorted(places)[number - 1] if number else ""
    return (
        [row for row, at in zip(rows, places, strict=True) if at > last],
        [row for row, at in zip(rows, places, strict=True) if at <= last],
    )


def evaluate_xnli(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English NLI and measures accuracy on XNLI (Conneau et al. 2018) in every language.

    Args:
        model: name or folder of a Hugging Face encoder.
        data: folder, or ``"hub:NAME"``; see :func:`ctloss.evaluate.data.sources.read_split`.
        languages: codes; None for all that the data have.
        options: None for XTREME's. ``train`` can name a file with fewer than MultiNLI's 392,702 training items.

    Returns:
        Accuracy by language and seed, the accuracy of always answering the test set's most frequent label, and their
        means over languages; no scores where the test set has no labels. Predictions are the first seed's.

    Raises:
        DataError: a file is missing or malformed.
        ValueError: see :func:`ctloss.evaluate.models.finetune.finetune`.
    """
    return _evaluate(model, data, XNLI, languages, options)


def evaluate_pawsx(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English PAWS and measures accuracy on PAWS-X (Yang et al. 2019); see :func:`evaluate_xnli`."""
    return _evaluate(model, data, PAWSX, languages, options)


def warn_unlabelled(task: Task, language: str) -> None:
    """Warns that a language gets predictions but no score."""
    warnings.warn(
        f"{task.name}: the test rows in {language!r} have no labels: there are predictions but no score", stacklevel=3
    )


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
    """Labels pairs of sentences; the best step is chosen by accuracy."""

    labels: tuple[str, ...]
    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    tokenizer_options: ClassVar[Mapping[str, Any]] = {}

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Encoded:
        """Returns pairs as the model reads them; in a pair that is too long, the longer sentence is cut."""
        from tqdm import tqdm

        from ..models.finetune import Encoded

        pairs = [row for row in rows if isinstance(row, LabelledPair)]
        read: list[Features] = []
        # In chunks: for MultiNLI, what the tokenizer records of every wordpiece along with its id takes gigabytes.
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
    import numpy as np

    scores = []
    items = []
    for language, tests in rows.items():
        gold = _labels(tests)
        if not gold:
            warn_unlabelled(task, language)
        else:
            for seed, answers in predicted.items():
                scores.append(Score(task.name, language, "accuracy", accuracy(gold, answers[language]), seed))
                hits = np.array([one == other for one, other in zip(gold, answers[language], strict=True)])
                aligned = task.name if task.parallel else ""
                items.append(Items(language, "accuracy", digest_of_items(tests), hits, seed=seed, aligned=aligned))
            scores.append(Score(task.name, language, "accuracy", majority_accuracy(gold), about=MAJORITY))
    return Outcome(with_means(scores), next(iter(predicted.values())), items)
