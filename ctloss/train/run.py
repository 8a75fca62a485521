"""A pretraining run from recipe to output folder."""

from __future__ import annotations

import copy
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..shared.files import locked, write_atomically
from ..shared.options import require
from ..shared.text import DataError
from ..shared.training import uses_bfloat16
from .model.encoder import CCEEncoder, make_encoders, make_tokenizer
from .model.objective import Objective
from .output import CARD_FILE, PICTURE_FILE, RESULTS_FILE, checkpoints, claim_folder, claim_samples
from .recipe import Recipe, RecipeError
from .reporting.card import model_card
from .reporting.probe import Probe
from .reporting.report import draw_words, table
from .samples.collator import Collator
from .samples.dataset import WPSDataset, held_out
from .samples.prepare import build_samples, read_corpus, texts
from .samples.sampler import BatchPlan
from .samples.wps import WPSCounts, read_manifest, read_table
from .text.embedded import SPLITS, Split
from .text.sentences import stable_hash
from .text.tokenizer import definition


@dataclass(frozen=True)
class Results:
    """What a run measured.

    Attributes:
        stages: measures by stage (``"before"``, ``"after"``, and ``"random"`` with a given encoder), language pair (and
            ``"mean"``) and name.
        facts: number of steps, seconds of training, versions.
    """

    stages: dict[str, dict[str, dict[str, float]]]
    facts: dict[str, Any]


def pretrain(recipe: Recipe, output: Path | str | None = None, *, resume: bool = False) -> Results:
    """Pretrains an encoder following a recipe (Chen et al. 2022, eq. (3) or (7)).

    The output folder then holds the encoder and its tokenizer in Hugging Face's format, the head
    (``cce_head.safetensors``), the model card (``README.md``), the results (``results.json``), the picture of its
    words (``words.png``), the log (``metrics.jsonl``, ``tensorboard``), the samples (``data``) and the last
    checkpoints. On the CPU, a run that was killed and resumed ends with the weights of an uninterrupted one, bit for
    bit, and two runs of one recipe give the same numbers, given the same machine and number of threads.

    Args:
        recipe: the run, see :func:`tiny` and :func:`paper`.
        output: folder for all of this; ``runs/NAME`` by default.
        resume: continue the run in the folder from its last complete checkpoint. A finished run stays as it is.

    Raises:
        RecipeError: the recipe cannot be run, or the folder holds something other than this run.
        DataError: a file is not in the format expected.
    """
    from accelerate import PartialState

    folder = Path(output) if output is not None else Path("runs") / recipe.name
    process = PartialState(cpu=not torch.cuda.is_available())
    with ExitStack() as held:
        if process.is_main_process:
            with refused("output"):
                held.enter_context(locked(folder))
            for removed in claim_folder(folder, recipe, resume=resume):
                print(f"removed, as it was incomplete or damaged: {removed}", file=sys.stderr)
        process.wait_for_everyone()
        if not (folder / RESULTS_FILE).is_file():
            return _Run(recipe, folder, process).finish()
    document = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    if process.is_main_process:
        shown = table(document["stages"], held_out=recipe.data.held_out_words > 0)
        print(f"{shown}\n\nfinished already: {folder}", file=sys.stderr)
    return Results(document["stages"], document["facts"])


