# ruff: noqa: E402
"""mteb with our encoders: a model that ``mteb.evaluate`` takes, and its bitext tasks on files at hand.

    import mteb
    from ctloss.integrations.mteb import MtebEncoder, local_task

    encoder = MtebEncoder("runs/tiny")
    result = mteb.evaluate(encoder, [mteb.get_task("STS22.v2"), local_task("tatoeba", "data/tatoeba")])

mteb computes the scores; ours is only how vectors are made, and where the sentences come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..shared.extra import require_extra

require_extra("mteb", ("mteb",))

import mteb
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from ..evaluate.data.multiway import FLORES, NTREX, read_multiway
from ..evaluate.data.parallel import read_bucc, read_tatoeba
from ..evaluate.data.sources import EVALUATIONS, digest_of_data
from ..evaluate.models.encoder import Encoder
from ..shared.languages import XTREME_CODES
from ..shared.text import DataError

if TYPE_CHECKING:
    import numpy as np
    from datasets import DatasetDict

# mteb's task of each evaluation that it has too, and the split that it scores.
TASKS = {
    "tatoeba": ("Tatoeba", "test"),
    "bucc": ("BUCC.v2", "test"),
    "flores": ("FloresBitextMining", "devtest"),
    "ntrex": ("NTREXBitextMining", "test"),
}
# NTREX-128 names Chinese by region, mteb by script.
SCRIPTS = {"zho_CN": "zho_Hans", "zho_TW": "zho_Hant"}


class MtebEncoder(AbsEncoder):
    """An encoder as mteb takes it: sentences become vectors as :class:`ctloss.evaluate.Encoder` makes them.

    Args:
        model: an encoder; or the name or folder of one, pooled as its own files say unless ``options`` say otherwise.
        name: what mteb's results call it, ``ORGANISATION/MODEL``; by default the model's name on the hub, or ``local/``
            with the end of its folder's name.
        options: of :class:`ctloss.evaluate.Encoder`, such as ``pooling="mean"``.

    The revision in mteb's results is a digest of weights, tokenizer and options: other vectors never get the results of
    these.

    Raises:
        ValueError: as :class:`ctloss.evaluate.Encoder`; or the name has no slash.
    """

    def __init__(self, model: Encoder | str | Path, *, name: str | None = None, **options: Any) -> None:
        encoder = model if isinstance(model, Encoder) else Encoder(model, **{"pooling": "model", **options})
        self.encoder = encoder
        if name is not None and name.count("/") != 1:
            raise ValueError(f"expected name as ORGANISATION/MODEL, got {name!r}; put something before a slash")
        config = encoder.model.config
        source = str(model) if isinstance(model, str | Path) else str(config.name_or_path or "model")
        on_hub = source.count("/") == 1 and not Path(source).exists()
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name or (source if on_hub else f"local/{Path(source).resolve().name}"),
                "revision": _revision(encoder),
                "n_parameters": sum(weight.numel() for weight in encoder.model.parameters()),
                "max_tokens": encoder.max_length,
                "embed_dim": encoder.method.width or config.hidden_size,
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": bool(encoder.prefix),
                "framework": ["PyTorch", "Transformers"],
            }
        )

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """Returns the vectors (n, H) float32 of the texts in mteb's batches.

        mteb's own prompts are not used: the encoder's ``prefix`` stands before every text.
        """
        return self.encoder.sentences([text for batch in inputs for text in batch["text"]])


def _revision(encoder: Encoder) -> str:
    settings = (encoder.pooling, encoder.layer, encoder.prefix, encoder.max_length, encoder.method.about)
    total = hashlib.blake2b(repr(settings).encode(), digest_size=20)
    total.update(encoder.tokenizer.backend_tokenizer.to_str().encode())
    for name, weights in sorted(encoder.model.state_dict().items()):
        total.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        # A number without dimensions has no bytes to be viewed as.
        total.update(weights.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return total.hexdigest()


def local_task(evaluation: str, data: str | Path, languages: Sequence[str] | None = None) -> Any:
    """Returns mteb's task with the sentences of a folder instead of those on the hub.

    The result's ``dataset_revision`` is ``local-`` with a digest of the files, since nobody but you knows whether they
    are the hub's. BUCC's is mteb's BUCC.v2, the gold pairs only; of FLORES-200 it is devtest.

    Args:
        evaluation: ``"tatoeba"``, ``"bucc"``, ``"flores"`` or ``"ntrex"``.
        data: the folder, as :mod:`ctloss.evaluate` reads it.
        languages: codes as in the files' names; by default all that mteb's task has.

    Raises:
        DataError: files are missing or malformed, or mteb's task has none of their languages.
        ValueError: the evaluation is none of those.
    """
    if evaluation not in TASKS:
        raise ValueError(f"expected an evaluation that mteb has too ({', '.join(TASKS)}), got {evaluation!r}")
    name, split = TASKS[evaluation]
    known = list(mteb.get_task(name).metadata.hf_subsets)
    place = Path(data)
    if evaluation in ("flores", "ntrex"):
        columns = _columns(evaluation, place, languages, known)
        subsets = [pair for pair in known if set(pair.split("-")) <= columns.keys()]
        dataset: Any = _dataset(split, {code: columns[code] for code in columns})
    else:
        pairs = _tatoeba(place, languages) if evaluation == "tatoeba" else _bucc(place, languages)
        dataset = {
            pair: _dataset(split, dict(zip(("sentence1", "sentence2"), sides, strict=True)))
            for pair, sides in pairs.items()
            if pair in known
        }
        subsets = list(dataset)
    if not subsets:
        raise DataError(f"{place}: expected languages of mteb's {name}, got others; name some that it has")
    task = mteb.get_task(name, hf_subsets=subsets)
    digest = digest_of_data(EVALUATIONS[evaluation], str(place), None, languages)
    published = task.metadata
    local = published.model_copy(update={"dataset": {**published.dataset, "revision": f"local-{digest[:12]}"}})

    def load_data(**_: Any) -> None:
        # mteb drops data and metadata after each evaluation.
        task.metadata, task.dataset, task.data_loaded = local, dataset, True

    task.load_data = load_data
    load_data()
    return task


def write_results(
    encoder: MtebEncoder,
    data: Mapping[str, str | Path],
    folder: str | Path,
    languages: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Runs mteb on files at hand and returns the JSON files that it writes, results/MODEL/REVISION/TASK.json.

    What the folder already has of the same model and files is not computed again.

    Args:
        data: by evaluation, where its files lie; those that mteb does not have are left out.
        folder: of mteb's ``ResultCache``.
        languages: by evaluation.

    Raises:
        DataError: files are missing or malformed.
    """
    cache = mteb.ResultCache(cache_path=Path(folder))
    written = []
    for evaluation, place in data.items():
        if evaluation in TASKS:
            task = local_task(evaluation, place, (languages or {}).get(evaluation))
            mteb.evaluate(encoder, task, cache=cache, co2_tracker=False, show_progress_bar=False)
            written.append(cache.get_task_result_path(TASKS[evaluation][0], encoder.mteb_model_meta))
    return written


