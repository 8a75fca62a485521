"""Paired bootstrap over items and seeds: intervals of scores, and what of a difference between models is chance.

The items of a test set are drawn again with replacement, the same ones for every model (Efron and Tibshirani 1993;
Koehn 2004, "Statistical significance tests for machine translation evaluation"), and so are the seeds of each model
that was fine-tuned several times. Languages with the same items, as in XNLI, get the same draws; others get their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ...shared.options import Group, option
from .items import Items

if TYPE_CHECKING:
    import numpy as np

Row = TypeVar("Row")
LEVEL = 0.95
# Numbers drawn at a time, which bounds the memory: 64 MiB.
AT_A_TIME = 1 << 23


@dataclass(frozen=True)
class ResamplingOptions(Group):
    """How often the items are drawn again, and from which seed."""

    resamples: int = option(10_000, "times the items of a test set are drawn again for intervals; 0 for none")
    resampling_seed: int = option(0, "seed of those draws")

    def check(self) -> None:
        self.at_least(0, "resamples", "resampling_seed")


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, percentiles of the resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The same of a difference, and its two-sided p-value before any correction.

    With d the difference and d* those of the R resamples, p = (1 + #{ |d* - d| ≥ |d| }) / (R + 1).

    p is None where a fine-tuned score of either model has one seed only. Another run of the same model would score
    otherwise, by how much one run cannot tell; the interval is then that of these runs, over items alone.
    """

    p: float | None


def compare(
    models: Sequence[Sequence[Items]], options: ResamplingOptions | None = None
) -> tuple[list[Interval | None], list[Difference | None]]:
    """Returns the interval of each model's score, and each model's difference from the first.

    A score is a mean over languages where there are several; over seeds it is always a mean.

    Args:
        models: of each model the items of one metric, for every language and seed.

    Returns:
        For each model the interval, None where it has no items; and the difference, None for the first and for one that
        was asked other items than the first.

    Example:
        >>> import numpy as np
        >>> base, better = (Items("de", "accuracy", "test", np.arange(100) < right) for right in (50, 70))
        >>> intervals, differences = compare([[base], [better]])
        >>> intervals[0].value, 0.40 <= intervals[0].low < intervals[0].high <= 0.60
        (0.5, True)
        >>> round(differences[1].value, 3), differences[1].p < 0.001
        (0.2, True)
    """
    [found] = compare_all({"": models}, options).values()
    return found


def compare_all(
    rows: Mapping[Row, Sequence[Sequence[Items]]], options: ResamplingOptions | None = None
) -> dict[Row, tuple[list[Interval | None], list[Difference | None]]]:
    """Does what :func:`compare` does for several scores at once: each set of items is drawn once for all of them."""
    import numpy as np

    options = options or ResamplingOptions()
    places = [(row, number) for row, models in rows.items() for number, items in enumerate(models) if items]
    drawn = resampled([rows[row][number] for row, number in places], options) if options.resamples else []
    values = {place: float(np.mean([item.value for item in rows[place[0]][place[1]]])) for place in places}
    samples = dict(zip(places, drawn, strict=False))
    found: dict[Row, tuple[list[Interval | None], list[Difference | None]]] = {}
    for row, models in rows.items():
        intervals: list[Interval | None] = []
        differences: list[Difference | None] = []
        for number, items in enumerate(models):
            place, first = (row, number), (row, 0)
            there = place in samples
            intervals.append(Interval(values[place], *_between(samples[place])) if there else None)
            same = number > 0 and there and first in samples and _asked(items) == _asked(models[0])
            difference = None
            if same:
                observed, others = values[place] - values[first], samples[place] - samples[first]
                p = None
                if not (one_run(items) or one_run(models[0])):
                    # Rounding, of sums in float32, must not tell equal differences apart.
                    further = np.abs(others - observed) >= abs(observed) - 1e-6
                    p = (1 + int(further.sum())) / (len(others) + 1)
                difference = Difference(observed, *_between(others), p)
            differences.append(difference)
        found[row] = (intervals, differences)
    return found


