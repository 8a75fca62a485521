"""What the logs of pretraining say about a run: retrieval on validation pairs, margins, forces, clipping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.ablation.plan import Arm

LOG = "metrics.jsonl"
# What :func:`facts` finds, by seed.
Facts = Mapping[int, Mapping[str, float]]
Study = Mapping[Arm, Facts]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a row's log."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]


def validation(folder: Path) -> float:
    """Sentence retrieval on the validation pairs at the end of training, the mean of both directions."""
    last = [line for line in read_log(folder) if "eval_sentence_forth" in line][-1]
    return fmean((last["eval_sentence_forth"], last["eval_sentence_back"]))


def facts(folder: Path, clip: float) -> dict[str, float]:
    """What a row's log says about margins and forces; its gradients were clipped to the norm ``clip``, at 0 not at all.

    Returns:
        ``validation``; ``z_min``, the smallest z of all; ``z_mean`` of the last line; ``saturated``, the share of all
        rows with φ < 6e-8; ``pull`` and ``push``, norms in the last line and, as ``pull_first`` and ``push_first``, in
        the first; ``clipped``, the share of logged steps whose gradient norm exceeded ``clip``.
    """
    lines = [line for line in read_log(folder) if "contrastive" in line]
    norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
    found = {
        "validation": validation(folder),
        "z_min": min(line["z_min"] for line in lines),
        "z_mean": lines[-1]["z_mean"],
        "saturated": fmean(line["saturated"] for line in lines),
        "pull_first": lines[0]["pull"],
        "push_first": lines[0]["push"],
        "pull": lines[-1]["pull"],
        "push": lines[-1]["push"],
    }
    if clip and norms:
        found["clipped"] = fmean(norm > clip for norm in norms)
    return found
