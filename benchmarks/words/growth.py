"""What counting co-occurrences takes as a corpus grows: each size in a process of its own.

The text is made up: words of Mandelbrot's frequencies (257,000 different ones in 200,000 pairs), 6 to 18 in a sentence;
of its translation's words four in five translate one of the source, the others are drawn anew.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ctloss.train.text.cooccurrence import CooccurrenceAligner
from ctloss.train.text.sentences import ParallelSentence

BATCH = 2048
# Sentence pairs that are made up once more to tell what making them up takes.
SAMPLE = 50_000


def sentences(pairs: int) -> Iterator[Sequence[ParallelSentence]]:
    """Yield made-up sentence pairs in batches, the same in every process."""
    draw = np.random.default_rng(0)
    for start in range(0, pairs, BATCH):
        size = min(BATCH, pairs - start)
        lengths = draw.integers(6, 19, size)
        source = _words(draw, lengths.sum())
        kept = draw.random(len(source)) < 0.8
        target = np.where(kept, source, _words(draw, len(source)))
        ends = np.cumsum(lengths).tolist()
        yield [
            ParallelSentence(
                " ".join([f"s{word}" for word in first]), " ".join([f"t{word}" for word in second]), "xa", "xb"
            )
            for first, second in zip(_split(source, ends), _split(target, ends), strict=True)
        ]


def measure(pairs: int) -> dict[str, float]:
    """Peak memory (MB) before and after counting, and CPU time (s) without that of making up the text."""
    start, sample = time.process_time(), min(pairs, SAMPLE)
    for _ in sentences(sample):
        pass
    made = (time.process_time() - start) * pairs / sample
    before = _peak()
    with TemporaryDirectory() as folder:
        start = time.process_time()
        CooccurrenceAligner.count(lambda: sentences(pairs), folder)
        seconds = time.process_time() - start - made
        tables = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    return {"pairs": pairs, "before": before, "peak": _peak(), "seconds": seconds, "tables": tables}


def in_a_process(pairs: int) -> dict[str, float]:
    """The same in a process of its own, whose peak is no other's."""
    command = [sys.executable, "-m", "benchmarks.words.growth", str(pairs)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _words(draw: np.random.Generator, number: int) -> np.ndarray:
    return np.minimum(50 * (draw.random(number) ** -3.0 - 1), 1 << 40).astype(np.int64)


def _split(words: np.ndarray, ends: list[int]) -> Iterator[list[int]]:
    listed, start = words.tolist(), 0
    for end in ends:
        yield listed[start:end]
        start = end


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
