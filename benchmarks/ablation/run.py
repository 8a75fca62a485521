"""One row: pretrained from its start, evaluated, and found again by its configuration."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from benchmarks.ablation.plan import Row, Scale
from ctloss.evaluate import XTREME_OPTIONS, FinetuneOptions, VectorOptions, evaluate_udpos, read_results, run
from ctloss.shared.training import uses_bfloat16
from ctloss.train import Recipe, pretrain

MAX_LENGTH = 64
FINETUNED = {"xnli": "xnli", "pawsx": "pawsx", "pos": "udpos", "ner": "panx"}
EVALUATION = "evaluation"


def recipe_of(row: Row, start: Path, corpus: Path, learning_rate: float) -> Recipe:
    """The recipe of a row: all rows differ only in method, seed and size."""
    return Recipe(row.name).override(
        **{
            "encoder": str(start),
            "corpus": tuple(str(path) for path in sorted(corpus.glob("en-*.tsv"))),
            "lexicon": (str(corpus / "lexicon"),),
            "max_length": MAX_LENGTH,
            # The lexicon lacks the words that retrieval is tested with.
            "held_out_words": 0.0,
            # The paper joins both vectors as they are.
            "balance": False,
            "only_with_words": row.changes["levels"] == "sentence",
            "learning_rate": learning_rate,
            "seed": row.seed,
            # Fixed by this machine, so that a row does not continue in another precision elsewhere.
            "precision": "bf16" if uses_bfloat16("auto") else "fp32",
            "log_every": min(10, row.changes["max_steps"]),
            "evaluate_every": min(50, row.changes["max_steps"]),
            "checkpoint_every": 100,
            "keep_checkpoints": 1,
            "pictured_words": 0,
            **row.changes,
        }
    )


def place_of(row: Row, start: Path, corpus: Path, folder: Path, scale: Scale) -> Path:
    """The folder of a row among all rows; its name changes with whatever the result depends on."""
    also = {"start": f"{start.parent.name}/{start.name}", "corpus": corpus.name, "rate": scale.learning_rate}
    return folder / row.key(also)


def train(row: Row, start: Path, corpus: Path, folder: Path, scale: Scale) -> None:
    """Pretrain a row in its folder, continue where it stopped, or find it done.

    Args:
        start: folder of the encoder it starts from.
        corpus: see :func:`benchmarks.ablation.corpus.prepare`.
        folder: gets the encoder, ``results.json`` and ``metrics.jsonl``.
    """
    # Its recipe holds paths, and a finished row may have been moved.
    if not is_trained(folder):
        pretrain(recipe_of(row, start, corpus, scale.learning_rate), folder, resume=folder.is_dir())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def is_trained(folder: Path) -> bool:
    """Whether the row in a folder has been trained to its end."""
    return (folder / "results.json").is_file()


def is_evaluated(model: Path) -> bool:
    """Whether a model has been evaluated."""
    return (model / EVALUATION / "results.json").is_file()


def seeds_of(model: Path) -> set[int]:
    """The seeds that a model was fine-tuned with in its evaluation; none without one."""
    tasks = read_results(model / EVALUATION).tasks.values() if is_evaluated(model) else ()
    return {seed for result in tasks for seed in result.settings.get("seeds", ())}


def evaluate(model: Path, name: str, seeds: tuple[int, ...], data: Path, corpus: Path, scale: Scale) -> None:
    """Evaluate an encoder on everything that is still missing; fine-tuned models are not kept.

    The results go into ``evaluation`` in the model's folder. The corpus holds the words held out of training.
    """
    output = model / EVALUATION
    run(
        str(model),
        {task: str(place) for task, place in places(data, corpus).items()},
        output,
        name=name,
        languages=scale.languages,
        vectors=VectorOptions(pooling="avg-first-last", max_length=128),
        finetuning={task: options_of(task, data, seeds, scale) for task in FINETUNED},
    )
    shutil.rmtree(output / "finetuned", ignore_errors=True)


def tags_english(model: Path, data: Path, steps: int) -> float:
    """F1 of parts of speech on English dev after this many steps of fine-tuning."""
    treebank = data / "ud" / "en"
    options = dataclasses.replace(
        XTREME_OPTIONS["udpos"],
        learning_rate=3e-4,
        max_steps=steps,
        train=(treebank / "en_ewt-ud-train.tsv",),
        dev=(treebank / "en_ewt-ud-dev.tsv",),
        test_split="dev",
        batches="by_length",
    )
    scores = evaluate_udpos(str(model), treebank, ["en"], options).scores
    return next(score.value for score in scores if (score.language, score.metric) == ("en", "f1"))


def places(data: Path, corpus: Path) -> dict[str, Path]:
    """Where the data of every evaluation lie."""
    return {
        "tatoeba": data / "tatoeba",
        "bucc": data / "bucc",
        "pairs": data / "multi30k" / "test_2016_flickr",
        "words": corpus / "words",
        "align": data / "align",
        "pos": treebanks(data, corpus),
        "ner": data / "ner",
        "xnli": data / "xnli",
        "pawsx": data / "pawsx",
    }


def treebanks(data: Path, corpus: Path) -> Path:
    """A folder of links to the test treebanks: the parallel ones by language, the others as ``LANGUAGE-NAME``."""
    folder = corpus / "treebanks"
    folder.mkdir(exist_ok=True)
    for path in sorted((data / "ud").glob("*/*-ud-test.tsv")):
        language, _, name = path.name.partition("-")[0].partition("_")
        if path.parent.name == "en":
            continue
        link = folder / f"test-{language if name == 'pud' else f'{language}-{name}'}.tsv"
        if link.resolve() != path.resolve():
            # A link to data that were elsewhere.
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
    return folder


def options_of(task: str, data: Path, seeds: tuple[int, ...], scale: Scale) -> FinetuneOptions:
    """How a task is fine-tuned: XTREME's settings with the scale's changes, on the English data available."""
    own: dict[str, dict[str, Any]] = {
        "xnli": {"train": tuple(sorted((data / "nli-train-en").glob("*.tsv"))), "evaluate_every": 200},
        # There are no English training data: the dev set, less what chooses the best step.
        "pawsx": {"train": (data / "pawsx" / "dev-en.tsv",), "hold_out": 0.1, "evaluate_every": 50},
        "pos": {
            "train": (data / "ud" / "en" / "en_ewt-ud-train.tsv",),
            "dev": (data / "ud" / "en" / "en_ewt-ud-dev.tsv",),
            "evaluate_every": 200,
        },
        # The dev sets are the test sets here; a part of the training data chooses the best step.
        "ner": {"hold_out": 0.05, "test_split": "dev", "evaluate_every": 200},
    }
    changes = {**own[task], **scale.finetuning.get("", {}), **scale.finetuning.get(task, {})}
    return dataclasses.replace(
        XTREME_OPTIONS[FINETUNED[task]], seeds=seeds, checkpoint_every=500, batches="by_length", **changes
    )
