"""What two processes of a training run do, launched once for many tests, because loading transformers takes seconds.

``torchrun`` starts this file with a folder and, as JSON, the arguments of runs and cases of the objective.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctloss.train import CCEEncoder
from ctloss.train.__main__ import main
from ctloss.train.model.encoder import small_backbone
from ctloss.train.model.objective import Objective

ROOT = Path(__file__).resolve().parents[3]
# Loss, levels, and whether a side has masked wordpieces on the first process only, or on none.
Case = tuple[str, str, bool]


def objective(loss: str, levels: str, group: Any) -> Objective:
    torch.manual_seed(0)
    backbone = small_backbone(vocabulary=40, layers=1, hidden=16, heads=2, dropout=0.0, max_length=12, pad=0, mlm=True)
    encoder = CCEEncoder(backbone, levels=levels, head=True)
    return Objective(encoder, loss=loss, temperature=0.07, alpha=0.5, group=group, learn_temperature=True)


def six_pairs(masked: bool) -> dict[str, torch.Tensor]:
    """A batch without masked wordpieces on the source side of its last three pairs, or on that of all.

    Its first, third and fifth pair have a word in common.
    """
    generator = torch.Generator().manual_seed(1)
    made = {"word_ids": torch.tensor([0, 1, 0, 3, 0, 5])}
    for side, length in (("source", 7), ("target", 9)):
        ids = torch.randint(5, 40, (6, length), generator=generator)
        chosen = torch.rand(ids.shape, generator=generator) < 0.3
        if side == "source":
            chosen[3 if masked else 0 :] = False
        made |= {
            f"{side}_ids": ids,
            f"{side}_mask": torch.ones_like(ids),
            f"{side}_span": torch.tensor([[1, 3]] * 6),
            f"{side}_masked_ids": torch.where(chosen, 4, ids),
            f"{side}_labels": torch.where(chosen, ids, -100),
        }
    return made


def measured(case: Case, rank: int | None = None) -> dict[str, np.ndarray]:
    """The objective's values and gradients, by name, for all six pairs or for a rank's three of them."""
    loss, levels, masked = case
    model = objective(loss, levels, None if rank is None else "world")
    own = slice(None) if rank is None else slice(3 * rank, 3 * rank + 3)
    found = model(**{name: rows[own] for name, rows in six_pairs(masked).items()}, forces=True)
    found["loss"].backward()
    values = {name: value.detach().numpy() for name, value in found.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            values[f"gradient of {name}"] = parameter.grad.numpy()
    return values


def stopped(arguments: list[str]) -> int:
    """Runs the training command, of which the second process alone gets SIGTERM in its third step."""
    original, calls = Objective.forward, 0

    def forward(self: Objective, *positional: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *positional, **named)

    Objective.forward = forward  # type: ignore[method-assign]
    try:
        return main(arguments)
    finally:
        Objective.forward = original  # type: ignore[method-assign]


def launch(folder: Path, runs: list[list[str]], cases: list[Case]) -> str:
    """Runs the training command and the objective on two processes; returns what they say.

    Values of a case are written to the folder, as ``CASE-RANK.npz`` by the numbers of both, and exit statuses of the
    first run, which is stopped by a signal to one process, as ``status-RANK``. The last of the runs is started as
    ``python -m`` does.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [*launcher, __file__, str(folder), json.dumps(runs), json.dumps(cases)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(child.stderr)
    return child.stderr


def serve(folder: Path, runs: list[list[str]], cases: list[Case]) -> None:
    first, *before, last = runs
    status = stopped(first)
    # The first run has made the group.
    rank = torch.distributed.get_rank()
    (folder / f"status-{rank}").write_text(str(status), encoding="utf-8")
    if any(main(arguments) for arguments in before):
        sys.exit(1)
    for number, case in enumerate(cases):
        np.savez(folder / f"{number}-{rank}.npz", **measured(case, rank))
    sys.argv[1:] = last
    runpy.run_module("ctloss.train", run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
