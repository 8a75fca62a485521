"""The tasks that tag words, parts of speech (UD) and named entities (PAN-X), and the wordpieces that carry the tags."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..data.labelled import IGNORED, PANX, UDPOS, Row, TaggedSentence, Task
from ..models.options import FinetuneOptions
from ..results.items import Items, digest_of_items
from ..results.scores import Outcome, Score, with_means
from .classification import accuracy, transfer, warn_unlabelled

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from ..models.finetune import Encoded, Features

Tags = Sequence[Sequence[str]]


def evaluate_udpos(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English parts of speech and measures :func:`pos_f1` in every language.

    Arguments and errors are those of :func:`ctloss.evaluate.evaluate_xnli`.

    Returns:
        F1 and the share of correctly tagged words by language and seed, and their means over languages; no scores where
        the test set has no tags. Predictions are the first seed's.
    """
    return _evaluate(model, data, UDPOS, languages, options)


def evaluate_panx(
    model: str, data: str | Path, languages: Sequence[str] | None = None, options: FinetuneOptions | None = None
) -> Outcome:
    """Fine-tunes on English named entities and measures :func:`entity_f1`; otherwise like :func:`evaluate_udpos`."""
    return _evaluate(model, data, PANX, languages, options)


def entity_f1(gold: Tags, predicted: Tags) -> float:
    """Returns the F1 of entities over all sentences; an entity is right if its first word, last word and type are.

    Example:
        >>> entity_f1([["B-PER", "I-PER", "O"], ["B-LOC"]], [["B-PER", "I-PER", "O"], ["B-ORG"]])
        0.5
    """
    from seqeval.metrics import f1_score

    _check_shapes(gold, predicted)
    with warnings.catch_warnings():
        # With no entities at all on one side F1 is 0, which needs no warning.
        warnings.simplefilter("ignore")
        return float(f1_score([list(tags) for tags in gold], [list(tags) for tags in predicted]))


def pos_f1(gold: Tags, predicted: Tags) -> float:
    """Returns XTREME's score of parts of speech: the F1 of the chunks that seqeval finds in tags without prefixes.

    A chunk is then an unbroken run of one tag, except that SCONJ and SYM always form chunks of one word: their S is
    read as the prefix of such a chunk. Since version 1.0, seqeval takes the first letter of a tag without a prefix as
    its prefix, so that CCONJ and SCONJ become one type; up to 0.0.12 the type was the whole tag. Passing the first
    letter, a hyphen and the tag makes every version score as the old one did.

    Example:
        >>> pos_f1([["CCONJ", "NOUN", "NOUN", "PUNCT"]], [["SCONJ", "NOUN", "NOUN", "PUNCT"]])
        0.66...
    """
    return entity_f1(*(list(map(as_chunks, side)) for side in (gold, predicted)))


def as_chunks(tags: Sequence[str]) -> list[str]:
    """Returns tags without prefixes as seqeval is given them, see :func:`pos_f1`."""
    return [f"{tag[0]}-{tag}" for tag in tags]


def token_accuracy(gold: Tags, predicted: Tags) -> float:
    """Returns the share of words with the right tag, over all sentences together.

    Example:
        >>> token_accuracy([["NOUN", "VERB"], ["X", "X"]], [["NOUN", "NOUN"], ["X", "X"]])
        0.75
    """
    _check_shapes(gold, predicted)
    return accuracy(list(chain.from_iterable(gold)), list(chain.from_iterable(predicted)))


@dataclass(frozen=True)
class Window:
    """Consecutive words of a sentence that a model reads at once.

    Args:
        sentence: index of the sentence.
        start: index of the window's first word in it.
        ids: wordpieces with special tokens.
        firsts: position in ``ids`` of each word's first wordpiece.
    """

    sentence: int
    start: int
    ids: tuple[int, ...]
    firsts: tuple[int, ...]

    def labels(self, tags: Sequence[int]) -> list[int]:
        """Returns the labels of ``ids``, from the sentence's tags: a word's on its first wordpiece, -100 elsewhere."""
        labels = [IGNORED] * len(self.ids)
        for offset, position in enumerate(self.firsts):
            labels[position] = tags[self.start + offset]
        return labels


