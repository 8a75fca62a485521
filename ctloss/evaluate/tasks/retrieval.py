"""Sentence retrieval and mining: Tatoeba, line-aligned text, and BUCC."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from ...shared.languages import XTREME_CODES
from ...shared.text import DataError, text_file
from ...shared.vectors import centred, nearest, random_pair_cosine
from ..data.parallel import Corpora, read_aligned, read_bucc, read_tatoeba
from ..models.encoder import Encoder, sentence_vectors
from ..results.items import Items, digest_of_items
from ..results.scores import Outcome, Score, with_means

if TYPE_CHECKING:
    import numpy as np

Mined = dict[tuple[str, str], float]
HALVES = "threshold chosen on the other half, mean of both"
SAME_SET = "threshold chosen on the scored set itself, as XTREME's scripts do"


@dataclass(frozen=True)
class PairsOptions:
    """How line-aligned text is searched: with a pivot, only the pairs of languages that it is in.

    ``task`` is the task's name in the scores; by default the files' common name.
    """

    pivot: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class MiningOptions:
    """How pairs are mined: by margins relative to this many neighbours, with this seed of the split into halves."""

    neighbours: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Measure:
    """Precision, recall and F1 of a set of pairs."""

    precision: float
    recall: float
    f1: float


def evaluate_tatoeba(
    encoder: Encoder | str | Path, data: str | Path, languages: Sequence[str] | None = None
) -> Outcome:
    """Tatoeba's accuracy: the share of sentences whose nearest neighbour in the other language translates them.

    The direction from English (``"eng-deu"``: an English sentence looks for its German one) is XTREME's score, the one
    in published tables. The outcome also has the direction to English, both directions with each language's mean
    removed (``"_centred"``), the cosine of random pairs, and the means over languages as ``"eng-X"`` and ``"X-eng"``.
    Predictions are XTREME's: for each English sentence, in the order of code points, the line (from 0) of the sentence
    found.

    Args:
        encoder: an encoder, or the name or folder of one (with the defaults of :class:`Encoder`).
        data: the folder of the files, see :func:`read_tatoeba`. Where XTREME's label file is missing, there are
            predictions without scores.
        languages: codes; by default all in the folder.

    Raises:
        DataError: a language is missing, or a file is malformed.
    """
    import numpy as np

    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    scores: list[Score] = []
    items: list[Items] = []
    predictions = {}
    for pairs in read_tatoeba(Path(data), languages):
        sides = zip(pairs.files, (pairs.first, pairs.second), strict=True)
        x, y = (sentence_vectors(encoder, texts, partial(line_of, path)) for path, texts in sides)
        found = nearest(y, x)[1][:, 0]
        order = sorted(range(len(y)), key=lambda j: pairs.second[j])
        code = pairs.languages[0]
        predictions[XTREME_CODES.get(code, code)] = [str(found[j]) for j in order]
        if pairs.gold is not None:
            # The candidates keep their order, so that of equally near ones the scores take the one predicted.
            asked = digest_of_items([*pairs.first, *pairs.second])
            found_both = both_ways("tatoeba", pairs.languages[0], "eng", x, y[np.argsort(pairs.gold)], asked)
            scores += found_both[0]
            items += found_both[1]
    return Outcome(with_means(scores, pivot="eng"), predictions, items)


def line_of(path: Path, i: int) -> str:
    """Returns what errors call a file's line i, counted from 0."""
    return f"{path}, line {i + 1}"


def evaluate_pairs(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: PairsOptions | None = None,
) -> Outcome:
    """Sentence retrieval in line-aligned text, such as multi30k's test sets, between every two languages.

    Args:
        encoder: an encoder, or the name or folder of one.
        data: the common part of the files' names: ``multi30k/test_2016_flickr`` for test_2016_flickr.de and so on.
        languages: codes; by default all that have a file.

    Returns:
        Scores as for Tatoeba, and their mean over all pairs and both directions as ``"mean"``; no predictions.

    Raises:
        DataError: a language is missing, or a file is malformed.
    """
    options = options or PairsOptions()
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    prefix = Path(data)
    texts = read_aligned(prefix, languages)
    if options.pivot is not None and options.pivot not in texts:
        raise DataError(f"{prefix}.{options.pivot}: expected the pivot among the languages, got {', '.join(texts)}")
    vectors = {
        language: sentence_vectors(encoder, lines, partial(line_of, Path(f"{prefix}.{language}")))
        for language, lines in texts.items()
    }
    chosen = [pair for pair in combinations(vectors, 2) if options.pivot is None or options.pivot in pair]
    task = options.task or prefix.name
    digests = {language: digest_of_items(lines) for language, lines in texts.items()}
    found = [
        both_ways(task, a, b, vectors[a], vectors[b], f"{digests[a]} {digests[b]}", aligned=task) for a, b in chosen
    ]
    scores = [score for part, _ in found for score in part]
    return Outcome(with_means(scores), {}, [item for _, part in found for item in part])


