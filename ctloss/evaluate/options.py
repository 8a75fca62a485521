"""How a model is fine-tuned on a task; the defaults are XTREME's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class FinetuneOptions:
    """Settings of a fine-tuning, with the defaults of XTREME's scripts for mBERT (Hu et al. 2020, arXiv 2003.11080).

    AdamW with a linear decay to zero; the model of the step with the best score on English dev is kept, the earlier of
    two equal ones.

    Args:
        learning_rate: at the start, after the warm-up.
        epochs: passes over the English training data.
        max_steps: steps instead of epochs, None for epochs.
        batch_size: items of a step, of all devices and accumulated parts together.
        batches: ``"random"`` as in XTREME, or ``"by_length"`` for items of about one length in a step, by which two or
            three times less is computed; the scores are then not quite XTREME's.
        accumulation: parts that a device's share of a batch is cut into, against lack of memory.
        max_length: most wordpieces of an item, special tokens included. Pairs are cut there; sentences of tagged words
            are split into several windows, none of whose words is lost.
        weight_decay, warmup_steps, clip: as usual; ``clip`` bounds the gradient's norm.
        evaluate_every: steps between two scores on English dev; the last step is always scored.
        checkpoint_every: steps between two checkpoints, from which a killed run goes on.
        evaluation_batch_size: items a device predicts at a time.
        seeds: one run each: of the head's initialisation, the order of the data and dropout. XTREME's one run has seed
            1 for tags and 42 for pairs.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
        train: English training files; empty for the train split of the data.
        dev: English files that choose the best step; empty for the dev split of the data.
        hold_out: share of the training data that chooses the best step instead of dev, and is not trained on; 0 for
            none. It is drawn by a hash of the text, a pair's first: rows of one text stay together.
        test_split: the split that is scored.
        output: folder of the runs, one folder a task and in it one a seed; None for a temporary one, from which nothing
            can be resumed.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> FinetuneOptions(hold_out=1.0)
        Traceback (most recent call last):
        ValueError: expected hold_out at least 0 and below 1, got 1.0
    """

    learning_rate: float = 2e-5
    epochs: float = 5.0
    max_steps: int | None = None
    batch_size: int = 32
    batches: Literal["random", "by_length"] = "random"
    accumulation: int = 1
    max_length: int = 128
    weight_decay: float = 0.0
    warmup_steps: int = 0
    clip: float = 1.0
    evaluate_every: int = 100
    checkpoint_every: int = 1000
    evaluation_batch_size: int = 64
    seeds: tuple[int, ...] = (1,)
    precision: Literal["fp32", "bf16"] = "fp32"
    train: tuple[str | Path, ...] = ()
    dev: tuple[str | Path, ...] = ()
    hold_out: float = 0.0
    test_split: str = "test"
    output: str | Path | None = None

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulation", "evaluate_every", "checkpoint_every", "evaluation_batch_size")
        for name in (*counts, *(("max_steps",) if self.max_steps is not None else ())):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "epochs", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} at least 0, got {getattr(self, name)}")
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"expected hold_out at least 0 and below 1, got {self.hold_out}")
        if self.hold_out and self.dev:
            raise ValueError("expected either dev files or hold_out, got both; the best step is chosen by one of them")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected seeds, each once, got {self.seeds}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"expected precision 'fp32' or 'bf16', got {self.precision!r}")
        if self.batches not in ("random", "by_length"):
            raise ValueError(f"expected batches 'random' or 'by_length', got {self.batches!r}")


XTREME_OPTIONS = {
    "xnli": FinetuneOptions(epochs=5, evaluate_every=100),
    "pawsx": FinetuneOptions(epochs=5, evaluate_every=200),
    "udpos": FinetuneOptions(epochs=10, evaluate_every=500),
    "panx": FinetuneOptions(epochs=10, evaluate_every=1000),
}
