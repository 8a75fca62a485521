"""The whole ablation, step by step: the base, the rows of the table, the study, the report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path

from benchmarks.ablation.base import Base, make
from benchmarks.ablation.corpus import prepare
from benchmarks.ablation.figures import draw_forces, draw_scores, draw_study
from benchmarks.ablation.logs import facts, validation
from benchmarks.ablation.plan import METHODS, STARTS, Arm, Row, Scale, study_arms, study_row, table_rows
from benchmarks.ablation.report import report, scores, summary
from benchmarks.ablation.run import (
    EVALUATION,
    evaluate,
    is_evaluated,
    is_trained,
    place_of,
    recipe_of,
    seeds_of,
    tags_english,
    train,
)
from benchmarks.ablation.statistics import joined
from ctloss.evaluate import Encoder, Results, draw_words, read_results
from ctloss.shared.files import write_atomically


class Ablation:
    """All of it, step by step, in one output folder, except the figures; steps that are done are found and skipped."""

    def __init__(self, data: Path, output: Path, scale: Scale, figures: Path) -> None:
        # Recipes name files of this folder, and must not depend on how it is given.
        self.data, self.output, self.scale, self.figures = data, output.absolute(), scale, figures
        self.corpus = prepare(data, self.output / "corpus", scale.per_source)
        self._made = self.output / f"base-{_digest(scale.base)}"
        self.starts = {start: self._made / start for start in STARTS}
        self._checked = self._made / "starts.json"

    def check_base(self) -> None:
        """Make the base, and make sure once that it is a better start than random weights.

        A fine-tuned task, which is what masked language modelling is for, decides; retrieval after contrastive training
        is measured too. Both go into ``starts.json`` and the report.

        Raises:
            ValueError: English is tagged no better from the base.
        """
        make(self.scale.base, self.data, self._made)
        steps = self.scale.better_after
        if not steps:
            return
        if not self._checked.is_file():
            changes = {**METHODS["CZ-snt"], "alpha": 0.0, "head": False, "batch_size": self.scale.batch_size}
            rows = {start: Row("check", start, 0, {**changes, "max_steps": steps}) for start in STARTS}
            found = {
                "steps": steps,
                "tagging": {start: tags_english(self.starts[start], self.data, steps) for start in STARTS},
                "retrieval": {start: validation(self._train(rows[start])) for start in STARTS},
            }
            write_atomically(self._checked, json.dumps(found, indent=1) + "\n")
        tagging = json.loads(self._checked.read_text(encoding="utf-8"))["tagging"]
        if tagging["base"] <= tagging["random"]:
            reached = ", ".join(f"{start} {value:.3f}" for start, value in tagging.items())
            raise ValueError(
                f"expected a base that is a better start than random weights, got F1 of {reached} in tagging English "
                "after fine-tuning; train the base longer"
            )

    def base(self) -> None:
        """Evaluate both starts, also with the seeds of their earlier evaluations."""
        for start in STARTS:
            seeds = {*self.scale.seeds, *seeds_of(self.starts[start])}
            self._evaluate(self.starts[start], start, tuple(sorted(seeds)))
        self.write()

    def table(self) -> None:
        """Train and evaluate the rows."""
        for row in table_rows(self.scale):
            self._evaluate(self._train(row), row.name, (row.seed,))
            self.write()

    def study(self) -> None:
        """Train at every batch size and precision."""
        for seed in self.scale.seeds:
            for arm in study_arms(self.scale):
                self._train(study_row(arm, seed, self.scale))
        self.write()

    def write(self) -> str:
        """Write the report and the figures of everything that is done; return the report.

        Raises:
            FileNotFoundError: nothing is done.
        """
        rows = self._rows()
        found: dict[Arm, dict[int, dict[str, float]]] = {}
        for arm in study_arms(self.scale):
            for row in (study_row(arm, seed, self.scale) for seed in self.scale.seeds):
                if is_trained(self._place(row)):
                    found.setdefault(arm, {})[row.seed] = self._facts(row)
        starts = json.loads(self._checked.read_text(encoding="utf-8")) if self._checked.is_file() else None
        if not (rows or found or starts):
            raise FileNotFoundError(
                f"expected finished runs in {self.output}, found none of this size and data; run the parts first, or "
                "give the --output that has them"
            )
        text = report(rows, found, starts, self._logged())
        write_atomically(self.output / "report.md", text)
        if found:
            draw_study(found, self.figures / "ablation-batch.png")
            draw_forces(found, self.figures / "ablation-forces.png")
        shown = [results for results in rows if "random" not in results.name.split(", ")[-1]]
        if shown:
            draw_scores(scores(shown), self.figures / "ablation-tasks.png")
        return text

    def summary(self) -> str:
        """The short table."""
        return summary(self._rows())

    def words(self) -> None:
        """Draw words before and after training with the last method, first seed.

        Raises:
            FileNotFoundError: it is not trained yet.
        """
        row = [row for row in table_rows(self.scale) if row.start == "base" and row.seed == self.scale.seeds[0]][-1]
        if not is_trained(self._place(row)):
            raise FileNotFoundError(
                f"expected {row.name} of seed {row.seed} in {self._place(row)}, found no finished run; train the table "
                "first (--only table)"
            )
        models = {"before": self.starts["base"], f"after: {row.name}": self._place(row)}
        encoders = {title: Encoder(str(model), pooling="avg-first-last") for title, model in models.items()}
        draw_words(encoders, self.data / "align", self.figures / "ablation-words.png")

    def _rows(self) -> list[Results]:
        rows = [
            dataclasses.replace(read_results(self.starts[start] / EVALUATION), name=start)
            for start in STARTS
            if is_evaluated(self.starts[start])
        ]
        for start in STARTS:
            for name in self.scale.methods:
                runs = {
                    row.seed: read_results(self._place(row) / EVALUATION)
                    for row in table_rows(self.scale)
                    if (row.name, row.start) == (name, start) and is_evaluated(self._place(row))
                }
                if runs:
                    rows.append(joined(_title(name, start), runs))
        return rows

    def _logged(self) -> dict[str, dict[int, dict[str, float]]]:
        logged: dict[str, dict[int, dict[str, float]]] = {}
        for row in sorted(table_rows(self.scale), key=lambda row: STARTS.index(row.start)):
            if is_trained(self._place(row)):
                logged.setdefault(_title(row.name, row.start), {})[row.seed] = self._facts(row)
        return logged

    def _facts(self, row: Row) -> dict[str, float]:
        recipe = recipe_of(row, self.starts[row.start], self.corpus, self.scale.learning_rate)
        return facts(self._place(row), recipe.training.max_grad_norm)

    def _place(self, row: Row) -> Path:
        return place_of(row, self.starts[row.start], self.corpus, self.output / "rows", self.scale)

    def _train(self, row: Row) -> Path:
        started, folder = time.perf_counter(), self._place(row)
        train(row, self.starts[row.start], self.corpus, folder, self.scale)
        say(f"{folder.name}: trained, {time.perf_counter() - started:.0f} s")
        return folder

    def _evaluate(self, model: Path, name: str, seeds: tuple[int, ...]) -> None:
        started = time.perf_counter()
        evaluate(model, name, seeds, self.data, self.corpus, self.scale)
        say(f"{model.name}: evaluated, {time.perf_counter() - started:.0f} s")


def say(text: str) -> None:
    """Print what was done, and when."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _title(name: str, start: str) -> str:
    return name if start == "base" else f"{name}, from random"


def _digest(base: Base) -> str:
    return hashlib.sha256(json.dumps(dataclasses.asdict(base), sort_keys=True).encode()).hexdigest()[:8]