class WordPieces:
    """Splits sentences into windows, and each word into wordpieces by itself.

    A word with no pieces, or with more than a window holds, becomes the unknown token, as in XTREME. A window has at
    most ``max_length`` wordpieces, special tokens included.

    Raises:
        ValueError: a window has no room for a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[str, list[int]] = {}
        unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.mask_token_id
        if unknown is None:
            raise ValueError("expected a tokenizer with an unknown or a mask token, got one with neither; use another")
        self._unknown = [unknown]
        bare = self._ids(["a"], special=False)[0] or self._unknown
        whole = self._ids(["a"], special=True)[0]
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 1)
        self._before, self._after = whole[:at], whole[at + len(bare) :]
        self._room = max_length - len(self._before) - len(self._after)
        if self._room < 1:
            raise ValueError(
                f"expected a max_length over the {len(self._before) + len(self._after)} special tokens, got "
                f"{max_length}; raise it"
            )

    def windows(self, sentences: Sequence[Sequence[str]]) -> list[Window]:
        """Returns the windows of sentences (each a list of words), filled from the left; each word is in one window."""
        self._learn(word for words in sentences for word in words)
        windows = []
        for index, words in enumerate(sentences):
            start, ids, firsts = 0, list(self._before), list[int]()
            for number, word in enumerate(words):
                pieces = self._pieces[word]
                if len(ids) - len(self._before) + len(pieces) > self._room:
                    windows.append(Window(index, start, (*ids, *self._after), tuple(firsts)))
                    start, ids, firsts = number, list(self._before), []
                firsts.append(len(ids))
                ids += pieces
            if firsts:
                windows.append(Window(index, start, (*ids, *self._after), tuple(firsts)))
        return windows

    def _learn(self, words: Iterable[str]) -> None:
        new = sorted(set(words) - self._pieces.keys())
        if new:
            for word, pieces in zip(new, self._ids(new, special=False), strict=True):
                self._pieces[word] = pieces if 0 < len(pieces) <= self._room else self._unknown

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        # Without verbose=False there would be a warning about words longer than the model's window.
        return self._tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]  # type: ignore[return-value]


def join(windows: Sequence[Window], predicted: np.ndarray, lengths: Sequence[int]) -> list[list[int]]:
    """Returns the tag of every word of every sentence.

    Args:
        windows: all of them, in any order.
        predicted: the tag at every wordpiece, (windows, length) integers; positions after a window's end are ignored.
        lengths: of the sentences, in words.
    """
    tags = [[IGNORED] * length for length in lengths]
    for window, row in zip(windows, predicted, strict=True):
        for offset, position in enumerate(window.firsts):
            tags[window.sentence][window.start + offset] = int(row[position])
    return tags


@dataclass(frozen=True)
class WordHead:
    """Tags every word on its first wordpiece; the best step is chosen by the task's F1.

    ``prefixed`` says whether tags show where an entity begins (``B-PER``).
    """

    labels: tuple[str, ...]
    prefixed: bool
    model_class: ClassVar[str] = "AutoModelForTokenClassification"
    # Words are split one by one, each as it would be after a space.
    tokenizer_options: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Encoded:
        """Returns sentences as windows that the model reads; no word is left out."""
        from ..models.finetune import Encoded

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
        """Returns the same for labelled rows."""
        return self.f1(_tags(rows), predicted)


def submission_lines(tags: Tags) -> list[str]:
    """Returns the lines of a submission: one tag per line, an empty line between sentences.

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


def _items(head: WordHead, tests: Sequence[Row], answers: Tags, language: str, seed: int) -> list[Items]:
    """Returns what each sentence adds to F1, entities or chunks in it, and to the share of words."""
    import numpy as np
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for gold, predicted in zip(_tags(tests), answers, strict=True):
        with warnings.catch_warnings():
            # Of chunks that are no entities.
            warnings.simplefilter("ignore")
            one, other = (
                set(get_entities(list(tags) if head.prefixed else as_chunks(tags))) for tags in (gold, predicted)
            )
        right = sum(tag == answer for tag, answer in zip(gold, predicted, strict=True))
        counts.append((2 * len(one & other), len(one) + len(other), right, len(gold)))
    columns, asked = np.array(counts).T, digest_of_items(tests)
    return [
        Items(language, metric, asked, above, below, seed)
        for metric, above, below in (("f1", *columns[:2]), ("accuracy", *columns[2:]))
    ]


def _evaluate(
    model: str, data: str | Path, task: Task, languages: Sequence[str] | None, options: FinetuneOptions | None
) -> Outcome:
    head = WordHead(task.labels, prefixed=task is PANX)
    rows, predicted = transfer(model, data, task, head, languages, options)
    scores = []
    items = []
    for language, tests in rows.items():
        gold = _tags(tests)
        if not gold:
            warn_unlabelled(task, language)
        else:
            for seed, answers in predicted.items():
                scores.append(Score(task.name, language, "f1", head.f1(gold, answers[language]), seed))
                right = token_accuracy(gold, answers[language])
                scores.append(Score(task.name, language, "accuracy", right, seed, about="words"))
                items += _items(head, tests, answers[language], language, seed)
    first = next(iter(predicted.values()))
    return Outcome(with_means(scores), {language: submission_lines(tags) for language, tags in first.items()}, items)
