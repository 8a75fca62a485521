"""Several evaluations of one model: each result is kept as soon as it is computed, and none is computed twice."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..shared.files import open_folder, write_atomically
from ..shared.models import load_tokenizer, read_config
from ..shared.options import Group
from ..shared.text import home_path
from .data.sources import EVALUATIONS, digest_of_data, digest_of_model
from .models.encoder import Encoder, VectorOptions, choose_layer
from .models.method import own_method
from .models.options import XTREME_OPTIONS, FinetuneOptions
from .results.scores import (
    FILE,
    Outcome,
    Results,
    TaskResult,
    add_result,
    read_results,
    serves,
    write_results,
    write_submission,
)
from .tasks.classification import evaluate_pawsx, evaluate_xnli
from .tasks.multiway import MultiwayOptions, evaluate_flores, evaluate_ntrex
from .tasks.questions import evaluate_mlqa, evaluate_tydiqa, evaluate_xquad
from .tasks.retrieval import evaluate_bucc, evaluate_pairs, evaluate_tatoeba
from .tasks.tagging import evaluate_panx, evaluate_udpos
from .tasks.words import AlignmentOptions, evaluate_alignment, evaluate_words

# What runs each evaluation.
RUNS: dict[str, Callable[..., Outcome]] = {
    "xnli": evaluate_xnli,
    "pawsx": evaluate_pawsx,
    "pos": evaluate_udpos,
    "ner": evaluate_panx,
    "xquad": evaluate_xquad,
    "mlqa": evaluate_mlqa,
    "tydiqa": evaluate_tydiqa,
    "bucc": evaluate_bucc,
    "tatoeba": evaluate_tatoeba,
    "pairs": evaluate_pairs,
    "flores": evaluate_flores,
    "ntrex": evaluate_ntrex,
    "words": evaluate_words,
    "align": evaluate_alignment,
}
# The evaluations that have options of their own.
OPTIONS: dict[str, type[Group]] = {"flores": MultiwayOptions, "ntrex": MultiwayOptions, "align": AlignmentOptions}
# These change how fast a result is computed, not what it is.
NOT_COMPARED = ("output", "evaluation_batch_size", "checkpoint_every")


def run(
    model: str,
    data: Mapping[str, str],
    output: str | Path,
    *,
    name: str | None = None,
    languages: Mapping[str, Sequence[str]] | None = None,
    vectors: VectorOptions | None = None,
    finetuning: Mapping[str, FinetuneOptions] | None = None,
    options: Mapping[str, Group] | None = None,
) -> Results:
    """Runs the evaluations that an output folder does not have yet, and writes results and predictions there.

    Started by torchrun, all processes fine-tune together, and then only the first does the rest.

    Args:
        model: name or folder of a Hugging Face encoder.
        data: by evaluation, where its data lie (see :func:`ctloss.evaluate.data.sources.find_data`).
        output: folder of ``results.json``, ``submission/`` in XTREME's layout, and ``finetuned/``.
        name: in tables; by default the name in the folder's results, or else the end of the model's name.
        languages: by evaluation; by default all that its data have.
        finetuning: options by fine-tuned evaluation; their ``output`` is set here.
        options: by evaluation, of those in ``OPTIONS``.

    Returns:
        All results in the folder.

    Raises:
        ValueError: the model is not an encoder; or the folder cannot be written to, or holds another model's results
            or results with other settings.
        DataError: files are missing or malformed.
    """
    model = str(home_path(model))
    config = read_config(model)
    load_tokenizer(model)
    output = home_path(output)
    digest = digest_of_model(model)
    tuning = {task: _finetuning(task, finetuning or {}) for task in data}
    given = {task: chosen for task, chosen in (options or {}).items() if task in OPTIONS}
    vectors = vectors or VectorOptions()
    if vectors.pooling == "layer" and None in tuning.values():
        vectors = dataclasses.replace(vectors, layer=choose_layer(vectors.layer, config.num_hidden_layers))
    settings = {
        task: _settings(model, digest, task, place, (languages or {}).get(task), vectors, tuning[task], given.get(task))
        for task, place in data.items()
    }
    kept = read_results(output) if (output / FILE).exists() else Results(Path(model).resolve().name, model)
    for task, result in kept.tasks.items():
        if result.settings.get("model") != digest:
            raise ValueError(
                f"{output / FILE}: expected results of {model} as it is, got those of another model ({kept.model} as "
                f"it was) for {task}; choose another --output"
            )
    # All refusals come before the first hour is spent.
    waiting = [task for task in data if not serves(kept.tasks.get(task), settings[task], f"{output / FILE}, {task}")]
    first = int(os.environ.get("RANK", "0")) == 0
    encoder: Encoder | None = None
    if first:
        open_folder(output)
        if name not in (None, kept.name):
            kept = dataclasses.replace(kept, name=name)
            if kept.tasks:
                write_results(output, kept)
        # The encoder's refusals too.
        if any(tuning[task] is None for task in waiting):
            encoder = Encoder(model, **dataclasses.asdict(vectors))
    # Processes that wait too long for the first one to join the fine-tuning give up.
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    for task in sorted(data, key=lambda task: together and tuning[task] is None):
        if task not in waiting:
            _say(f"{task}: already in {output / FILE}", first)
            continue
        chosen, wanted = tuning[task], (languages or {}).get(task)
        _say(f"{task}: {data[task]}", first)
        start = time.monotonic()
        if chosen is not None:
            # Training needs the memory.
            encoder = None
            outcome = RUNS[task](model, data[task], wanted, dataclasses.replace(chosen, output=output / "finetuned"))
        elif first:
            encoder = encoder or Encoder(model, **dataclasses.asdict(vectors))
            outcome = RUNS[task](encoder, data[task], wanted, *([given[task]] if task in given else []))
        else:
            continue
        if first:
            _submit(output, EVALUATIONS[task].submission, outcome)
            if task == "align":
                for name, lines in outcome.predictions.items():
                    write_atomically(output / "alignments" / f"{name}.out", "".join(f"{line}\n" for line in lines))
            add_result(
                output, kept, task, TaskResult(settings[task], outcome.scores, time.monotonic() - start), outcome.items
            )
    return read_results(output) if first else kept


def _finetuning(task: str, given: Mapping[str, FinetuneOptions]) -> FinetuneOptions | None:
    finetuned = EVALUATIONS[task].task
    return None if finetuned is None else given.get(task, XTREME_OPTIONS[finetuned.name])


def _settings(
    model: str,
    digest: str,
    task: str,
    place: str,
    languages: Sequence[str] | None,
    vectors: VectorOptions,
    tuning: FinetuneOptions | None,
    options: Group | None,
) -> dict[str, Any]:
    evaluation = EVALUATIONS[task]
    if tuning is not None:
        how = {name: value for name, value in dataclasses.asdict(tuning).items() if name not in NOT_COMPARED}
        how |= {split: [Path(file).name for file in how[split]] for split in ("train", "dev")}
    else:
        how = {name: getattr(vectors, name) for name in ("layer", "prefix", "max_length")}
        how["pooling"] = own_method(model).about if vectors.pooling == "model" else vectors.pooling
    if options is not None:
        # Only what was asked for: results of versions without an option stay those of its default.
        usual = type(options)()
        how |= {name: value for name, value in vars(options).items() if value != getattr(usual, name)}
    settings = {
        "model": digest,
        "data": digest_of_data(evaluation, place, tuning, languages),
        "languages": None if languages is None else sorted(set(languages)),
        **how,
    }
    return json.loads(json.dumps(settings))


def _submit(output: Path, task: str | None, outcome: Outcome) -> None:
    if task is None:
        return
    fitting = {language: lines for language, lines in outcome.predictions.items() if len(language) == 2}
    if left_out := sorted(outcome.predictions.keys() - fitting.keys()):
        _say(f"{task}: XTREME's files are named by two letters; not in the submission: {', '.join(left_out)}")
    write_submission(output / "submission", task, fitting)


def _say(text: str, first: bool = True) -> None:
    if first:
        print(text, file=sys.stderr, flush=True)
