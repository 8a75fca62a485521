"""Several evaluations of one model: each result is kept as soon as it is there, and none is made twice."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .encoder import Encoder, choose_layer
from .evaluations import EVALUATIONS
from .kept import digest_of_model
from .kept_results import FILE, Results, TaskResult, add_result, read_results, serves, write_results
from .loading import load_tokenizer, read_config
from .options import XTREME_OPTIONS, FinetuneOptions
from .pooling import own_pooling
from .score import Outcome
from .sources import digest_of_data
from .submission import write_submission

# These change how fast a result is there, not what it is.
NOT_COMPARED = ("output", "evaluation_batch_size", "checkpoint_every")


@dataclass(frozen=True)
class VectorOptions:
    """How an encoder that is used as it is makes vectors; see :class:`ctloss.evaluate.Encoder`."""

    pooling: str = "layer"
    layer: int | None = None
    prefix: str = ""
    max_length: int | None = None
    batch_size: int = 64
    device: str | None = None


def run(
    model: str,
    data: Mapping[str, str],
    output: str | Path,
    *,
    name: str | None = None,
    languages: Mapping[str, Sequence[str]] | None = None,
    vectors: VectorOptions | None = None,
    finetuning: Mapping[str, FinetuneOptions] | None = None,
) -> Results:
    """Runs evaluations that the output folder does not have yet, and writes ``results.json`` and predictions there.

    Started by torchrun, all processes fine-tune together, and then the first alone does the rest.

    Args:
        model: name or folder of a Hugging Face encoder.
        data: by evaluation, where its data lie (see :func:`ctloss.evaluate.sources.find_data`).
        output: folder of ``results.json``, ``submission/`` in XTREME's layout, and ``finetuned/``.
        name: in tables; by default the one that the folder's results have, or else the end of the model's name.
        languages: by evaluation; without, all that its data have.
        vectors: how vectors are made.
        finetuning: options by fine-tuned evaluation; their ``output`` is set here.

    Returns:
        All that the folder then has.

    Raises:
        ValueError: the model is no encoder, the folder holds another model's results or other settings of these, or
            it cannot be written to.
        DataError: files are missing or malformed.
    """
    config = read_config(model)
    load_tokenizer(model)
    output = Path(output)
    digest = digest_of_model(model)
    options = {task: _finetuning(task, finetuning or {}) for task in data}
    vectors = vectors or VectorOptions()
    if vectors.pooling == "layer" and None in options.values():
        vectors = dataclasses.replace(vectors, layer=choose_layer(vectors.layer, config.num_hidden_layers))
    settings = {
        task: _settings(model, digest, task, place, (languages or {}).get(task), vectors, options[task])
        for task, place in data.items()
    }
    kept = read_results(output) if (output / FILE).exists() else Results(Path(model).resolve().name, model)
    for task, result in kept.tasks.items():
        if result.settings.get("model") != digest:
            raise ValueError(
                f"{output / FILE}: expected results of {model} as it is, got those of another model ({kept.model} as "
                f"it was) for {task}; choose another --output"
            )
    # All of it before the first hour is spent.
    waiting = [task for task in data if not serves(kept.tasks.get(task), settings[task], f"{output / FILE}, {task}")]
    first = int(os.environ.get("RANK", "0")) == 0
    encoder: Encoder | None = None
    if first:
        open_folder(output)
        if name not in (None, kept.name):
            kept = dataclasses.replace(kept, name=name)
            if kept.tasks:
                write_results(output, kept)
        # What it refuses is to show before the first hour is spent, too.
        if any(options[task] is None for task in waiting):
            encoder = Encoder(model, **dataclasses.asdict(vectors))
    # Processes that wait for the first one to fine-tune with them give up after a while.
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    for task in sorted(data, key=lambda task: together and options[task] is None):
        if task not in waiting:
            _say(f"{task}: already in {output / FILE}", first)
            continue
        evaluation, chosen = EVALUATIONS[task], options[task]
        wanted = (languages or {}).get(task)
        _say(f"{task}: {data[task]}", first)
        start = time.monotonic()
        if chosen is not None:
            # Training wants the memory.
            encoder = None
            outcome = evaluation.run(
                model, data[task], wanted, dataclasses.replace(chosen, output=output / "finetuned")
            )
        elif first:
            encoder = encoder or Encoder(model, **dataclasses.asdict(vectors))
            outcome = evaluation.run(encoder, data[task], wanted)
        else:
            continue
        if first:
            _submit(output, evaluation.submission, outcome)
            add_result(output, kept, task, TaskResult(settings[task], outcome.scores, time.monotonic() - start))
    return read_results(output) if first else kept


def open_folder(output: Path) -> None:
    """Makes an output folder unless it is there.

    Raises:
        ValueError: it is none, or cannot be written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{output}: expected a folder to write to, got {error.strerror}; choose another --output"
        ) from error
    if not os.access(output, os.W_OK):
        raise ValueError(f"{output}: expected a folder to write to, got one that is not; choose another --output")


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
    options: FinetuneOptions | None,
) -> dict[str, Any]:
    evaluation = EVALUATIONS[task]
    if options is not None:
        how = {name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_COMPARED}
        how |= {split: [Path(file).name for file in how[split]] for split in ("train", "dev")}
    else:
        how = {name: getattr(vectors, name) for name in ("layer", "prefix", "max_length")}
        how["pooling"] = own_pooling(model) if vectors.pooling == "model" else vectors.pooling
    settings = {
        "model": digest,
        "data": digest_of_data(evaluation, place, options),
        "languages": None if languages is None else sorted(set(languages)),
        **how,
    }
    return json.loads(json.dumps(settings))


def _submit(output: Path, task: str | None, outcome: Outcome) -> None:
    if task is None:
        return
    fitting = {language: lines for language, lines in outcome.predictions.items() if len(language) == 2}
    if left_out := sorted(outcome.predictions.keys() - fitting.keys()):
        _say(f"{task}: XTREME's files are named by two letters; not in the submission: {', '.join(left_out)}", True)
    write_submission(output / "submission", task, fitting)


def _say(text: str, aloud: bool) -> None:
    if aloud:
        print(text, file=sys.stderr, flush=True)
