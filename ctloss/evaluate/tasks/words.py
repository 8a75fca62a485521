"""Word level: translation of a lexicon's words, and alignment of a sentence's words with those of its translation."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...shared.options import Group, option
from ...shared.text import DataError, text_files
from ...shared.vectors import centred, nearest, unit
from ..data.parallel import AlignedWords, no_such_file, read_alignments, read_lexicon
from ..models.encoder import EmptySentence, Encoder, Pieces
from ..results.items import Items, digest_of_items
from ..results.scores import Outcome, Score, with_means

if TYPE_CHECKING:
    import numpy as np

Link = tuple[int, int]


@dataclass(frozen=True)
class LexiconOptions:
    """Which translations in a lexicon are asked for.

    Args:
        lines: the lines (from 0) whose translations are asked for, such as those held out of training; by default all.
        pivot: the language that all others are paired with; None for all pairs of languages.
    """

    lines: Collection[int] | None = None
    pivot: str | None = "en"


@dataclass(frozen=True)
class AlignmentOptions(Group):
    """How words are aligned, and how the gold file counts them.

    Args:
        method: ``"argmax"`` links wordpieces that are each other's nearest by cosine (Jalili Sabet et al. 2020, arXiv
            2004.08728); ``"softmax"`` links those whose softmax of inner products exceeds ``threshold`` in both
            directions (Dou and Neubig 2021, arXiv 2101.08231), which depends on the scale of the hidden states. With
            layer 8 and no prefix the latter is awesome-align's default.
    """

    method: Literal["argmax", "softmax"] = option(
        "argmax",
        "argmax links mutual nearest wordpieces, softmax does as awesome-align",
        flag="--align-method",
    )
    threshold: float = option(1e-3, "for softmax, what a link exceeds in both directions", flag="--align-threshold")
    one_based: bool = option(False, "gold files count words from one, as for awesome-align's aer.py --oneRef")

    def check(self) -> None:
        self.positive("threshold")


def held_out_lines(count: int, share: float, seed: int = 0) -> frozenset[int]:
    """Draws which of a lexicon's ``count`` lines to hold out of training.

    Example:
        >>> sorted(held_out_lines(10, 0.3, seed=1))
        [1, 2, 4]
    """
    return frozenset(random.Random(seed).sample(range(count), round(share * count)))


def evaluate_words(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: LexiconOptions | None = None,
) -> Outcome:
    """Word-translation retrieval: the share of words whose nearest neighbour in the other language translates them.

    A word is encoded by itself; its vector is the mean over its wordpieces. Translations on lines that are not asked
    for are neither right nor candidates. Many translations are spelled like the word, and any encoder finds those:
    ``"accuracy_respelled"`` counts only words that are spelled differently from all their right translations.

    Args:
        encoder: an encoder, or the name or folder of one.
        data: the folder of the word lists, see :func:`read_lexicon`.
        languages: codes; by default all in the folder.

    Returns:
        Scores in both directions, with vectors as they are and centred, and their means; no predictions.

    Raises:
        DataError: a language is missing, or a file is malformed.
    """
    import numpy as np

    options = options or LexiconOptions()
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    folder = Path(data)
    lists = read_lexicon(folder, languages)
    if options.pivot is not None and options.pivot not in lists:
        raise DataError(f"{folder}: expected words of the pivot {options.pivot!r}, got {', '.join(lists)}")
    forms = {
        language: list(dict.fromkeys(word for line in lines for word in line)) for language, lines in lists.items()
    }
    vectors, kept = {}, {}
    for language, words in forms.items():
        pieces = encoder.pieces([word.split() for word in words])
        with_pieces = [(word, item) for word, item in zip(words, pieces, strict=True) if item.words]
        if not with_pieces:
            raise DataError(
                f"{folder}: expected words in {language!r} that the tokenizer reads, got {len(words)} of which nothing "
                "but special tokens is left; choose other languages, or another model"
            )
        kept[language] = {word: row for row, (word, _) in enumerate(with_pieces)}
        vectors[language] = np.stack([item.vectors.mean(axis=0) for _, item in with_pieces])
    scores = []
    items = []
    for a, b in combinations(lists, 2):
        if options.pivot not in (None, a, b):
            continue
        for suffix, x, y in (("", vectors[a], vectors[b]), ("_centred", centred(vectors[a]), centred(vectors[b]))):
            for one, other, queries, candidates in ((a, b, x, y), (b, a, y, x)):
                right, removed = translations(lists[one], lists[other], kept[one], kept[other], options.lines)
                if not right:
                    raise DataError(
                        f"{folder}: expected translations from {one!r} to {other!r} on the lines asked for, got none; "
                        "ask for other lines"
                    )
                left_out = [removed.get(row, set()) for row in right]
                found = nearest(queries[list(right)], candidates, removed=left_out)[1][:, 0].tolist()
                hits = {row: hit in right[row] for row, hit in zip(right, found, strict=True)}
                spelled, targets = list(kept[one]), list(kept[other])
                apart = [row for row in right if spelled[row] not in {targets[hit] for hit in right[row]}]
                asked = digest_of_items([*(spelled[row] for row in right), *targets])
                found_right = np.array(list(hits.values()))
                items.append(Items(f"{one}-{other}", f"accuracy{suffix}", asked, found_right))
                name, about = f"{one}-{other}", f"{len(right)} words"
                scores.append(Score("words", name, f"accuracy{suffix}", sum(hits.values()) / len(hits), about=about))
                if apart:
                    value, about = sum(hits[row] for row in apart) / len(apart), f"{len(apart)} words"
                    scores.append(Score("words", name, f"accuracy_respelled{suffix}", value, about=about))
                    # The same words, of which those spelled alike count for nothing.
                    counted = np.isin(list(hits), apart)
                    items.append(
                        Items(name, f"accuracy_respelled{suffix}", asked, found_right & counted, denominators=counted)
                    )
    return Outcome(with_means(scores, by_about=False), {}, items)


def translations(
    sources: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    source_rows: dict[str, int],
    target_rows: dict[str, int],
    lines: Collection[int] | None,
) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """Returns, by source row, the right target rows on the lines asked for, and the rows that are not candidates.

    A translation that a line outside those gives as well does not count as right.
    """
    asked = None if lines is None else set(lines)
    right: dict[int, set[int]] = {}
    removed: dict[int, set[int]] = {}
    for number, (words, meanings) in enumerate(zip(sources, targets, strict=True)):
        table = right if asked is None or number in asked else removed
        for word in words:
            for meaning in meanings:
                if word in source_rows and meaning in target_rows:
                    table.setdefault(source_rows[word], set()).add(target_rows[meaning])
    left = {row: meanings - removed.get(row, set()) for row, meanings in right.items()}
    return {row: meanings for row, meanings in left.items() if meanings}, removed


def evaluate_alignment(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: AlignmentOptions | None = None,
) -> Outcome:
    """Alignment error rate of the word links found in an encoder's hidden states, against gold alignments.

    With predicted links A, sure gold links S and possible ones P (which include S), summed over all sentences,

        AER = 1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|),   precision = |A ∩ P| / |A|,   recall = |A ∩ S| / |S|.

    Args:
        encoder: an encoder, or the name or folder of one. Its pooling chooses the hidden states that are compared.
        data: the folder of the files, ``en-fr.txt`` with ``en-fr.gold`` and so on, see :func:`read_alignments`.
        languages: pairs such as ``"en-fr"``, the files' names; by default all in the folder.

    Returns:
        Scores for each pair and their means; predictions are the links, a line of ``i-j`` for each sentence pair,
        counted from zero, as awesome-align writes them.

    Raises:
        DataError: a pair is missing, or a file is malformed.
    """
    options = options or AlignmentOptions()
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    folder = Path(data)
    there = [name.removesuffix(".gold") for name in text_files(folder, "*.gold")]
    scores: list[Score] = []
    items: list[Items] = []
    predictions: dict[str, list[str]] = {}
    for name in dict.fromkeys(there if languages is None else languages):
        if name not in there:
            raise no_such_file(folder / f"{name}.gold", f"the gold alignment of {name!r}", there)
        pairs = read_alignments(folder / name, one_based=options.one_based)
        first, second = (_pieces(encoder, pairs, side, folder / f"{name}.txt") for side in ("first", "second"))
        links = [align(x, y, options) for x, y in zip(first, second, strict=True)]
        values = alignment_error(links, pairs)
        scores += [Score("alignment", name, metric, value) for metric, value in values.items()]
        asked = digest_of_items((pair.first, pair.second, sorted(pair.sure), sorted(pair.possible)) for pair in pairs)
        parts = alignment_parts(links, pairs)
        items += [Items(name, metric, asked, above, below) for metric, (above, below) in parts.items()]
        predictions[name] = [" ".join(f"{i}-{j}" for i, j in sorted(found)) for found in links]
    if not scores:
        raise DataError(f"{folder}: expected files such as en-fr.txt and en-fr.gold, got none")
    return Outcome(with_means(scores), predictions, items)


def _pieces(encoder: Encoder, pairs: Sequence[AlignedWords], side: str, path: Path) -> list[Pieces]:
    sentences: list[list[str]] = [getattr(pair, side) for pair in pairs]
    found = encoder.pieces(sentences)
    for number, (words, pieces) in enumerate(zip(sentences, found, strict=True)):
        if not pieces.words:
            raise EmptySentence(" ".join(words), number, f"{path}, line {number + 1}")
    return found


def align(x: Pieces, y: Pieces, options: AlignmentOptions) -> set[Link]:
    """Returns the links between words: two words are linked if any of their wordpieces are."""
    import numpy as np

    if not x.words or not y.words:
        return set()
    if options.method == "argmax":
        cosines = unit(x.vectors) @ unit(y.vectors).T
        forth, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
        linked: Iterable[Link] = ((i, int(j)) for i, j in enumerate(forth) if back[j] == i)
    else:
        products = x.vectors.astype(np.float64) @ y.vectors.astype(np.float64).T
        forth, back = _softmax(products, 1), _softmax(products, 0)
        linked = ((int(i), int(j)) for i, j in np.argwhere(np.minimum(forth, back) > options.threshold))
    return {(x.words[i], y.words[j]) for i, j in linked}


def alignment_error(found: Sequence[set[Link]], gold: Sequence[AlignedWords]) -> dict[str, float]:
    """Returns the AER, precision and recall of links over all sentences; see :func:`evaluate_alignment`.

    Example:
        >>> pair = AlignedWords(["a", "b"], ["A", "B"], frozenset({(0, 0)}), frozenset({(0, 0), (1, 1)}))
        >>> alignment_error([{(0, 0), (1, 1), (0, 1)}], [pair])
        {'aer': 0.25, 'precision': 0.6666666666666666, 'recall': 1.0}
    """
    if not any(pair.sure for pair in gold):
        raise DataError("expected sure links (i-j) in the gold alignments, got none; mark the sure ones")
    sums = {
        metric: (int(above.sum()), int(below.sum())) for metric, (above, below) in alignment_parts(found, gold).items()
    }
    return {metric: above / below if below else 0.0 for metric, (above, below) in sums.items()}


def alignment_parts(
    found: Sequence[set[Link]], gold: Sequence[AlignedWords]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns what each sentence pair adds above and below the line of the AER, the precision and the recall."""
    import numpy as np

    counts = [
        (len(a), len(pair.sure), len(a & pair.sure), len(a & pair.possible))
        for a, pair in zip(found, gold, strict=True)
    ]
    links, sure, in_sure, in_possible = np.array(counts, dtype=np.int64).reshape(-1, 4).T
    return {
        "aer": (links + sure - in_sure - in_possible, links + sure),
        "precision": (in_possible, links),
        "recall": (in_sure, sure),
    }


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    import numpy as np

    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)
