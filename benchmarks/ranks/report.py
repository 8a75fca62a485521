"""The page's tables: the race over ranks with its goals, the peers' contract, the simulator's check."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from benchmarks.gpu.ring import Pass, shares
from benchmarks.ranks.probes import FEW_ROWS, PROBED_ROWS, TOLERANCE, agrees
from benchmarks.ranks.race import JUDGED_RANKS, JUDGED_ROWS, D
from benchmarks.ranks.rivals import CONTESTANTS, OURS, WHOLE
from benchmarks.results import table

GOALS = {"both": 0.6, "cross": 0.8}
"""Our CPU time a rank over the best other's, two ranks of 1,024 rows, d = 256."""
MEMORY_GOAL = 1 / 3
"""Our peak memory a rank over that of a gather with all logits."""

PASSES: tuple[Pass, Pass] = ("forward", "backward")

Row = Mapping[str, str]
Key = tuple[str, int, int]


def grouped(rows: Sequence[Row]) -> dict[Key, dict[str, Row]]:
    """By loss, ranks and rows, what each contestant's row says; the losses and sizes in order."""
    found: dict[Key, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row["loss"], int(row["ranks"]), int(row["rows"])][row["contestant"]] = row
    return dict(sorted(found.items()))


def _number(row: Row | None, column: str) -> float:
    return float(row[column]) if row and row.get(column) else math.nan


def best_other(of_cell: Mapping[str, Row], column: str = "cpu_s") -> tuple[str, float]:
    """Whose number is the smallest among all that are not ours; an empty name if nobody has one."""
    others = {name: _number(row, column) for name, row in of_cell.items() if name not in OURS}
    others = {name: number for name, number in others.items() if not math.isnan(number)}
    name = min(others, key=lambda name: others[name], default="")
    return name, others.get(name, math.nan)