def one_run(items: Sequence[Items]) -> bool:
    """Tells whether a score is that of a single fine-tuned model, so that nothing shows how far its runs spread.

    Example:
        >>> import numpy as np
        >>> runs = [Items("de", "accuracy", "test", np.ones(9), seed=seed) for seed in (1, 2)]
        >>> one_run(runs[:1]), one_run(runs), one_run([Items("de", "accuracy", "test", np.ones(9))])
        (True, False, False)
    """
    seeds = {item.seed for item in items}
    return len(seeds) == 1 and None not in seeds


def _between(samples: np.ndarray) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _asked(items: Sequence[Items]) -> set[tuple[str, str, int]]:
    return {(item.language, item.asked, len(item.numerators)) for item in items}


def resampled(scores: Sequence[Sequence[Items]], options: ResamplingOptions) -> list[np.ndarray]:
    """Returns the resamples (R,) of each score, which is given by its items in every language and with every seed.

    Resample r draws the same items for all scores. The seeds that a score has several of are drawn for each by itself.
    """
    import numpy as np

    # A column for each score and seed, in which its languages are averaged.
    seeds = [list(dict.fromkeys(item.seed for item in score)) for score in scores]
    column = {
        place: number for number, place in enumerate((s, seed) for s, several in enumerate(seeds) for seed in several)
    }
    total = np.zeros((options.resamples, len(column)))
    sets: dict[str, list[tuple[int, float, Items]]] = {}
    for s, score in enumerate(scores):
        times = Counter(item.seed for item in score)
        for item in score:
            languages = times[item.seed]
            place = f"{item.aligned or item.asked} {len(item.numerators)}"
            sets.setdefault(place, []).append((column[s, item.seed], 1 / languages, item))
    for place, members in sorted(sets.items()):
        _add(total, place, members, options.resampling_seed)
    found = []
    for s, several in enumerate(seeds):
        part = total[:, [column[s, seed] for seed in several]]
        generator = np.random.default_rng([options.resampling_seed, s, len(several)])
        chosen = generator.integers(0, len(several), part.shape)
        found.append(np.take_along_axis(part, chosen, axis=1).mean(axis=1))
    return found


def _add(total: np.ndarray, name: str, members: Sequence[tuple[int, float, Items]], seed: int) -> None:
    """Adds the resampled scores of one set of items to their columns, each with its weight."""
    import numpy as np

    n = len(members[0][2].numerators)
    # What has no denominators is linear in its items, so that one column of numerators serves all languages.
    linear = np.zeros((n, total.shape[1]), dtype=np.float32)
    ratios = []
    for place, weight, item in members:
        if item.denominators is None:
            linear[:, place] += weight / n * item.numerators
        else:
            ratios.append((place, weight, item))
    above, below = (
        np.array([getattr(item, side) for *_, item in ratios], dtype=np.float32).reshape(len(ratios), n).T
        for side in ("numerators", "denominators")
    )
    generator = np.random.default_rng([seed, *name.encode()])
    step = max(1, AT_A_TIME // n)
    for start in range(0, len(total), step):
        rows = min(step, len(total) - start)
        drawn = generator.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)
        part = total[start : start + rows]
        part += times @ linear
        tops, bottoms = times @ above, times @ below
        for number, (place, weight, _) in enumerate(ratios):
            bottom = bottoms[:, number]
            part[:, place] += weight * np.divide(tops[:, number], bottom, out=np.zeros(rows), where=bottom > 0)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number by Holm's step-down method (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, largest = [0.0] * len(p), 0.0
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[number]))
        corrected[number] = largest
    return corrected


def of_row(items: Sequence[Items], language: str, metric: str, mean: str) -> list[Items]:
    """Returns the items behind a row of a table: of one language, or of those that a row of means averages.

    Args:
        language: of the row; ``mean`` for all languages, ``"eng-X"`` and ``"X-eng"`` for one direction of each.
    """
    alike = [item for item in items if item.metric == metric]
    if language == mean:
        return alike
    if language.endswith("-X"):
        return [item for item in alike if item.language.startswith(language[:-1])]
    if language.startswith("X-"):
        return [item for item in alike if item.language.endswith(language[1:])]
    return [item for item in alike if item.language == language]
