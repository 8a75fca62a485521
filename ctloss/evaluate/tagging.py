"""Parts of speech (UD) and named entities (PAN-X): tags of words, fine-tuned on English, by F1 of chunks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import extra as extra
from .classification import accuracy
from .options import FinetuneOptions
from .score import Outcome, Score
from .spread import with_means
from .tasks import PANX, UDPOS, Row, TaggedSentence, Task
from .zeroshot import transfer

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from .head import Encoded, Features

Tags = Sequence[Sequence[str]]


def evaluate_udpos(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English parts of speech and measures :func:`pos_f1` in every language.

    Args:
        model: name or folder of a Hugging Face encoder.
        data: folder, or ``"hub:NAME"``; see :func:`ctloss.evaluate.labelled.read_split`.
        languages: codes; None for all that the data have.
        options: None for XTREME's.

    Returns:
        F1 and the share of rightly tagged words by language and seed, and their means over languages; none where the
        test set has no tags. Predictions are the first seed's.

    Raises:
        DataError: a file is missing or malformed.
        ValueError: see :func:`ctloss.evaluate.finetune.finetune`.
    """
    return _evaluate(model, data, UDPOS, languages, options)


def evaluate_panx(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English named entities and measures :func:`entity_f1` in every language; see
    :func:`evaluate_udpos`."""
    return _evaluate(model, data, PANX, languages, options)


def entity_f1(gold: Tags, predicted: Tags) -> float:
    """Returns the F1 of entities, over all sentences: one counts where its first word, last word and kind are right.

    Example:
        >>> entity_f1([["B-PER", "I-PER", "O"], ["B-LOC"]], [["B-PER", "I-PER", "O"], ["B-ORG"]])
        0.5
    """
    from seqeval.metrics import f1_score

    _check_shapes(gold, predicted)
    with warnings.catch_warnings():
        # With no entity at all on one side F1 is 0, which needs no warning.
        warnings.simplefilter("ignore")
        return float(f1_score([list(tags) for tags in gold], [list(tags) for tags in predicted]))


def pos_f1(gold: Tags, predicted: Tags) -> float:
    """Returns XTREME's score of parts of speech: the F1 of chunks that seqeval finds in tags without prefix.

    A chunk is then an unbroken run of one tag, except that SCONJ and SYM always stand alone: their S is read as that of
    a single-word chunk. Since version 1.0, seqeval takes the first letter of a tag without prefix for its prefix, so
    that CCONJ and SCONJ become one kind; up to 0.0.12 the kind was the whole tag. Handing over the first letter, a
    hyphen and the tag makes any version score as the old one did.

    Example:
        >>> pos_f1([["CCONJ", "NOUN", "NOUN", "PUNCT"]], [["SCONJ", "NOUN", "NOUN", "PUNCT"]])
        0.66...
    """
    return entity_f1(*([[f"{tag[0]}-{tag}" for tag in tags] for tags in side] for side in (gold, predicted)))


def token_accuracy(gold: Tags, predicted: Tags) -> float:
    """Returns the share of words, of all sentences together, with the right tag.

    Example:
        >>> token_accuracy([["NOUN", "VERB"], ["X", "X"]], [["NOUN", "NOUN"], ["X", "X"]])
        0.75
    """
    _check_shapes(gold, predicted)
    return accuracy(list(chain.from_iterable(gold)), list(chain.from_iterable(predicted)))


@dataclass(frozen=True)
class WordHead:
    """A tag of every word, on its first wordpiece; the best step is chosen by the task's F1.

    Args:
        labels: all tags.
        prefixed: whether tags say where a chunk begins (``B-PER``).
    """

    labels: tuple[str, ...]
    prefixed: bool

    @property
    def model_class(self) -> Any:
        """The class of transformers that puts such a head on an encoder."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """How the tokenizer is to be loaded: words are cut one by one, as they would be after a space."""
        return {"add_prefix_space": True}

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Encoded:
        """Returns sentences as windows that the model reads; no word is left out."""
        from .head import Encoded
        from .pieces import WordPieces, join

        sentences = [row for row in rows if isinstance(row, TaggedSentence)]
        windows = WordPieces(tokenizer, max_length).windows([sentence.words for sentence in sentences])
        windows.sort(key=lambda window: -len(window.ids))
        features: list[Features] = []
        for window in windows:
            features.append({"input_ids": list(window.ids), "attention_mask": [1] * len(window.ids)})
            if (tags := sentences[window.sentence].tags) is not None:
                features[-1]["labels"] = window.labels([self.labels.index(tag) for tag in tags])

        def decode(predicted: np.ndarray) -> list[list[str]]:
            numbers = join(windows, predicted, [len(sentence.words) for sentence in sentences])
            return [[self.labels[number] for number in sentence] for sentence in numbers]

        return Encoded(features, decode)

    def f1(self, gold: Tags, predicted: Tags) -> float:
        """Returns the task's F1."""
        return (entity_f1 if self.prefixed else pos_f1)(gold, predicted)

    def score(self, rows: Sequence[Row], predicted: Tags) -> float:
        """Returns the task's F1."""
        return self.f1(_tags(rows), predicted)


def submission_lines(tags: Tags) -> list[str]:
    """Returns the lines of a submission: a tag a line, an empty line between sentences.

    Example:
        >>> submission_lines([["NOUN", "VERB"], ["X"]])
        ['NOUN', 'VERB', '', 'X']
    """
    lines = [line for sentence in tags for line in (*sentence, "")]
    return lines[:-1]


def _tags(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [row.tags for row in rows if isinstance(row, TaggedSentence) and row.tags is not None]


def _check_shapes(gold: Tags, predicted: Tags) -> None:
    if not gold or len(gold) != len(predicted):
        raise ValueError(f"expected as many sentences as gold ones, at least 1, got {len(predicted)} for {len(gold)}")
    for number, (one, other) in enumerate(zip(gold, predicted, strict=True)):
        if len(one) != len(other):
            raise ValueError(f"expected {len(one)} tags in sentence {number}, got {len(other)}")


def _evaluate(
    model: str, data: str | Path, task: Task, languages: Sequence[str] | None, options: FinetuneOptions | None
) -> Outcome:
    head = WordHead(task.labels, prefixed=task is PANX)
    rows, predicted = transfer(model, data, task, head, languages, options)
    scores = []
    for language, tests in rows.items():
        gold = _tags(tests)
        if gold:
            for seed, answers in predicted.items():
                scores.append(Score(task.name, language, "f1", head.f1(gold, answers[language]), seed))
                right = token_accuracy(gold, answers[language])
                scores.append(Score(task.name, language, "accuracy", right, seed, about="words"))
    first = next(iter(predicted.values()))
    return Outcome(with_means(scores), {language: submission_lines(tags) for language, tags in first.items()})
