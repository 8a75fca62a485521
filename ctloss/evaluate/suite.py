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

from .encoder import Encoder
from .evaluations import EVALUATIONS
from .kept import digest_of_model
from .kept_results import FILE, Results, TaskResult, read_results, serves, write_results
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

    Started by torchrun, all processes fine-tune together and the first alone does the rest.

    Args:
        model: name or folder of a Hugging Face encoder.
        data: by evaluation, where its data lie (see :func:`ctloss.evaluate.sources.find_data`).
        output: folder of ``results.json``, ``submission/`` in XTREME's layout, and ``finetuned/``.
        name: in tables; by default the end of the model's name.
        languages: by evaluation; without, all that its data have.
        vectors: how vectors are made.
        finetuning: options by fine-tuned evaluation; their ``output`` is set here.

    Returns:
        All that the folder then has.

    Raises:
        ValueError: the model is no encoder, or the folder holds another model's results or other settings of these.
        DataError: files are missing or malformed.
    """
    check_model(model)
    output, vectors = Path(output), vectors or VectorOptions()
    name = name or Path(model).resolve().name
    digest = digest_of_model(model)
    options = {task: _finetuning(task, finetuning or {}) for task in data}
    settings = {
        task: _settings(model, digest, task, place, (languages or {}).get(task), vectors, options[task])
        for task, place in data.items()
    }
    kept = read_results(output) if (output / FILE).exists() else Results(name, model)
    for task, result in kept.tasks.items():
        if result.settings["model"] != digest:
            raise ValueError(
                f"{output / FILE}: expected results of {model}, got those of another model ({kept.model}) for {task}; "
                "choose another --output"
            )
    # All of it before the first hour is spent.
    waiting = [task for task in data if not serves(kept.tasks.get(task), settings[task], f"{output / FILE}, {task}")]
    first = int(os.environ.get("RANK", "0")) == 0
    encoder: Encoder | None = None
    for task in data:
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
            _keep(output, name, model, task, TaskResult(settings[task], outcome.scores, time.monotonic() - start))
    return read_results(output) if first else kept


def check_model(model: str) -> None:
    """Refuses what is neither a folder of a Hugging Face model nor the name of one.

    Raises:
        ValueError: says why.
    """
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the name or folder of a Hugging Face encoder, got {model!r} ({str(error).splitlines()[0]}); "
            "check it, and the connection if it is a name"
        ) from error


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
        "languages": None if languages is None else list(languages),
        **how,
    }
    return json.loads(json.dumps(settings))


def _keep(output: Path, name: str, model: str, task: str, result: TaskResult) -> None:
    # Read again: another process may have added another task meanwhile.
    there = read_results(output) if (output / FILE).exists() else Results(name, model)
    write_results(output, Results(name, model, {**there.tasks, task: result}))


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
