"""``ctloss doctor``: what this installation has, which path runs and why, and what to do about what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import NamedTuple

import torch

import ctloss

from .versions import installed_version, release

# Calls that people make; on a GPU they are larger.
TYPICAL = {
    "cpu": (("float32", 512, 256), ("bfloat16", 2048, 768), ("float64", 128, 64)),
    "cuda": (("bfloat16", 4096, 768), ("float32", 4096, 768), ("float64", 128, 64)),
}
# For those who work on ctloss itself.
OF_DEVELOPERS = {"bench", "test", "dev", "docs"}
# Of a gradient in float32, far from what is wrong.
ALLOWED = 1e-4


class Missing(NamedTuple):
    """A package that an extra asks for, and what there is of it."""

    extra: str
    wanted: str
    found: str | None


def main(arguments: Sequence[str]) -> int:
    """Prints what it finds; the exit status is 1 if a path computes something wrong."""
    argparse.ArgumentParser(
        prog="ctloss doctor",
        description="Tells versions, devices, the path of typical calls and why, and what to install.",
    ).parse_args(arguments)
    advice: list[str] = []
    _software(advice)
    sound = _paths(advice)
    _extras(advice)
    print("\nWhat to do")
    for line in advice or ["nothing"]:
        print(f"  {line}")
    return 0 if sound else 1


def _software(advice: list[str]) -> None:
    print("Software")
    _line("ctloss", f"{ctloss.__version__}, in {os.path.dirname(ctloss.__file__)}")
    _line("Python", f"{platform.python_version()}, {platform.platform()}")
    _line("torch", f"{torch.__version__}, threads: {torch.get_num_threads()}")
    _line("triton", installed_version("triton") or "not installed")
    for name in ("transformers", "sentence-transformers"):
        _line(name, installed_version(name) or "not installed")
    count = torch.cuda.device_count()
    for index in range(count):
        major, minor = torch.cuda.get_device_capability(index)
        _line(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
    if not count:
        _line("CUDA", "no device, or a build of torch without it")
    if os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        advice.append(
            "where other work shares the processors: export OMP_WAIT_POLICY=passive, else waiting threads spin"
        )


def _paths(advice: list[str]) -> bool:
    """Says what runs where, and whether each path agrees with the definition."""
    print("\nPaths, each with a small loss and its gradient next to the definition's in float64")
    sound = True
    for path, device in (
        ("native", "cpu"),
        ("torch", "cpu"),
        ("triton", "cuda" if torch.cuda.is_available() else "cpu"),
    ):
        try:
            error = gradient_error(path, device)
        except RuntimeError as refusal:
            reason = str(refusal).removeprefix(f"impl={path!r} cannot run here: ").partition("; impl='auto'")[0]
            _line(path, f"does not run: {reason}")
            advice += _remedies(path, reason)
        else:
            sound &= error < ALLOWED
            instructions = ""
            if path == "native":
                rows = torch.zeros(8, 8)
                instructions = (
                    f", instructions {ctloss.explain(rows, rows, impl='native').configuration['instructions']}"
                )
            _line(
                path, f"{'runs' if error < ALLOWED else 'COMPUTES SOMETHING WRONG'}, off by {error:.0e}{instructions}"
            )
            if error >= ALLOWED:
                advice.append(f"the {path} path is wrong on this machine: open an issue with this page")
    print("\nTypical calls, forward and backward")
    for kind in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        for dtype, n, d in TYPICAL[kind]:
            x = torch.zeros(1, d, dtype=getattr(torch, dtype), device=kind).expand(n, d)
            plan = ctloss.explain(x, x)
            _line(f"{kind} {dtype} {n} x {d}", f"{plan.path}: {plan.reason}")
    return sound


def gradient_error(path: str, device: str) -> float:
    """The relative error of CZ-NCE's gradient on a path, in float32.

    Raises:
        RuntimeError: the path cannot run there.

    Example:
        >>> gradient_error("torch", "cpu") < 1e-5
        True
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 32, generator=generator)
    found = []
    for impl, place in (("reference", "cpu"), (path, device)):
        rows = x.to(place, copy=True).requires_grad_()
        ctloss.cz_nce(rows, y.to(place), impl=impl).backward()  # type: ignore[arg-type]
        assert rows.grad is not None
        found.append(rows.grad.double().cpu())
    return ((found[1] - found[0]).norm() / found[0].norm()).item()


def _remedies(path: str, reason: str) -> list[str]:
    if path == "native" and "this installation has none" in reason:
        build = "pip install --force-reinstall --no-deps --no-binary ctloss ctloss (in a checkout: pip install -e .)"
        return [f"compiled CPU kernels: install GCC 12 or Clang 14, or later, then {build}"]
    if path == "triton" and torch.cuda.is_available() and "pip install" not in reason:
        return [f"GPU kernels: {reason}"]
    if path == "triton" and torch.cuda.is_available():
        return ["GPU kernels: pip install 'ctloss[triton]'"]
    return []


def _extras(advice: list[str]) -> None:
    print("\nExtras")
    try:
        extras = [
            name for name in metadata.metadata("ctloss").get_all("Provides-Extra") or [] if name not in OF_DEVELOPERS
        ]
        wanted = metadata.requires("ctloss") or []
    except metadata.PackageNotFoundError:
        _line("unknown", "this ctloss is not installed, only importable")
        advice.append("pip install . in the checkout, for the command and the extras")
        return
    lacks = list(missing(wanted))
    for extra in extras:
        of_it = [f"{each.wanted} ({each.found or 'not installed'})" for each in lacks if each.extra == extra]
        _line(extra, f"lacks {', '.join(of_it)}" if of_it else "complete")
        if of_it and (extra != "triton" or torch.cuda.is_available()):
            advice.append(f"for ctloss[{extra}]: pip install 'ctloss[{extra}]'")


def missing(requirements: Sequence[str]) -> Iterator[Missing]:
    """Finds what the extras among a distribution's requirements lack: packages absent, or older than asked for.

    Example:
        >>> list(missing(["torch>=99999; extra == 'gpu'", "torch>=1; extra == 'gpu'"]))[0].wanted
        'torch>=99999'
    """
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        elsewhere = "platform_system" in marker and f"'{platform.system()}'" not in marker.replace('"', "'")
        name, _, oldest = wanted.replace(" ", "").partition(">=")
        name = name.partition("[")[0]
        if extra is None or elsewhere or name == "ctloss":
            continue
        found = installed_version(name)
        if found is None or release(found) < release(oldest):
            yield Missing(extra[1], wanted.strip(), found)


def _line(name: str, text: str) -> None:
    print(f"  {name:26} {text}", file=sys.stdout)