@contextmanager
def refused(name: str) -> Iterator[None]:
    """Turns errors about the input of a part of the run into a RecipeError that names the field concerned."""
    try:
        yield
    except (DataError, RecipeError):
        raise
    except (ValueError, OSError) as error:
        raise RecipeError(f"{name}: {error}") from error


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, process: Any) -> None:
        self.recipe, self.folder, self.process = recipe, folder, process
        self.started = time.perf_counter()
        self.corpus = read_corpus(
            recipe.data, evaluation_pairs=recipe.data.evaluation_pairs, seed=recipe.bookkeeping.seed
        )
        for note in self.corpus.notes:
            self.say(note)
        with refused("encoder"):
            self.tokenizer = make_tokenizer(recipe, texts(self.corpus.parts["train"]))
            self.encoder, self.random = make_encoders(recipe, self.tokenizer)
        with refused("corpus"):
            self.counts = self._build()
        self.say(
            f"encoder: {sum(p.numel() for p in self.encoder.backbone.parameters()):,} parameters "
            f"({type(self.encoder.backbone).__name__}); vocabulary of {len(self.tokenizer):,} wordpieces"
        )
        self.test_rows = read_table(self.folder / "data" / "test").to_pylist()
        self.test = self._probe(self.test_rows)

    def say(self, text: str) -> None:
        """Prints, only on the main process."""
        if self.process.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def finish(self) -> Results:
        """Measures, trains, measures again, and writes the results."""
        stages: dict[str, dict[str, dict[str, float]]] = {}
        if self.random is not None:
            stages["random"] = self.test(self.random)
        stages["before"] = self.test(self.encoder)
        before = copy.deepcopy(self.encoder)
        steps, seconds = self._train()
        stages["after"] = self.test(self.encoder)
        self.process.wait_for_everyone()
        facts = {
            "steps": steps,
            "seconds of training since the last start": round(seconds, 1),
            "seconds in all since the last start": 0.0,
            "processes": self.process.num_processes,
            "threads": torch.get_num_threads(),
            "precision": "bf16" if uses_bfloat16(self.recipe.bookkeeping.precision) else "fp32",
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        results = Results(stages, facts)
        if self.process.is_main_process:
            self._write(results, before)
        self.process.wait_for_everyone()
        return results

    def _build(self) -> dict[Split, WPSCounts]:
        with self.process.main_process_first():
            counts = build_samples(
                self.corpus,
                self.tokenizer,
                self.folder / "data",
                max_length=self.recipe.data.max_length,
                progress=self.process.is_main_process,
            )
        if self.process.is_main_process:
            claim_samples(self.folder, self._samples())
        for split, count in counts.items():
            self.say(f"{split}: {count}")
        return counts

    def _samples(self) -> dict[str, str]:
        samples = {}
        for split in SPLITS:
            if manifest := read_manifest(self.folder / "data" / split):
                samples[str(split)] = str(manifest["fingerprint"])
        return {**samples, "tokenizer": f"{stable_hash(definition(self.tokenizer)):016x}"}

    def _probe(self, rows: list[dict[str, Any]]) -> Probe:
        share, seed = self.recipe.data.held_out_words, self.recipe.bookkeeping.seed

        def is_held_out(types: Any) -> Any:
            return held_out(np.asarray(types, dtype=np.uint64), share, seed) if share else [True] * len(types)

        return Probe(rows, most=self.recipe.data.evaluation_pairs, is_held_out=is_held_out)

    def _train(self) -> tuple[int, float]:
        from .trainer import PretrainingTrainer

        recipe, seed = self.recipe, self.recipe.bookkeeping.seed
        objective, batch_size = recipe.objective, recipe.optimisation.batch_size
        world = self.process.num_processes
        shared = world > 1 and objective.negatives_across == "ranks"
        with refused("corpus"):
            rows = WPSDataset(
                self.folder / "data" / "train",
                require_words=recipe.data.only_with_words or objective.needs_words,
                held_out_share=recipe.data.held_out_words,
                held_out_seed=seed,
            )
        with refused(f"corpus, for batches of {world} × {batch_size}" if shared else "corpus"):
            plan = BatchPlan(rows.lengths, rows.keys, batch_size=batch_size * (world if shared else 1), seed=seed)
        require(
            shared or len(plan) >= world,
            "batch_size",
            f"at least a batch for each of {world} processes",
            f"{len(plan)} of {plan.batch_size} pairs",
            "lower it, or the number of processes",
        )
        validation = self._probe(read_table(self.folder / "data" / "validation").to_pylist())
        trainer = PretrainingTrainer(
            Objective(
                self.encoder,
                loss=objective.loss,
                temperature=objective.temperature,
                negatives=objective.negatives,
                alpha=objective.alpha,
                group="world" if shared else None,
                gradient_cache=recipe.optimisation.gradient_cache,
            ),
            recipe,
            self.folder,
            rows=rows,
            plan=plan,
            collate=Collator(
                self.tokenizer,
                seed=seed,
                words=objective.needs_words,
                mlm_probability=objective.mlm_probability if objective.alpha > 0 else 0.0,
            ),
            tokenizer=self.tokenizer,
            measure=lambda encoder: validation(encoder)["mean"],
        )
        batches = len(plan) if shared else len(plan) // world
        self.say(
            f"training: {len(rows):,} rows, {batches:,} batches of {f'{world} × ' if shared else ''}{batch_size} per "
            f"epoch, {'bfloat16 autocast' if trainer.args.bf16 else 'float32'}, "
            f"{world} process{'es' if world > 1 else ''}"
        )
        if world > 1:
            self.say(
                f"negatives are those of all {world} processes"
                if shared
                else f"each of the {world} processes has its own negatives: they are not shared"
            )
        started = time.perf_counter()
        steps = trainer.run(checkpoints(self.folder))
        return steps, time.perf_counter() - started

    def _write(self, results: Results, before: CCEEncoder) -> None:
        bookkeeping = self.recipe.bookkeeping
        self.encoder.save(self.folder)
        self.tokenizer.save_pretrained(self.folder)
        if bookkeeping.pictured_words:
            encoders, picture = {"before": before, "after": self.encoder}, self.folder / PICTURE_FILE
            words, seed = bookkeeping.pictured_words, bookkeeping.seed
            drawn = draw_words(encoders, self.test_rows, picture, meanings=words, seed=seed)
            self.say(f"picture: {picture}" if drawn else "picture: too few word pairs to draw")
        results.facts["seconds in all since the last start"] = round(time.perf_counter() - self.started, 1)
        counts = "\n".join(f"{split}: {count}" for split, count in self.counts.items())
        write_atomically(self.folder / CARD_FILE, model_card(self.recipe, results.stages, counts, results.facts))
        document = {"recipe": self.recipe.as_dict(), "stages": results.stages, "facts": results.facts}
        # Written last: its presence means that the run is finished.
        write_atomically(self.folder / RESULTS_FILE, json.dumps(document, indent=2) + "\n")
        self.say(
            "\n"
            + table(results.stages, held_out=self.recipe.data.held_out_words > 0)
            + f"\n\nencoder, model card and results: {self.folder}"
        )
