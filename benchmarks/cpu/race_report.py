"""The race's tables for the documents: ratios to the best rival, goals, and every miss with the reason people gave."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.cpu.race import COMPILED, EAGER, NOT_REACHED, OURS, PASSES
from benchmarks.cpu.race_cells import AXES, FIELDS, GOALS, Cell, goal
from benchmarks.results import table

COMMAND = "python -m benchmarks race"
MISS_COLUMNS = (*FIELDS, "pass", "ratio", "goal", "ms", "best rival", "reason")
KEY = len(FIELDS) + 1
"""How many columns, from the left, name a miss."""

Row = Mapping[str, str]


@dataclass
class Race:
    """One cell in one pass: the rows of all that took part."""

    cell: Cell
    which: str
    rows: list[Row] = field(default_factory=list)

    def times(self, start: str) -> dict[str, float]:
        """Seconds by name of those whose name starts so."""
        timed = (row for row in self.rows if row.get("seconds") and row["contestant"].startswith(start))
        return {row["contestant"]: float(row["seconds"]) for row in timed}

    @property
    def rivals(self) -> dict[str, float]:
        """Seconds of the eager forms and of torch.compile."""
        return self.times(EAGER) | self.times(COMPILED)

    @property
    def best_rival(self) -> str:
        """Who is to be beaten."""
        return min(self.rivals, key=lambda name: self.rivals[name])

    def ratio(self, name: str) -> float:
        """Time of one of ours over the best rival's."""
        return self.times(OURS).get(name, math.nan) / min(self.rivals.values(), default=math.nan)

    def missed(self, name: str) -> bool:
        """Whether the ratio, to two digits, is above the goal."""
        return round(self.ratio(name), 2) > goal(self.cell)

    @property
    def key(self) -> tuple[str, ...]:
        """The cells of a line that name this one."""
        return (*(_shown(getattr(self.cell, name)) for name in FIELDS), self.which)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def races(rows: Iterable[Row]) -> list[Race]:
    """Every cell and pass with a time of a rival, in the order of the axes."""
    found: dict[tuple[Cell, str], Race] = {}
    for row in rows:
        if row.get("pass"):
            key = _cell(row), row["pass"]
            found.setdefault(key, Race(*key)).rows.append(row)

    def order(race: Race) -> tuple[int, ...]:
        places = (AXES[name].index(getattr(race.cell, name)) for name in FIELDS)
        return (*places, list(PASSES).index(race.which))

    return sorted((race for race in found.values() if race.rivals), key=order)


def _cell(row: Row) -> Cell:
    return Cell(row["loss"], row["negatives"], row["dtype"], int(row["n"]), int(row["d"]), int(row["threads"]))


def names(rows: Iterable[Row]) -> list[str]:
    """Our paths that have a time, in the order asked for."""
    timed = (row for row in rows if row.get("seconds") and row["contestant"].startswith(OURS))
    return list(dict.fromkeys(row["contestant"] for row in timed))


def reasons(former: str) -> dict[tuple[str, ...], str]:
    """What people wrote next to misses in a document's table, by the columns that name a miss."""
    header = "| " + " | ".join(MISS_COLUMNS) + " |"
    found = {}
    for line in former.partition(header)[2].splitlines():
        parts = [part.strip() for part in line.strip()[1:-1].split("|")]
        if len(parts) == len(MISS_COLUMNS) and set(parts[-1]) - {"-"}:
            found[tuple(parts[:KEY])] = parts[-1]
    return found