def race(rows: Sequence[Row]) -> str:
    """Goals, times, bytes, memory and errors of every cell, and who did not take part."""
    cells = grouped(rows)
    first = rows[0]
    parts = [
        f"{first['device']} with {first['cores']} cores, torch {first['torch']}, {first['peers']}; "
        f"{first['backend']}, one thread a "
        f"rank. infoNCE, float32, d = {first['d']}, forward and backward, medians of all in turns. CPU time is that of "
        "a rank's process with all its threads, the mean of the ranks. More ranks than cores share them: there only "
        "CPU time says something.",
        _goals(cells),
        "CPU time a rank / wall-clock time, ms:",
        _side_by_side(cells, lambda row: f"{_ms(row, 'cpu_s')} / {_ms(row, 'wall_s')}", ratio="cpu_s"),
        "MiB that a rank sends in a step; collectives as a ring sends them:",
        _side_by_side(cells, lambda row: f"{_number(row, 'sent_bytes') / 2**20:.3g}"),
        "Peak memory of a step on a rank beyond its rows, MiB; each in fresh processes:",
        _side_by_side(cells, lambda row: f"{_number(row, 'peak_bytes') / 2**20:,.0f}", ratio="peak_bytes"),
        "Relative error of the gradient, averaged over the ranks, against one process in float64:",
        _side_by_side(cells, lambda row: f"{_number(row, 'gradient_error'):.0e}"),
        "Logits that a rank forms on the ring, over its rows times everybody's (N²/W); small gathered batches form all "
        "of these in the forward, and none again:",
        _work(sorted({ranks for _, ranks, _ in cells})),
        _left_out(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _ms(row: Row, column: str) -> str:
    return f"{_number(row, column) * 1e3:.3g}"


def _goals(cells: Mapping[Key, Mapping[str, Row]]) -> str:
    """Our ratios where there are goals."""
    lines = []
    for loss, goal in GOALS.items():
        of_cell = cells.get((loss, JUDGED_RANKS, JUDGED_ROWS), {})
        if any(int(row["d"]) != D for row in of_cell.values()):
            continue
        other, best = best_other(of_cell)
        whole = _number(of_cell.get(WHOLE), "peak_bytes")
        for name in OURS:
            time = _ratio(_number(of_cell.get(name), "cpu_s"), best)
            peak = _ratio(_number(of_cell.get(name), "peak_bytes"), whole)
            judged = f"{peak:.2f}", f"1/3 {_met(peak, MEMORY_GOAL)}"
            lines.append([loss, name, f"{time:.2f}", other, f"{goal} {_met(time, goal)}", *judged])
    columns = ["negatives", "", "÷ best other's CPU time", "whose", "goal", f"÷ memory of {WHOLE}", "goal"]
    where = f"The goals, {JUDGED_RANKS} ranks with {JUDGED_ROWS:,} rows each, d = {D}:"
    return f"{where}\n\n{table(columns, lines)}" if lines else ""


def _ratio(one: float, other: float) -> float:
    """NaN where either was not measured, or is too small for the clock."""
    return one / other if other > 0 else math.nan


def _met(ratio: float, goal: float) -> str:
    if math.isnan(ratio):
        return "not measured"
    return "met" if ratio <= goal else "missed"


def _side_by_side(cells: Mapping[Key, Mapping[str, Row]], show: Callable[[Row], str], ratio: str | None = None) -> str:
    """A line for each cell, a column for each contestant; with ``ratio``, our least over the others' least."""
    names = [name for name in CONTESTANTS if any(name in of_cell for of_cell in cells.values())]
    lines = []
    for (loss, ranks, own), of_cell in cells.items():
        shown = [show(of_cell[name]) if name in of_cell else "" for name in names]
        shown = ["" if "nan" in text else text for text in shown]
        if not any(shown):
            continue
        line = [loss, f"{ranks}", f"{own:,}", *shown]
        if ratio:
            ours = (_number(of_cell.get(name), ratio) for name in OURS)
            over = _ratio(min((value for value in ours if value > 0), default=math.nan), best_other(of_cell, ratio)[1])
            line.append("" if math.isnan(over) else f"{over:.2f}")
        lines.append(line)
    return table(["negatives", "ranks", "rows a rank", *names, *(["ours ÷ best other"] if ratio else [])], lines)


def _work(worlds: Sequence[int]) -> str:
    """The most that any rank forms, of the rectangle of its rows and everybody's."""
    lines = []
    for world in worlds:
        passes = (shares(world, which).sum(0).max().item() / world for which in PASSES)
        lines.append([world, *(f"{share:.3g}" for share in passes)])
    return table(["ranks", *PASSES], lines)


def _left_out(rows: Sequence[Row]) -> str:
    """Who was not measured where, and why."""
    counts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        cell = f"{row['loss']} {row['ranks']} × {int(row['rows']):,}"
        if row.get("note") and not row["note"].startswith("computes only"):
            counts[row["contestant"], row["note"]].append(cell)
        if row.get("memory_note"):
            counts[f"{row['contestant']}, memory", row["memory_note"]].append(cell)
    lines = [[name, ", ".join(where), why] for (name, why), where in counts.items()]
    return f"Not measured:\n\n{table(['', 'where', 'why'], lines)}" if lines else ""


def contract(rows: Sequence[Row]) -> str:
    """Scale and direction of every setting's gradient, a line each, columns by the number of ranks."""
    worlds = sorted({int(row["ranks"]) for row in rows})
    by_setting: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        by_setting[row["setting"], row["negatives"]][int(row["ranks"])] = row
    lines = []
    for setting, of_ranks in by_setting.items():
        numbers = (
            (_number(of_ranks.get(world), column), digits)
            for column, digits in (("scale", 3), ("residual", 2), ("value", 3))
            for world in worlds
        )
        lines.append([*setting, *(_rounded(number, digits) for number, digits in numbers)])
    columns = [f"{what}, W = {world}" for what in ("scale", "residual", "value") for world in worlds]
    about = f"gloo, float64, torch {rows[0]['torch']}, {rows[0]['peers']}."
    left_out = sorted({f"{row['setting']}: {row['note']}" for row in rows if row.get("note")})
    shown = table(["setting", "negatives", *columns], lines)
    return "\n\n".join([about, shown, *(f"Not measured: {each}." for each in left_out)])


def _rounded(number: float, digits: int) -> str:
    """Rounded; as 0 what is rounding of float64, as nothing what was not measured."""
    if math.isnan(number):
        return ""
    return "0" if abs(number) < 1e-12 else f"{number:.{digits}g}" if abs(number) < 0.01 else f"{number:.{digits}f}"


def simulator(rows: Sequence[Row]) -> str:
    """Predicted and measured steps, and whether they agree."""
    lines = []
    within = {"": 0, "cpu_": 0}
    for row in rows:
        line = [row["loss"], row["ranks"], f"{int(row['rows']):,}", row["contestant"]]
        for clock in within:
            predicted, measured = (_number(row, f"{what}_{clock}s") for what in ("predicted", "measured"))
            line += [f"{predicted * 1e3:.3g}", f"{measured * 1e3:.3g}", f"{predicted / measured:.2f}"]
            within[clock] += agrees(predicted, measured)
        lines.append(line)
    about = (
        f"{rows[0]['device']} with {rows[0]['cores']} cores, torch {rows[0]['torch']}; gloo, one thread a rank, "
        f"float32, d = {rows[0]['d']}. Rates from probes with {' and '.join(f'{own:,}' for own in PROBED_ROWS)} rows a "
        f"rank, and from a step of {FEW_ROWS}. Of {len(rows)} predictions {within['']} by the wall clock and "
        f"{within['cpu_']} of CPU time are within {TOLERANCE:.0%}."
    )
    clocks = (f"{what}{clock}" for clock in ("", ", CPU") for what in ("predicted, ms", "measured, ms", "ratio"))
    return f"{about}\n\n{table(['negatives', 'ranks', 'rows a rank', '', *clocks], lines)}"
