"""What batches cost the process that trains: CPU milliseconds of a batch, CPU seconds of an epoch's plan, and padding.

    python -m benchmarks.pretraining.loader FOLDER
    python -m benchmarks.pretraining.loader FOLDER --batch-size 256 --batches 50

FOLDER is what ``python -m ctloss.train prepare`` wrote. Rows are read, drawn from and padded in this process, by one
thread and without workers; real tokens are those of both sides, padded apart, among all positions.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ctloss.shared.models import load_tokenizer
from ctloss.train.samples.collator import Collator
from ctloss.train.samples.dataset import Rows, WPSDataset
from ctloss.train.samples.sampler import BatchPlan, PlanSampler

# Files are mapped and come into memory during these.
WARM = 20


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="a prepared corpus")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--batches", type=int, default=200, help="batches that are timed")
    given = options.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(given.folder / "tokenizer")
    files = sorted((given.folder / "train").glob("*.arrow"))
    rows = WPSDataset(files, require_words=True, held_out_share=0.1)
    started = time.process_time()
    plan = BatchPlan(rows.lengths, rows.keys, batch_size=given.batch_size, seed=0)
    seconds = time.process_time() - started
    lengths = rows.lengths[plan.epoch(0)]
    real = lengths.sum() / (given.batch_size * lengths.max(axis=1).sum())
    print(f"{len(rows):,} rows with words, {len(plan):,} batches of {given.batch_size}")
    print(f"plan of an epoch: {seconds:.2f} s; real tokens {real:.3f}")
    for name, probability in (("words", 0.0), ("words and masks", 0.15)):
        collate = Collator(tokenizer, seed=0, mlm_probability=probability)
        loader: DataLoader[Rows] = DataLoader(rows, batch_sampler=PlanSampler(plan), collate_fn=collate)  # type: ignore[arg-type]
        batches = iter(loader)
        for _ in islice(batches, WARM):
            pass
        started = time.process_time()
        number = sum(1 for _ in islice(batches, given.batches))
        print(f"{name}: {(time.process_time() - started) / max(1, number) * 1e3:.2f} ms a batch, over {number} batches")


if __name__ == "__main__":
    main()
