"""BUCC: translations mined out of two monolingual corpora."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .encoder import Encoder
from .neighbours import nearest
from .parallel import Corpora, read_bucc
from .score import DataError, Outcome, Score

if TYPE_CHECKING:
    import numpy as np

Mined = dict[tuple[str, str], float]
HALVES = "threshold chosen on the other half, mean of both"
SAME_SET = "threshold chosen on the scored set itself, as XTREME's scripts do"


@dataclass(frozen=True)
class MiningOptions:
    """How pairs are mined.

    Args:
        neighbours: k, how many neighbours a margin is relative to.
        seed: of the division of the first language's sentences into halves.
    """

    neighbours: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Measure:
    """Precision, recall and F1 of a set of pairs."""

    precision: float
    recall: float
    f1: float


def evaluate_bucc(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: MiningOptions | None = None,
) -> Outcome:
    """BUCC's F1 of mined pairs.

    Pairs are mined by margin (see :func:`mine`) and kept from a threshold on. The threshold is chosen on the pairs of
    one half of the foreign sentences and scored on those of the other; then the halves change places, and the mean is
    ``"f1"``. Beside it ``"f1_same_set"``: chosen and scored on the same pairs, as XTREME's scripts do.

    Where the folder has a test split too, its pairs from the threshold of the whole dev split on are the predictions,
    scored as ``"f1_test"`` if its gold pairs are there; otherwise the predictions are those of the same-set figure.

    Args:
        encoder: an encoder, or the name or folder of one.
        data: the folder of the files, see :func:`read_bucc`.
        languages: the languages beside English; by default all in the folder.
        options: see :class:`MiningOptions`.

    Raises:
        DataError: a language or the gold pairs are missing, or a file is not what it should be.
    """
    options = options or MiningOptions()
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    folder = Path(data)
    scores: list[Score] = []
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
        if (folder / f"{name}.test.en").exists():
            [test] = read_bucc(folder, [language], "test")
            kept = above(_mined(encoder, test, options.neighbours), threshold)
            if test.gold is not None:
                value = measure(kept, test.gold).f1
                scores.append(Score("bucc", name, "f1_test", value, about="threshold chosen on the dev split"))
        predictions[language] = ["\t".join(pair) for pair in kept]
    for metric in dict.fromkeys(score.metric for score in scores):
        found = [score for score in scores if score.metric == metric]
        value = sum(score.value for score in found) / len(found)
        scores.append(Score("bucc", "mean", metric, value, about=f"{found[0].about}; mean of {len(found)}"))
    return Outcome(scores, predictions)


def _mined(encoder: Encoder, corpora: Corpora, k: int) -> Mined:
    sides = []
    for corpus in (corpora.first, corpora.second):
        texts = list(dict.fromkeys(sentence for _, sentence in corpus))
        times = Counter(sentence for _, sentence in corpus)
        identifiers = {sentence: identifier for identifier, sentence in corpus if times[sentence] == 1}
        sides.append((encoder.sentences(texts), [identifiers.get(text) for text in texts]))
    (x, first), (y, second) = sides
    # A sentence that occurs twice has no id of its own: it takes part in the search and is no candidate after.
    return {
        (a, b): score for i, j, score in mine(x, y, k) if (a := first[i]) is not None and (b := second[j]) is not None
    }


def mine(x: np.ndarray, y: np.ndarray, k: int = 4) -> list[tuple[int, int, float]]:
    """Finds pairs of rows that translate each other, each row in one pair at most, the best first.

    A pair's score is its margin (Artetxe and Schwenk 2019, arXiv 1811.01136, "ratio"):

        cos(x_i, y_j) / ( mean of x_i's k largest cosines / 2 + mean of y_j's k largest cosines / 2 ).

    Each row of either side proposes the one of its k neighbours of the largest score; proposals are taken from the
    largest score down unless one of their rows is taken. Scores of 0 and less are left out, as XTREME does.

    Args:
        x, y: (m, d) and (n, d).
        k: how many neighbours.

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
    with np.errstate(divide="ignore", invalid="ignore"):
        forth_scores = np.nan_to_num(2 * forth / (x_mean[:, None] + y_mean[forth_rows]), posinf=0, neginf=0)
        back_scores = np.nan_to_num(2 * back / (y_mean[:, None] + x_mean[back_rows]), posinf=0, neginf=0)
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


def best_threshold(mined: Mapping[tuple[str, str], float], gold: set[tuple[str, str]]) -> float:
    """Returns the threshold of the largest F1: half-way between the last score kept and the first left out.

    Of equal F1 it is the highest; where nothing mined is right, infinity, which keeps nothing.

    Example:
        >>> best_threshold({("a", "A"): 3.0, ("b", "B"): 2.0, ("c", "X"): 1.0}, {("a", "A"), ("b", "B")})
        1.5
    """
    items = sorted(mined.items(), key=lambda item: -item[1])
    best, threshold, right = 0.0, float("inf"), 0
    for number, (pair, score) in enumerate(items, start=1):
        right += pair in gold
        following = items[number][1] if number < len(items) else score
        # No threshold parts equal scores.
        if number < len(items) and following == score:
            continue
        f1 = 2 * right / (number + len(gold))
        if f1 > best:
            middle = (score + following) / 2
            best, threshold = f1, middle if middle > following else score
    return threshold


def above(mined: Mapping[tuple[str, str], float], threshold: float) -> list[tuple[str, str]]:
    """Returns the pairs whose score reaches the threshold."""
    return [pair for pair, score in mined.items() if score >= threshold]


def measure(found: Iterable[tuple[str, str]], gold: set[tuple[str, str]]) -> Measure:
    """Returns precision, recall and F1 of found pairs; each is 0 where nothing found is right.

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
    """Divides the first language's sentences at random, and scores either half by the other's best threshold.

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
