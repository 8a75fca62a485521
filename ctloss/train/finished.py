"""A finished run: the document that says so, whether its model is still as it was written, and its upload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..shared.files import damage, listing, write_atomically
from .arguments import Training
from .model.export import MODEL, push
from .output import RESULTS_FILE, UPLOAD_FILE
from .recipe import Recipe, RecipeError
from .resumption import read_document


def write_results(folder: Path, recipe: Recipe, stages: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes what a run measured and what its model's files are; from then on it is finished."""
    files = sorted({path for pattern in MODEL for path in folder.glob(pattern) if path.is_file()})
    document = {"recipe": recipe.as_dict(), "stages": stages, "facts": facts, "files": listing(folder, files)}
    write_atomically(folder / RESULTS_FILE, json.dumps(document, indent=2) + "\n")


def read_results(folder: Path) -> dict[str, Any]:
    """Returns what :func:`write_results` wrote; that of former versions lists no files.

    Raises:
        RecipeError: the file cannot be read, or holds something else.
    """
    path = folder / RESULTS_FILE
    document = read_document(path)
    for part in ("stages", "facts", *(["files"] if "files" in document else [])):
        if not isinstance(document.get(part), dict):
            raise RecipeError(
                f"output: expected {part} in {path}, got {document.get(part)!r}; restore the file, or remove it to "
                "measure and write everything again"
            )
    return document


def check_model(folder: Path, document: dict[str, Any]) -> None:
    """Compares a finished run's model with what is listed in its results.

    Raises:
        RecipeError: a file is missing or another one.
    """
    path = folder / RESULTS_FILE
    try:
        found = damage(folder, document.get("files", {}))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise RecipeError(
            f"output: expected files of the model in {path} that can be compared, got {error!r}; restore the file, or "
            "remove it to measure and write everything again"
        ) from error
    if found:
        raise RecipeError(
            f"output: expected the model in {folder} as the run wrote it, got "
            f"{', '.join(f'{name} ({what})' for name, what in found.items())}; restore the files, or remove {path} to "
            "write everything again from the last checkpoint"
        )


def upload(folder: Path, training: Training, *, again: bool) -> str | None:
    """Uploads a finished run's model, if the training arguments ask for it, and records where.

    Args:
        folder: of the run.
        training: its arguments.
        again: whether to upload what the record says is there already.

    Returns:
        The address of the commit; None if there was nothing to do.

    Raises:
        ValueError: see :func:`ctloss.train.model.export.push`.
    """
    if not training.push_to_hub:
        return None
    name, revision = hub_name(folder, training), getattr(training, "hub_revision", None)
    place = {"repository": name, "revision": revision}
    record = folder / UPLOAD_FILE
    if not again and record.is_file() and read_document(record).get("place") == place:
        return None
    # A later start must not take the former model for this one.
    record.unlink(missing_ok=True)
    address = push(
        folder,
        name,
        private=bool(training.hub_private_repo),
        token=training.hub_token,
        revision=revision,
    )
    write_atomically(record, json.dumps({"place": place, "commit": address}, indent=2) + "\n")
    return address


def hub_name(folder: Path, training: Training) -> str:
    """Returns the name on the hub that a run's model gets: the one given, or its folder's."""
    return str(training.hub_model_id or folder.resolve().name)
