"""What a measurement was taken on: device, threads, versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from benchmarks.peers import installed_version

PEERS = ("lightly", "open_clip_torch", "sentence-transformers", "pytorch-metric-learning")
GPU_PEERS = ("memeff", "inf-cl", "cut-cross-entropy", "siglip-kernel")


def device_name(device: str) -> str:
    """The processor's or GPU's own name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def own_version() -> str:
    """ctloss's version: of the installed distribution, else "source"."""
    try:
        return importlib.metadata.version("ctloss")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def describe(device: str) -> dict[str, str]:
    """Columns that every row of results carries: device, threads, and the version of all that was run."""
    return {**_versions(device), "threads": str(torch.get_num_threads())}


@functools.lru_cache
def _versions(device: str) -> dict[str, str]:
    versions = [f"{name} {version}" for name in (*PEERS, *GPU_PEERS) if (version := installed_version(name))]
    return {
        "device": device_name(device),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed_version("triton") or "",
        "ctloss": own_version(),
        "peers": ", ".join(versions),
    }
