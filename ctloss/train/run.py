"""A pretraining run from recipe to output folder."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..shared.command import Signals
from ..shared.files import locked, write_atomically
from ..shared.options import require
from ..shared.text import DataError, home_path
from . import saving, stops
from .effects import notes
from .finished import check_model, hub_name, read_results, upload, write_results
from .model.encoder import CCEEncoder, freeze_word_embeddings, make_encoders
from .model.export import export
from .model.objective import Objective
from .output import (
    CARD_FILE,
    CHECKPOINTS,
    PICTURE_FILE,
    RESULTS_FILE,
    checkpoints,
    claim_folder,
    claim_samples,
)
from .prepared.build import FROM_PYTHON, prepare
from .prepared.folder import Counts, Prepared, open_prepared
from .processes import from_main, on_main, shared_out
from .recipe import Recipe, RecipeError
from .reporting.card import model_card
from .reporting.probe import Probe
from .reporting.report import WordPictures, table
from .samples.collator import Collator
from .samples.dataset import WPSDataset, held_out
from .samples.mixing import times_of_origins
from .samples.sampler import BatchPlan
from .text.sentences import stable_hash

if TYPE_CHECKING:
    from .arguments import PretrainingArguments
    from .trainer import PretrainingTrainer

Stages = dict[str, dict[str, dict[str, float]]]
BEFORE_FILE, BEFORE_WORDS = "before.json", "before.safetensors"


@dataclass(frozen=True)
class Results:
    """What a run measured.

    Attributes:
        stages: measures by stage (``"before"``, ``"after"``, and ``"random"`` with a given encoder), language pair (and
            ``"mean"``) and name.
        facts: number of steps, seconds of training, versions.
    """

    stages: Stages
    facts: dict[str, Any]


def pretrain(recipe: Recipe, output: Path | str | None = None, *, pairs: Any = None, resume: bool = False) -> Results:
    """Pretrains an encoder following a recipe (Chen et al. 2022, eq. (3) or (7)).

    The output folder then holds the encoder and its tokenizer in Hugging Face's format, the head
    (``cce_head.safetensors``), the model card (``README.md``), the results (``results.json``), the picture of its
    words (``words.png``), the log (``metrics.jsonl``, ``tensorboard``) and the last checkpoints. On the CPU, a run that
    was killed and resumed ends with the weights of an uninterrupted one, bit for bit, and two runs of one recipe give
    the same numbers, given the same machine, processes and number of threads.

    SIGTERM, SIGINT and SIGUSR1 end the run after the step under way, with a checkpoint.

    Args:
        recipe: the run, see :func:`tiny` and :func:`paper`.
        output: folder for all of this; ``runs/NAME`` by default.
        pairs: parallel text in place of the recipe's corpus, see :func:`ctloss.train.corpus.bitexts_of`.
        resume: continue the run in the folder from its last complete checkpoint. A finished run stays as it is.

    Raises:
        RecipeError: the recipe cannot be run, or the folder holds something other than this run.
        DataError: a file is not in the format expected.
        DivergedError: a loss or weight is not finite; the last finite checkpoint is kept.
        SavingError: something could not be written; what was saved before is kept.
        Stopped: a signal ended the run; a KeyboardInterrupt.
    """
    from accelerate import PartialState

    folder = home_path(output) if output is not None else Path("runs") / recipe.name
    if pairs is not None and recipe.data.prepared is None:
        recipe = recipe.override(corpus=(FROM_PYTHON,))
    if recipe.data.prepared is not None:
        recipe = recipe.prepared_with(open_prepared(recipe.data.prepared).settings)
    signals = Signals("python -m ctloss.train", "go on with --resume", when="while no step was under way")
    with signals, ExitStack() as held:
        process = PartialState(cpu=recipe.training.use_cpu or not torch.cuda.is_available())

        def claim() -> bool:
            with refused("output"):
                held.enter_context(locked(folder))
                for line in claim_folder(folder, recipe, resume=resume, processes=process.num_processes):
                    print(line, file=sys.stderr)
            return (folder / RESULTS_FILE).is_file()

        if not on_main(process, claim):
            return _Run(recipe, folder, process, signals, pairs).finish()
        document = on_main(process, lambda: _finished(folder, recipe))
    if process.is_main_process:
        shown = table(document["stages"], held_out=recipe.data.held_out_words > 0)
        print(f"{shown}\n\nfinished already: {folder}", file=sys.stderr)
    return Results(document["stages"], document["facts"])


def _finished(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Returns the results of a finished run whose model is sound, and uploads it if that has failed before."""
    document = read_results(folder)
    check_model(folder, document)
    with refused("push_to_hub"):
        if address := upload(folder, recipe.training, again=False):
            print(f"uploaded: {address}", file=sys.stderr)
    return document


