"""How long a run is, and the learning rate of Chen et al. 2022."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def steps_per_epoch(arguments: Any, batches: int) -> int:
    """Returns an epoch's steps, given its batches on each process; the last step may have fewer parts."""
    return math.ceil(batches / arguments.gradient_accumulation_steps)


def total_steps(arguments: Any, batches: int) -> int:
    """Returns the number of steps of a whole run, given the batches of an epoch on each process."""
    return (
        arguments.max_steps
        if arguments.max_steps > 0
        else math.ceil(arguments.num_train_epochs * steps_per_epoch(arguments, batches))
    )


def thirds(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> LambdaLR:
    """Returns the schedule of Chen et al. 2022: × 0.1 at 1/3, 2/3 and 5/6 of a run of this many steps."""

    def factor(step: int) -> float:
        return step / warmup if step < warmup else 0.1 ** sum(step >= steps * share for share in (1 / 3, 2 / 3, 5 / 6))

    return LambdaLR(optimizer, factor)
