"""The GPU run's results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import table

TIMED = ("large", "huge", "few", "precisions", "compiled", "widths")
CHOSEN = ("small", "choices")


def _number(value: object, digits: str = ".3g") -> str:
    return format(value, digits) if isinstance(value, (int, float)) else ""


def _peak(row: Mapping[str, Any]) -> str:
    return _number(row["peak_bytes"] / 2**20, ".0f") if row.get("peak_bytes") is not None else ""


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each provider and case: forward, forward+backward, the ratio to ours."""
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = (row.get("loss"), row.get("dtype"), row.get("d"), row.get("n"))
        entry = cases.setdefault(key, {}).setdefault(row.get("provider", ""), {})
        entry |= {name: row[name] for name in ("gradient_error", "value_error", "peak_bytes", "note") if name in row}
        if "wall_ms" in row:
            entry[row["which"]] = row["wall_ms"]
    lines = []
    for (loss, dtype, d, n), providers in cases.items():
        own = providers.get("ctloss-triton", {}).get("forward+backward")
        for provider, entry in providers.items():
            both = entry.get("forward+backward")
            ratio = f"{both / own:.2f}" if both and own else ""
            lines.append([
                loss, dtype, d, n, provider, _number(entry.get("forward")), _number(both), ratio, _peak(entry),
                _number(entry.get("gradient_error"), ".1e"), _number(entry.get("value_error"), ".1e"),
                "" if both else entry.get("note", "")[:120],
            ])  # fmt: skip
    columns = ("loss", "dtype", "d", "n", "provider", "forward ms", "f+b ms", "÷ ours", "peak MiB", "grad error",
               "value error", "note")  # fmt: skip
    return table(columns, lines)


def _plain(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return table(columns, [[_cell(row.get(key, "")) for key in columns] for row in rows])


def _cell(value: object) -> object:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_cell(each)}" for key, each in value.items())
    return _number(value, ".4g") if isinstance(value, float) else value


def _choices(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each race: time and error of each alternative, who won, and whether that is what is shipped."""

    def each(row: Mapping[str, Any], key: str, digits: str, unit: float = 1.0) -> str:
        values = row.get(key, {}).items()
        return "; ".join(f"{name} {_number(value / unit, digits)}" for name, value in values if value is not None)

    lines = [
        [
            row["choice"], row["dtype"], row["d"], row["n"], row["how"], each(row, "ms", ".4g"),
            each(row, "forward_ms", ".4g"), each(row, "peak_bytes", ".0f", 2**20), each(row, "gradient_error", ".1e"),
            each(row, "value_error", ".1e"), row.get("winner", ""), row.get("shipped", ""),
            {True: "yes", False: "**no**", None: ""}[row.get("won")], row.get("note", ""),
        ]
        for row in rows
    ]  # fmt: skip
    columns = ("choice", "dtype", "d", "n", "how", "f+b ms", "forward ms", "peak MiB", "grad error", "value error",
               "winner", "shipped", "shipped won", "note")  # fmt: skip
    return table(columns, lines)


def markdown(result: Mapping[str, Any]) -> str:
    """The page that shows what ``gpu.json`` holds: machine, parts and how they ended, a table for each."""
    title = "# Dry run on the CPU: the numbers mean nothing" if result["dry"] else "# GPU results"
    page = [title, ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value)]
    done: Mapping[str, Mapping[str, Any]] = result["parts"]
    page.append(table(
        ("part", "status", "seconds", "rows", "of them failed", ""),
        [
            [
                name, part["status"], part["seconds"], len(part["rows"]),
                sum("note" in row and "provider" not in row for row in part["rows"]),
                part.get("why", "") or (part.get("log", "").strip().splitlines() or [""])[-1][:150],
            ]
            for name, part in done.items()
        ],
    ))  # fmt: skip
    for name, part in done.items():
        if part["rows"]:
            shown = _choices if name in CHOSEN else _times if name in TIMED else _plain
            page.append(f"## {name}\n\n" + shown(part["rows"]))
        if part["status"].startswith(("failed", "stopped")):
            page.append(f"## {name}: end of its output\n\n```\n{part.get('log', '')[-2500:]}\n```")
    return "\n\n".join(page) + "\n"