@contextmanager
def refused(name: str, others: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns errors about the input of a part of the run into a RecipeError that names the field concerned."""
    try:
        yield
    except (DataError, RecipeError):
        raise
    except (ValueError, OSError, *others) as error:  # type: ignore[misc]
        raise RecipeError(f"{name}: {error}") from error


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, process: Any, signals: Signals, pairs: Any) -> None:
        self.recipe, self.folder, self.process, self.signals = recipe, folder, process, signals
        self.started = time.perf_counter()
        with refused("training"):
            self.arguments = _arguments(recipe, folder)
        for note in notes(recipe.training.chosen):
            self.say(note)
        self.prepared = self._prepare(pairs)
        self.tokenizer = self.prepared.tokenizer()
        with refused("encoder"):
            self.encoder, self.random = make_encoders(recipe, self.tokenizer)
        self.say(
            f"encoder: {sum(p.numel() for p in self.encoder.backbone.parameters()):,} parameters "
            f"({type(self.encoder.backbone).__name__}); vocabulary of {len(self.tokenizer):,} wordpieces"
        )
        test = self.prepared.rows("test")
        self.test = self._probe(test)
        self.words = WordPictures(test, self.arguments.pictured_words)

    def say(self, text: str) -> None:
        """Prints, only on the main process."""
        if self.process.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def finish(self) -> Results:
        """Measures, trains, measures again, and writes the results."""
        stages, before = self._before()
        trainer = self._trainer()
        started = time.perf_counter()
        steps = trainer.run(checkpoints(self.folder))
        seconds = time.perf_counter() - started
        encoder = trainer.whole_encoder()
        stages["after"] = self._measured(encoder) if encoder is not None else {}
        stages["after"] = from_main(stages["after"])
        facts = {
            "steps": steps,
            "seconds of training since the last start": round(seconds, 1),
            "seconds in all since the last start": 0.0,
            "processes": self.process.num_processes,
            "threads": torch.get_num_threads(),
            "precision": _precision(self.arguments),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        results = Results(stages, facts)
        if self.process.is_main_process and encoder is not None:
            with stops.writing("the results", stops.MAKE_ROOM):
                self._write(results, encoder, before)
            with refused("push_to_hub"):
                upload(self.folder, self.recipe.training, again=True)
        self.process.wait_for_everyone()
        return results

    def _prepare(self, pairs: Any) -> Prepared:
        """Every process calls this: it waits at a lock while another prepares, not at a barrier."""
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            self.say(text)

        try:
            prepared = prepare(self.recipe.data, self.recipe.encoder, pairs=pairs, say=say)
        except DataError as error:
            if not self.process.is_main_process:
                # The main process says what all refuse. What only the one that prepares finds, it has to say itself.
                time.sleep(2)
                print(error, file=sys.stderr, flush=True)
            raise
        on_main(self.process, lambda: claim_samples(self.folder, {"corpus": prepared.fingerprint}))
        for note in prepared.notes:
            if note not in said:
                self.say(note)
        for split, count in prepared.counts.items():
            self.say(f"{split}: {count}")
        return prepared

    def _probe(self, rows: list[dict[str, Any]]) -> Probe:
        share, seed = self.recipe.data.held_out_words, self.arguments.seed

        def is_held_out(types: Any) -> Any:
            return held_out(np.asarray(types, dtype=np.uint64), share, seed) if share else [True] * len(types)

        return Probe(rows, most=self.recipe.data.evaluation_pairs, is_held_out=is_held_out)

    def _measured(self, encoder: CCEEncoder) -> dict[str, dict[str, float]]:
        """Measures on the test pairs, on the training device; all processes together if they all have the encoder."""
        return self.test(encoder.to(self.process.device), together=not shared_out(self.arguments))

    def _before(self) -> tuple[Stages, Tensor]:
        """Returns what was measured before training and the words' vectors then, from the folder if they lie there."""
        document = self.recipe.as_dict()
        document["training"] = {"seed": self.arguments.seed}
        key = f"{stable_hash(self.prepared.fingerprint, json.dumps(document, sort_keys=True)):016x}"
        pictured = self.arguments.pictured_words
        record, vectors = on_main(self.process, lambda: read_before(self.folder, key))
        stages = record.get("stages")
        if not isinstance(stages, dict) or "before" not in stages:
            named = {"random": self.random, "before": self.encoder}
            stages = {
                name: self.test(encoder.to(self.process.device), together=True)
                for name, encoder in named.items()
                if encoder is not None
            }
        self.random = None
        if self.process.is_main_process and record.get("pictured_words") != pictured:
            vectors = self.words.vectors(self.encoder.to(self.process.device))
            with stops.writing("the measures before training", stops.MAKE_ROOM):
                write_before(self.folder, {"key": key, "pictured_words": pictured, "stages": stages}, vectors)
        if shared_out(self.arguments):
            self.encoder.to("cpu")
        return stages, vectors

    def _trainer(self) -> PretrainingTrainer:
        from .trainer import PretrainingTrainer

        recipe, arguments, objective = self.recipe, self.arguments, self.recipe.objective
        batch_size, seed = arguments.per_device_train_batch_size, arguments.seed
        world = self.process.num_processes
        shared = world > 1 and objective.negatives_across == "ranks"
        with refused("corpus"):
            rows = WPSDataset(
                self.prepared.arrow_files("train"),
                require_words=recipe.data.only_with_words or objective.needs_words,
                words=objective.needs_words,
                held_out_share=recipe.data.held_out_words,
                held_out_seed=seed,
            )
        with refused(f"corpus, for batches of {world} × {batch_size}" if shared else "corpus"):
            plan = BatchPlan(
                rows.lengths,
                rows.keys,
                batch_size=batch_size * (world if shared else 1),
                seed=seed,
                times=self._times(rows),
            )
        require(
            shared or len(plan) >= world,
            "per_device_train_batch_size",
            f"at least a batch for each of {world} processes",
            f"{len(plan)} of {plan.batch_size} pairs",
            "lower it, or the number of processes",
        )
        validation = self._probe(self.prepared.rows("validation"))
        best = (arguments.metric_for_best_model or "").removeprefix("eval_")
        require(
            not best or best in validation.names,
            "metric_for_best_model",
            "one of " + (", ".join(sorted(validation.names)) or "no measures: there are no validation pairs"),
            best,
            "choose one of these, or another corpus for --validation",
        )
        if arguments.freeze_word_embeddings:
            freeze_word_embeddings(self.encoder.backbone)
        together = not shared_out(arguments)
        with refused("training arguments", (RuntimeError, ImportError, KeyError, TypeError)):
            trainer = PretrainingTrainer(
                Objective(
                    self.encoder,
                    loss=objective.loss,
                    temperature=objective.temperature,
                    negatives=objective.negatives,
                    alpha=objective.alpha,
                    group="world" if shared else None,
                    gradient_cache=arguments.gradient_cache,
                    learn_temperature=objective.learn_temperature,
                    stack_sides=together,
                ),
                arguments,
                self.folder,
                rows=rows,
                plan=plan,
                split=shared,
                collate=Collator(
                    self.tokenizer,
                    seed=seed,
                    words=objective.needs_words,
                    mlm_probability=objective.mlm_probability if objective.alpha > 0 else 0.0,
                    same_words=objective.same_words,
                ),
                tokenizer=self.tokenizer,
                measure=lambda encoder: validation(encoder, together=together)["mean"],
                signals=self.signals,
            )
        self._say_how(len(rows), len(plan) if shared else len(plan) // world, shared)
        return trainer

    def _times(self, rows: WPSDataset) -> np.ndarray | None:
        """How often an epoch sees each row; None for once."""
        mixing = self.recipe.data.mixing
        if not mixing:
            return None
        return times_of_origins(mixing, self.prepared.origins, np.unique(rows.origins).tolist())[rows.origins]

    def _say_how(self, rows: int, batches: int, shared: bool) -> None:
        arguments, world = self.arguments, self.process.num_processes
        parts = arguments.gradient_accumulation_steps
        self.say(
            f"training: {rows_used(self.prepared.counts['train'], rows)}, {batches:,} batches of "
            f"{f'{world} × ' if shared else ''}{arguments.per_device_train_batch_size} per epoch, "
            f"{f'{parts} to a step, ' if parts > 1 else ''}"
            f"{_precision(arguments)}, {world} process{'es' if world > 1 else ''}"
        )
        if world > 1:
            self.say(
                f"negatives are those of all {world} processes"
                if shared
                else f"each of the {world} processes has its own negatives: they are not shared"
            )
        if shared_out(arguments):
            self.say("checkpoints are Trainer's own: with FSDP and DeepSpeed no process has all weights")

    def _write(self, results: Results, encoder: CCEEncoder, before: Tensor) -> None:
        saving.save_encoder(self.folder, encoder, self.tokenizer)
        export(self.folder)
        if self.arguments.pictured_words:
            panels, picture = {"before": before, "after": self.words.vectors(encoder)}, self.folder / PICTURE_FILE
            drawn = self.words.draw(panels, picture, seed=self.arguments.seed)
            self.say(f"picture: {picture}" if drawn else "picture: too few word pairs to draw")
        results.facts["seconds in all since the last start"] = round(time.perf_counter() - self.started, 1)
        counts = "\n".join(f"{split}: {count}" for split, count in self.prepared.counts.items())
        card = model_card(
            self.recipe,
            results.stages,
            counts,
            results.facts,
            languages=list(dict.fromkeys(code for origin in self.prepared.origins for code in origin[1:])),
            name=(self.arguments.push_to_hub and self.arguments.hub_model_id) or ".",
        )
        write_atomically(self.folder / CARD_FILE, card)
        # Written last: its presence means that the run is finished.
        write_results(self.folder, self.recipe, results.stages, results.facts)
        self.say(
            "\n"
            + table(results.stages, held_out=self.recipe.data.held_out_words > 0)
            + f"\n\nencoder, model card and results: {self.folder}"
        )


def read_before(folder: Path, key: str) -> tuple[dict[str, Any], Tensor]:
    """Returns what :func:`write_before` wrote under a key; of something else, or damaged, an empty record."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        record = json.loads((folder / BEFORE_FILE).read_text(encoding="utf-8"))
        if record["key"] == key:
            return record, load_file(folder / BEFORE_WORDS)["words"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        # It can be measured again.
        pass
    return {}, torch.zeros(0)


def write_before(folder: Path, record: dict[str, Any], vectors: Tensor) -> None:
    """Writes the measures before training, their key, and the vectors of the picture's words."""
    from safetensors.torch import save

    write_atomically(folder / BEFORE_WORDS, save({"words": vectors.contiguous()}))
    write_atomically(folder / BEFORE_FILE, json.dumps(record, indent=2) + "\n")


def _arguments(recipe: Recipe, folder: Path) -> PretrainingArguments:
    arguments = recipe.training.arguments(folder / CHECKPOINTS)
    if arguments.push_to_hub and arguments.hub_model_id is None:
        arguments.hub_model_id = hub_name(folder, recipe.training)
    return arguments


def rows_used(counts: Counts, rows: int) -> str:
    """Returns how many rows a run trains on, and why it leaves out the others.

    Example:
        >>> rows_used(Counts(rows=2400, rows_with_words=1183), 1102)
        '1,102 of 2,400 rows (1,217 without a word pair, 81 whose word pairs are all held out)'
    """
    if rows == counts.rows:
        return f"{rows:,} rows"
    left_out = {
        "without a word pair": counts.rows - counts.rows_with_words,
        "whose word pairs are all held out": counts.rows_with_words - rows,
    }
    why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    return f"{rows:,} of {counts.rows:,} rows ({why})"


def _precision(arguments: PretrainingArguments) -> str:
    return "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
