"""What ``python -m benchmarks`` measures when it is not told: every comparison that the documents show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import providers

# Compiling takes longer than all else, and the cubic form what memory the others had: neither stands beside every case.
HAND_WRITTEN = ("ctloss-torch", "eager", "cross_entropy")
EVERYBODY = tuple(name for name in providers.DEFAULT if name != "metric-learning")
BOTH = ("float32", "bfloat16")


@dataclass(frozen=True)
class Part:
    """Sizes, dtypes and losses that are swept together.

    ``fewest_rounds`` are taken however long they last.
    """

    n: Sequence[int]
    d: Sequence[int] = (256,)
    dtypes: Sequence[str] = BOTH
    losses: Sequence[str] = ("info-both",)
    threads: Sequence[int] = (1,)
    providers: Sequence[str] = HAND_WRITTEN
    fewest_rounds: int = 5


SWEEP = {
    "cpu": (
        Part((32, 128, 512, 2048), losses=("cz-both", "info-both", "info-cross"), providers=EVERYBODY),
        Part((32, 128), d=(128,), dtypes=("float32",), providers=(*HAND_WRITTEN, "metric-learning")),
        Part((4, 16, 64), providers=(*HAND_WRITTEN, "lightly")),
        Part((8192,), providers=("ctloss-torch", "eager"), fewest_rounds=2),
        Part((16, 32, 64, 128, 512), dtypes=("float16",)),
        Part((32, 128, 512, 2048), d=(768, 1536)),
        Part((32, 128, 512, 2048), losses=("cz-cross",)),
        Part((128, 512, 2048), losses=("info-both", "info-cross"), threads=(2,)),
    ),
    "cuda": (Part((32, 128, 512, 2048), losses=("cz-both", "info-both", "info-cross"), providers=providers.DEFAULT),),
}
QUICK = Part((32, 128), d=(128,), losses=("cz-both", "info-both", "info-cross"), providers=providers.DEFAULT)
MEMORY = Part(
    (512, 2048, 8192),
    dtypes=("float32",),
    providers=("ctloss-torch", "ctloss-triton", "eager", "lightly", "open_clip", "sentence-transformers"),
)
QUICK_MEMORY = Part((256, 512), d=(128,), dtypes=("float32",), providers=MEMORY.providers)