def both_ways(
    task: str, first: str, second: str, x: np.ndarray, y: np.ndarray, asked: str, aligned: str = ""
) -> tuple[list[Score], list[Items]]:
    """Scores the retrieval of row i of y (n, d) by row i of x (n, d) and the reverse, as they are and centred.

    Row i of either is item i of those that ``asked`` and ``aligned`` stand for, see :class:`Items`.

    Raises:
        DataError: there is only one pair.
    """
    import numpy as np

    if len(x) < 2:
        raise DataError(
            f"{task}: {first}-{second}: expected at least two pairs, got {len(x)}: a single sentence always finds its "
            "own translation; give more text"
        )
    scores, items = [], []
    for suffix, a, b in (("", x, y), ("_centred", centred(x), centred(y))):
        for name, queries, candidates in ((f"{first}-{second}", a, b), (f"{second}-{first}", b, a)):
            hits = nearest(queries, candidates)[1][:, 0] == np.arange(len(queries))
            scores.append(Score(task, name, f"accuracy{suffix}", float(hits.mean())))
            items.append(Items(name, f"accuracy{suffix}", asked, hits, aligned=aligned))
        scores.append(Score(task, f"{first}-{second}", f"random_pair_cosine{suffix}", random_pair_cosine(a, b)))
    return scores, items


def evaluate_bucc(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: MiningOptions | None = None,
) -> Outcome:
    """BUCC's F1 of mined pairs.

    Pairs are mined by margin (see :func:`mine`) and kept if they reach a threshold. The threshold is chosen on one half
    of the foreign sentences and scored on the other half, then the other way round; ``"f1"`` is the mean of both.
    ``"f1_same_set"`` is chosen and scored on the same pairs, as XTREME's scripts do.

    Where the folder also has a test split, the predictions are its pairs that reach the threshold of the whole dev
    split, scored as ``"f1_test"`` if its gold pairs are there; otherwise the predictions are those behind the same-set
    score.

    Args:
        encoder: an encoder, or the name or folder of one.
        data: the folder of the files, see :func:`read_bucc`.
        languages: the languages paired with English; by default all in the folder.

    Raises:
        DataError: a language or the gold pairs are missing, or a file is malformed.
    """
    options = options or MiningOptions()
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    folder = Path(data)
    scores: list[Score] = []
    items: list[Items] = []
    predictions = {}
    for corpora in read_bucc(folder, languages):
        language, name = corpora.languages[0], "-".join(corpora.languages)
        gold = corpora.gold
        if not gold:
            raise DataError(f"{folder / f'{name}.dev.gold'}: expected the gold pairs, got no such file; add it")
        mined = _mined(encoder, corpora, options.neighbours)
        threshold = best_threshold(mined, gold)
        kept = above(mined, threshold)
        halves = scores_of_halves(mined, gold, [identifier for identifier, _ in corpora.first], options.seed)
        scores += [
            Score("bucc", name, metric, sum(getattr(half, metric) for half in halves) / 2, about=HALVES)
            for metric in ("f1", "precision", "recall")
        ]
        scores.append(Score("bucc", name, "f1_same_set", measure(kept, gold).f1, about=SAME_SET))
        items.append(_items_of_f1(name, "f1_same_set", corpora, kept, gold))
        if text_file(folder / f"{name}.test.en") is not None:
            [test] = read_bucc(folder, [language], "test")
            kept = above(_mined(encoder, test, options.neighbours), threshold)
            if test.gold is not None:
                value = measure(kept, test.gold).f1
                scores.append(Score("bucc", name, "f1_test", value, about="threshold chosen on the dev split"))
                items.append(_items_of_f1(name, "f1_test", test, kept, test.gold))
        predictions[language] = ["\t".join(pair) for pair in kept]
    return Outcome(with_means(scores), predictions, items)


def _items_of_f1(
    name: str, metric: str, corpora: Corpora, kept: Sequence[tuple[str, str]], gold: set[tuple[str, str]]
) -> Items:
    """Returns what each sentence of the first language adds to an F1, with the threshold as it is."""
    import numpy as np

    place = {identifier: i for i, (identifier, _) in enumerate(corpora.first)}
    above, below = np.zeros(len(place), dtype=np.int64), np.zeros(len(place), dtype=np.int64)
    for pair in kept:
        above[place[pair[0]]] += 2 * (pair in gold)
        below[place[pair[0]]] += 1
    for pair in gold:
        below[place[pair[0]]] += 1
    return Items(name, metric, digest_of_items([*corpora.first, sorted(gold)]), above, below)


def _mined(encoder: Encoder, corpora: Corpora, k: int) -> Mined:
    sides = []
    for path, corpus in zip(corpora.files, (corpora.first, corpora.second), strict=True):
        lines = [sentence for _, sentence in corpus]
        texts, times = list(dict.fromkeys(lines)), Counter(lines)
        identifiers = {sentence: identifier for identifier, sentence in corpus if times[sentence] == 1}

        def place(i: int, path: Path = path, lines: list[str] = lines, texts: list[str] = texts) -> str:
            return line_of(path, lines.index(texts[i]))

        sides.append((sentence_vectors(encoder, texts, place), [identifiers.get(text) for text in texts]))
    (x, first), (y, second) = sides
    # A sentence that occurs twice has no unique id: it takes part in the search but its pairs are dropped.
    return {
        (a, b): score for i, j, score in mine(x, y, k) if (a := first[i]) is not None and (b := second[j]) is not None
    }