def tables(rows: Sequence[Row], former: str = "") -> str:
    """The page's tables of the rows of a race; the reasons in the former text are kept.

    The first path with a time is the one that is judged.
    """
    ran, ours = races(rows), names(rows)
    if not (ran and ours):
        return _left_out(rows)
    judged = ours[0]
    ran = [race for race in ran if not math.isnan(race.ratio(judged))]
    plain = [race for race in ran if race.cell.dtype == "float32" and race.cell.threads == 1]
    half = [race for race in ran if race.cell.dtype != "float32" and race.cell.threads == 1]
    several = [race for race in ran if race.cell.threads > 1]

    def block(title: str, chosen: Sequence[Race], columns: Sequence[str]) -> str:
        return f"{title}\n\n{_ratios(chosen, columns, judged)}" if chosen else ""

    device, torch = rows[0]["device"], rows[0]["torch"]
    met = sum(not race.missed(judged) for race in ran)
    kinds = ("loss", "negatives")
    parts = [
        f"{device}, torch {torch}. Time of `{judged}` over that of the best rival, eager or compiled. "
        "Below 1, ctloss is faster. One thread by its CPU time, two by the wall clock. Bold: above the goal, which is "
        f"{GOALS}.",
        f"{met:,} of {len(ran):,} meet their goal: {met / len(ran):.0%}.",
        _unreached(rows),
        block("float32, d = 256, one thread:", [race for race in plain if race.cell.d == 256], kinds),
        block("float32, one thread, the worst d:", plain if len({race.cell.d for race in plain}) > 1 else [], kinds),
        block("Half precision, one thread, the worst d:", half, ("dtype", *kinds)),
        block("Two threads, the worst d:", several, ("dtype", *kinds)),
        _side_by_side(ran, ours),
        _errors(ran, judged),
        _memory(ran, judged),
        _left_out(rows),
        _misses(ran, judged, reasons(former)),
    ]
    return "\n\n".join(part for part in parts if part)


def _ratios(chosen: Sequence[Race], columns: Sequence[str], judged: str) -> str:
    """A line for each value of the columns and pass, a column for each n; the worst ratio of each."""
    lines: dict[tuple[str, ...], dict[int, list[Race]]] = defaultdict(lambda: defaultdict(list))
    for race in sorted(chosen, key=lambda race: [AXES[name].index(getattr(race.cell, name)) for name in columns]):
        about = (*(str(getattr(race.cell, name)) for name in columns), race.which)
        lines[about][race.cell.n].append(race)
    sizes = sorted({race.cell.n for race in chosen})

    def worst(these: Sequence[Race]) -> str:
        if not these:
            return ""
        race = max(these, key=lambda race: race.ratio(judged))
        text = f"{race.ratio(judged):.2f}"
        text = f"**{text}**" if any(race.missed(judged) for race in these) else text
        return text if len({race.cell.d for race in chosen}) == 1 else f"{text} ({race.cell.d:,})"

    shown = [[*about, *(worst(by_size.get(n, [])) for n in sizes)] for about, by_size in lines.items()]
    return table([*columns, "pass", *map(_shown, sizes)], shown)


def _side_by_side(ran: Sequence[Race], ours: Sequence[str]) -> str:
    """Geometric means of every path's ratios by n, where there are several paths."""
    if len(ours) < 2:
        return ""
    sizes = sorted({race.cell.n for race in ran})

    def mean(name: str, which: str, n: int) -> str:
        here = (race.ratio(name) for race in ran if race.which == which and race.cell.n == n)
        logs = [math.log(ratio) for ratio in here if not math.isnan(ratio)]
        return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else ""

    lines = [[name, which, *(mean(name, which, n) for n in sizes)] for name in ours for which in PASSES]
    shown = table(["path", "pass", *map(_shown, sizes)], lines)
    return f"Geometric means of the ratios of every path over the cells that it ran:\n\n{shown}"