def _dataset(split: str, columns: Mapping[str, Sequence[str]]) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_dict({name: list(lines) for name, lines in columns.items()})})


def _tatoeba(place: Path, languages: Sequence[str] | None) -> dict[str, tuple[list[str], list[str]]]:
    three = {two: code for code, two in XTREME_CODES.items()}
    found = {}
    for pairs in read_tatoeba(place, languages):
        code = pairs.languages[0]
        if pairs.gold is None:
            raise DataError(
                f"{place}: expected XTREME's label file test-{code}.tsv, which says which lines translate each other, "
                "got none; fetch it"
            )
        first = [pairs.first[i] for i in pairs.gold]
        found[f"{three.get(code, code)}-eng"] = (first, pairs.second)
    return found


def _bucc(place: Path, languages: Sequence[str] | None) -> dict[str, tuple[list[str], list[str]]]:
    found = {}
    for corpora in read_bucc(place, languages):
        name = "-".join(corpora.languages)
        if not corpora.gold:
            raise DataError(f"{place / name}.dev.gold: expected the gold pairs, got no such file; add it")
        sides = tuple(map(dict, (corpora.first, corpora.second)))
        partners: dict[str, list[str]] = {}
        for one, other in sorted(corpora.gold):
            partners.setdefault(one, []).append(other)
        gold = [(a, b) for a, _ in corpora.first for b in partners.get(a, ())]
        found[name] = ([sides[0][a] for a, _ in gold], [sides[1][b] for _, b in gold])
    return found


def _columns(
    evaluation: str, place: Path, languages: Sequence[str] | None, known: Sequence[str]
) -> dict[str, list[str]]:
    """Returns the sentences by mteb's code of their language."""
    codes = {code for pair in known for code in pair.split("-")}
    layout, split = (FLORES, TASKS["flores"][1]) if evaluation == "flores" else (NTREX, "")
    found = {}
    for code, (_, lines) in read_multiway(place, layout, languages, split).items():
        # mteb always names the script, and of a language's regions has none.
        alike = [other for other in codes if other.split("_")[0] == code] or [SCRIPTS.get(code, code)]
        if len(alike) == 1 and alike[0] in codes:
            found[alike[0]] = lines
    return found