def mine(x: np.ndarray, y: np.ndarray, k: int = 4) -> list[tuple[int, int, float]]:
    """Finds pairs of rows of x (m, d) and y (n, d) that translate each other, each in at most one pair, the best first.

    A pair's score is its margin (Artetxe and Schwenk 2019, arXiv 1811.01136, "ratio"):

        cos(x_i, y_j) / ( mean of x_i's k largest cosines / 2 + mean of y_j's k largest cosines / 2 ).

    Each row on either side proposes the neighbour, of its k nearest, with the largest score; proposals are accepted
    from the largest score down unless one of their rows is already taken. Scores of 0 and below are dropped, as in
    XTREME.

    Example:
        >>> import numpy as np
        >>> x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.1], [0.9, 0.9]])
        >>> [(i, j, round(score, 3)) for i, j, score in mine(x, y, k=2)]
        [(1, 0, 1.478), (0, 1, 1.423)]
    """
    import numpy as np

    forth, forth_rows = nearest(x, y, k)
    back, back_rows = nearest(y, x, k)
    x_mean, y_mean = forth.mean(axis=1, dtype=np.float64), back.mean(axis=1, dtype=np.float64)
    forth_scores = ratio_margins(forth, forth_rows, x_mean, y_mean)
    back_scores = ratio_margins(back, back_rows, y_mean, x_mean)
    proposals = []
    for scores, rows, flip in ((forth_scores, forth_rows, False), (back_scores, back_rows, True)):
        best = scores.argmax(axis=1)
        for i, place in enumerate(best):
            j, score = int(rows[i, place]), float(scores[i, place])
            proposals.append((j, i, score) if flip else (i, j, score))
    taken: tuple[set[int], set[int]] = (set(), set())
    found = []
    for i, j, score in sorted(proposals, key=lambda proposal: -proposal[2]):
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            if score > 0:
                found.append((i, j, score))
    return found


def ratio_margins(cosines: np.ndarray, rows: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the ratio margin of each query with each of its neighbours; see :func:`mine`.

    Args:
        cosines, rows: of the queries' k nearest candidates, (m, k).
        own, other: the mean of the k largest cosines of each query (m,) and of each candidate (n,).
    """
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(2 * cosines / (own[:, None] + other[rows]), posinf=0, neginf=0)


def best_threshold(mined: Mapping[tuple[str, str], float], gold: set[tuple[str, str]]) -> float:
    """Returns the threshold with the largest F1: half-way between the last score kept and the first one dropped.

    Of several with equal F1 it is the highest; where nothing mined is right it is infinity, which keeps nothing.

    Example:
        >>> best_threshold({("a", "A"): 3.0, ("b", "B"): 2.0, ("c", "X"): 1.0}, {("a", "A"), ("b", "B")})
        1.5
    """
    items = sorted(mined.items(), key=lambda item: -item[1])
    best, threshold, right = 0.0, float("inf"), 0
    for number, (pair, score) in enumerate(items, start=1):
        right += pair in gold
        following = items[number][1] if number < len(items) else score
        # No threshold separates equal scores.
        if number < len(items) and following == score:
            continue
        f1 = 2 * right / (number + len(gold))
        if f1 > best:
            middle = (score + following) / 2
            best, threshold = f1, middle if middle > following else score
    return threshold


def above(mined: Mapping[tuple[str, str], float], threshold: float) -> list[tuple[str, str]]:
    """Returns the pairs whose scores reach the threshold."""
    return [pair for pair, score in mined.items() if score >= threshold]


def measure(found: Iterable[tuple[str, str]], gold: set[tuple[str, str]]) -> Measure:
    """Returns precision, recall and F1 of the pairs found; all are 0 where none of them is right.

    Example:
        >>> measure([("a", "A"), ("b", "X")], {("a", "A"), ("c", "C"), ("d", "D")})
        Measure(precision=0.5, recall=0.3333333333333333, f1=0.4)
    """
    pairs = set(found)
    right = len(pairs & gold)
    if not right:
        return Measure(0.0, 0.0, 0.0)
    return Measure(right / len(pairs), right / len(gold), 2 * right / (len(pairs) + len(gold)))


def scores_of_halves(
    mined: Mined, gold: set[tuple[str, str]], identifiers: Sequence[str], seed: int
) -> tuple[Measure, Measure]:
    """Splits the first language's sentences at random, and scores each half with the other's best threshold.

    A pair, mined or gold, belongs to the half of its first sentence.
    """
    shuffled = sorted(identifiers)
    random.Random(seed).shuffle(shuffled)
    left = set(shuffled[: len(shuffled) // 2])
    one, two = (
        (
            {pair: score for pair, score in mined.items() if (pair[0] in left) == side},
            {pair for pair in gold if (pair[0] in left) == side},
        )
        for side in (True, False)
    )
    return measure(above(two[0], best_threshold(*one)), two[1]), measure(above(one[0], best_threshold(*two)), one[1])