def _errors(ran: Sequence[Race], judged: str) -> str:
    """The worst errors against float64 of each loss and dtype, over all n: ours, and the most exact rival's."""
    groups: dict[tuple[str, str], list[Race]] = defaultdict(list)
    for race in ran:
        if any(row.get("gradient_error") for row in race.rows):
            groups[race.cell.loss, race.cell.dtype].append(race)

    def worst(these: Sequence[Race], start: str, column: str, choose: Callable[[Iterable[float]], float]) -> str:
        found = (
            [float(row[column]) for row in race.rows if row.get(column) and row["contestant"].startswith(start)]
            for race in these
        )
        return f"{max((choose(each) for each in found if each), default=math.nan):.0e}"

    sides: tuple[tuple[str, Callable[[Iterable[float]], float]], ...] = ((judged, max), (EAGER, min))
    lines = [
        [*group, *(worst(these, start, column, choose)
                   for column in ("gradient_error", "value_error") for start, choose in sides)]
        for group, these in groups.items()
    ]  # fmt: skip
    if not lines:
        return ""
    columns = ["loss", "dtype", "gradient's error", "the rivals'", "value's error", "the rivals'"]
    about = "The largest error against float64 over all n, next to that of the most exact eager form of each cell:"
    return f"{about}\n\n{table(columns, lines)}"


def _memory(ran: Sequence[Race], judged: str) -> str:
    lines = []
    for race in ran:
        peaks = {row["contestant"]: float(row["peak_bytes"]) / 2**20 for row in race.rows if row.get("peak_bytes")}
        rival = [peak for name, peak in peaks.items() if name.startswith(EAGER)]
        if judged in peaks and rival:
            about = [race.cell.loss, race.cell.negatives, _shown(race.cell.n), _shown(race.cell.d)]
            lines.append([*about, f"{peaks[judged]:,.0f}", f"{min(rival):,.0f}"])
    if not lines:
        return ""
    shown = table(["loss", "negatives", "n", "d", judged, "fastest eager form"], lines)
    return f"Peak memory of forward and backward beyond the inputs, float32, MiB:\n\n{shown}"


def _unreached(rows: Sequence[Row]) -> str:
    """How many cells the time did not suffice for, and which, n by n."""
    groups: dict[tuple[str, ...], set[int]] = defaultdict(set)
    cells = [_cell(row) for row in rows if row.get("note") == NOT_REACHED]
    for cell in cells:
        groups[cell.loss, cell.negatives, cell.dtype, f"d = {cell.d}", f"threads = {cell.threads}"].add(cell.n)
    if not cells:
        return ""
    lines = [f"- {', '.join(group)}: n = {', '.join(map(str, sorted(sizes)))}" for group, sizes in groups.items()]
    listed = "\n".join(lines)
    return f"<details><summary>Cells not reached in the time given: {len(cells)}.</summary>\n\n{listed}\n\n</details>"


def _left_out(rows: Sequence[Row]) -> str:
    """Who has no time, why, and in how many races."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        if row.get("note") not in ("", None, NOT_REACHED) and not row.get("seconds"):
            counts[row.get("contestant") or "everybody", row["note"]] += 1
    if not counts:
        return ""
    shown = table(["without a time", "races", "why"], [[name, n, why] for (name, why), n in counts.items()])
    return f"Who did not run everywhere:\n\n{shown}"


def _misses(ran: Sequence[Race], judged: str, given: Mapping[tuple[str, ...], str]) -> str:
    """Every miss with its reason. The reasons of cells that were not measured this time are kept at the end."""
    missed = [race for race in ran if race.missed(judged)]
    lines = []
    for race in sorted(missed, key=lambda race: race.ratio(judged) / goal(race.cell), reverse=True):
        ms = f"{race.times(OURS)[judged] * 1e3:.3g}"
        ratio, wanted = f"{race.ratio(judged):.2f}", str(goal(race.cell))
        lines.append([*race.key, ratio, wanted, ms, race.best_rival, given.get(race.key, "")])
    measured = {race.key for race in ran}
    lines += [[*key, "not measured", "", "", "", reason] for key, reason in given.items() if key not in measured]
    return f"Every miss, the furthest from its goal first:\n\n{table(MISS_COLUMNS, lines)}" if lines else ""
