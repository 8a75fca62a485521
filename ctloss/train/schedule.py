"""How long a run is, and its learning rate at each step."""

from __future__ import annotations

from collections.abc import Callable

from .recipe import Optimisation


def total_steps(optimisation: Optimisation, batches: int, processes: int) -> int:
    """Returns the steps of a whole run, given the batches of an epoch over all processes.

    Example:
        >>> total_steps(Optimisation(epochs=3), 7, 2), total_steps(Optimisation(max_steps=5), 7, 2)
        (9, 5)
    """
    return optimisation.max_steps or optimisation.epochs * (batches // processes)


def learning_rate_factor(optimisation: Optimisation, steps: int) -> Callable[[int], float]:
    """Returns the learning rate at a step as a share of its peak.

    Args:
        optimisation: names the schedule and the share of warmup.
        steps: steps of the whole run.

    Example:
        >>> factor = learning_rate_factor(Optimisation(schedule="thirds", warmup=0.0), 12)
        >>> [round(factor(step), 6) for step in (0, 3, 4, 8, 10)]
        [1.0, 1.0, 0.1, 0.01, 0.001]
        >>> factor = learning_rate_factor(Optimisation(schedule="linear", warmup=0.2), 10)
        >>> [factor(step) for step in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warm = int(optimisation.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        if optimisation.schedule == "linear":
            return max(0.0, (steps - step) / max(1, steps - warm))
        if optimisation.schedule == "thirds":
            return 0.1 ** sum(step >= steps * share for share in (1 / 3, 2 / 3, 5 / 6))
        return 1.0

    return factor
