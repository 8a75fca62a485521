"""How results are kept and shown: what they were measured on, CSV files, and Markdown tables in documents."""

from __future__ import annotations

import csv
import functools
import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ctloss.command.versions import installed_version
from ctloss.shared.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PEERS = (
    "lightly", "open_clip_torch", "sentence-transformers", "pytorch-metric-learning",
    "memeff", "inf-cl", "cut-cross-entropy", "siglip-kernel",
)  # fmt: skip
Row = Mapping[str, object]


def describe(device: str) -> dict[str, str]:
    """The columns that every row of results carries: device, versions of everything that ran, and threads."""
    return {**_machine(device), "threads": str(torch.get_num_threads())}


@functools.lru_cache
def _machine(device: str) -> dict[str, str]:
    peers = [f"{name} {version}" for name in PEERS if (version := installed_version(name))]
    return {
        "device": _device_name(device),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed_version("triton") or "",
        "ctloss": installed_version("ctloss") or "source",
        "peers": ", ".join(peers),
    }


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows whose columns are the union of their keys, in the order first met; six digits of a number."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    write_atomically(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that :func:`write_csv` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; characters that would end a cell are replaced.

    Example:
        >>> print(table(["n", "ms"], [[512, "1|2"]]))
        | n | ms |
        | --- | --- |
        | 512 | 1/2 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def markers(command: str) -> tuple[str, str]:
    """The two lines of a document between which a command writes its results."""
    return f"<!-- {command} -->", f"<!-- end of {command} -->"


def split_document(document: Path, command: str) -> tuple[str, str, str]:
    """What a document has before a command's results, these results, and what follows; ValueError without markers."""
    begin, end = markers(command)
    head, found, rest = document.read_text(encoding="utf-8").partition(begin)
    text, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"expected the lines {begin!r} and {end!r} in {document}, found none; add them")
    return head + begin, text.strip(), end + tail


def insert(document: Path, command: str, text: str) -> None:
    """Replace a command's results in a document; ValueError without markers."""
    head, _, tail = split_document(document, command)
    write_atomically(document, f"{head}\n\n{text.strip()}\n\n{tail}")


def page_of(command: str, docs: Path = ROOT / "docs") -> Path:
    """The page of the documentation that shows a command's results; ValueError if there is none."""
    begin, end = markers(command)
    for page in sorted(docs.rglob("*.md")):
        if begin in page.read_text(encoding="utf-8").splitlines():
            return page
    raise ValueError(f"expected the lines {begin!r} and {end!r} in a page below {docs}, found none; add them")
