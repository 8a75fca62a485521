"""The loss classes of other libraries, each loaded from its own file.

As a whole the libraries import torchvision, lightning and more. Here only the file of a loss is run, not its package's
``__init__``, and modules that the file imports but its loss never calls are replaced by stand-ins. ``sys.modules`` is
left as it was.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctloss.command.versions import installed_version, release

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""A loss of raw rows x and y, both (n, d), mean over the 2n rows."""


class PeerMissing(ImportError):
    """Another library is absent, too old, or not laid out as expected."""


def _module(name: str, contents: Mapping[str, object]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


@contextmanager
def _apart(package: str) -> Iterator[None]:
    """Forget every module of a package for a while, then put back what was there."""

    def own() -> list[str]:
        return [name for name in sys.modules if name == package or name.startswith(package + ".")]

    before = {name: sys.modules.pop(name) for name in own()}
    try:
        yield
    finally:
        for name in own():
            del sys.modules[name]
        sys.modules.update(before)


def load(
    distribution: str,
    module: str,
    name: str,
    *,
    oldest: str = "0",
    bare: tuple[str, ...] = (),
    stand_ins: Mapping[str, Mapping[str, object]] | None = None,
) -> Callable[..., Callable[..., Tensor]]:
    """A class out of one module of an installed distribution.

    Args:
        distribution: name on the package index.
        module: dotted name of the file the class is in.
        oldest: the first version that works.
        bare: packages whose ``__init__`` is skipped; their other files stay importable.
        stand_ins: modules to replace, and the names that their replacements hold.

    Raises:
        PeerMissing: if it cannot be loaded, with the reason and what to install.
    """
    advice = "install the pinned versions with: pip install --no-deps -r tests/peers.txt"
    found = installed_version(distribution)
    if found is None:
        raise PeerMissing(f"expected {distribution}, found no such installed package; {advice}")
    if release(found) < release(oldest):
        raise PeerMissing(f"expected {distribution} >= {oldest}, found {found}; {advice}")
    root = Path(str(importlib.metadata.distribution(distribution).locate_file("")))
    with _apart(module.partition(".")[0]):
        for package in bare:
            sys.modules[package] = _module(package, {"__path__": [str(root.joinpath(*package.split(".")))]})
        for replaced, contents in (stand_ins or {}).items():
            sys.modules[replaced] = _module(replaced, contents)
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, OSError) as error:
            raise PeerMissing(
                f"expected {name} in {module} of {distribution} {found}, got {error!r}; {advice}"
            ) from error


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(F.normalize(a, p=2, dim=-1), F.normalize(b, p=2, dim=-1).T)


_SENTENCE, _METRIC = "sentence_transformers", "pytorch_metric_learning"


@lru_cache
def _of_several_ranks(name: str) -> Callable[..., Any]:
    """One of sentence-transformers' functions for several ranks; what only its other functions call is left out."""
    package = f"{_SENTENCE}.util"
    unused = {"misc": ("disable_logging",), "tensor": ("_move_tensors_to_cpu", "_move_tensors_to_device")}
    return load(
        "sentence-transformers",
        f"{package}.distributed",
        name,
        bare=(_SENTENCE, package),
        stand_ins={f"{package}.{module}": dict.fromkeys(names) for module, names in unused.items()},
    )


# How :func:`load` gets at the losses of each distribution.
_OPTIONS: dict[str, dict[str, Any]] = {
    "lightly": {
        "oldest": "1.6",
        "bare": ("lightly", "lightly.loss", "lightly.utils", "lightly.models", "lightly.models.modules"),
        # Used only by the memory bank of several processes, and it imports torchvision.
        "stand_ins": {"lightly.models.utils": {}},
    },
    "open_clip_torch": {"bare": ("open_clip",)},
    "sentence-transformers": {
        "bare": (_SENTENCE, f"{_SENTENCE}.sentence_transformer", f"{_SENTENCE}.sentence_transformer.losses"),
        "stand_ins": {
            f"{_SENTENCE}.base": {},
            f"{_SENTENCE}.base.losses": {},
            f"{_SENTENCE}.base.losses.merged_forward": {"embed_columns": None},
            f"{_SENTENCE}.sentence_transformer.model": {"SentenceTransformer": object},
            # The package's own cos_sim: rows through F.normalize, then one product. The last is not called.
            f"{_SENTENCE}.util": {
                "cos_sim": _cosines,
                "all_gather_with_grad": lambda tensor: _of_several_ranks("all_gather_with_grad")(tensor),
                "get_rank": lambda: _of_several_ranks("get_rank")(),
                "similarity_fct_name": None,
            },
        },
    },
    "pytorch-metric-learning": {"bare": (_METRIC, f"{_METRIC}.losses", f"{_METRIC}.utils")},
    "libauc": {"bare": ("libauc", "libauc.losses")},
}


@lru_cache
def loss_class(distribution: str, module: str, name: str) -> Callable[..., Callable[..., Tensor]]:
    """A loss class of one of these libraries, as it is; :func:`load` says what may go wrong."""
    return load(distribution, module, name, **_OPTIONS[distribution])


def lightly_ntxent(temperature: float, **options: bool) -> PairLoss:
    """lightly's ``NTXentLoss``: infoNCE, negatives of both languages."""
    return loss_class("lightly", "lightly.loss.ntx_ent_loss", "NTXentLoss")(temperature=temperature, **options)


def lightly_dcl(temperature: float) -> PairLoss:
    """lightly's ``DCLLoss``: CZ-NCE, negatives of both languages (so from 1.6 on)."""
    return loss_class("lightly", "lightly.loss.dcl_loss", "DCLLoss")(temperature=temperature)


def lightly_dclw(temperature: float, sigma: float = 0.5) -> PairLoss:
    """lightly's ``DCLWLoss``: DCL with higher weights for pairs that are far apart."""
    return loss_class("lightly", "lightly.loss.dcl_loss", "DCLWLoss")(temperature=temperature, sigma=sigma)


def open_clip(temperature: float, **options: int) -> PairLoss:
    """open_clip's ``ClipLoss`` on normalised rows: infoNCE, negatives of the other language."""
    loss = loss_class("open_clip_torch", "open_clip.loss", "ClipLoss")(**options)
    return lambda x, y: loss(F.normalize(x, dim=1), F.normalize(y, dim=1), 1 / temperature)


def open_clip_sig_lip(temperature: float, bias: float) -> PairLoss:
    """open_clip's ``SigLipLoss`` on normalised rows: the sigmoid loss."""
    loss = loss_class("open_clip_torch", "open_clip.loss", "SigLipLoss")()
    return lambda x, y: loss(F.normalize(x, dim=1), F.normalize(y, dim=1), 1 / temperature, bias)


def _ranking(temperature: float, **options: object) -> PairLoss:
    module = f"{_SENTENCE}.sentence_transformer.losses.multiple_negatives_ranking"
    made = loss_class("sentence-transformers", module, "MultipleNegativesRankingLoss")
    loss = made(None, scale=1 / temperature, **options)
    return lambda x, y: loss.compute_loss_from_embeddings([x, y], None)  # type: ignore[attr-defined]


def sentence_transformers(temperature: float, **options: bool) -> PairLoss:
    """sentence-transformers' ``MultipleNegativesRankingLoss``, symmetric: infoNCE, negatives of the other language."""
    directions = ("query_to_doc", "doc_to_query")
    return _ranking(temperature, directions=directions, partition_mode="per_direction", **options)


def sentence_transformers_gte(temperature: float) -> PairLoss:
    """The same class with all four directions in one softmax, as GTE trains."""
    directions = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    return _ranking(temperature, directions=directions, partition_mode="joint")


def sentence_transformers_hardness(temperature: float, alpha: float) -> PairLoss:
    """The same class, queries to documents, negatives raised by α times their cosine."""
    return _ranking(temperature, hardness_mode="in_batch_negatives", hardness_strength=alpha)


def _metric_learning_ntxent(temperature: float) -> Callable[..., Tensor]:
    return loss_class("pytorch-metric-learning", f"{_METRIC}.losses.ntxent_loss", "NTXentLoss")(temperature=temperature)


def metric_learning(temperature: float) -> PairLoss:
    """pytorch-metric-learning's ``NTXentLoss``: infoNCE, negatives of both languages; memory grows with n³."""
    loss = _metric_learning_ntxent(temperature)
    return lambda x, y: loss(torch.cat((x, y)), torch.arange(len(x), device=x.device).repeat(2))


class _WithoutInstances:
    """What stands for a class that nothing here is an instance of."""


def metric_learning_wrapped(temperature: float, rank: int, **options: bool) -> PairLoss:
    """The same in pytorch-metric-learning's ``DistributedLossWrapper``, for one of several ranks with equal n."""
    wrapper = load(
        "pytorch-metric-learning",
        f"{_METRIC}.utils.distributed",
        "DistributedLossWrapper",
        bare=(_METRIC, f"{_METRIC}.utils"),
        # The wrapper asks which of these a loss is; the loss itself is loaded apart from them.
        stand_ins={
            f"{_METRIC}.losses": {"BaseMetricLossFunction": torch.nn.Module, "CrossBatchMemory": _WithoutInstances},
            f"{_METRIC}.miners": {"BaseMiner": _WithoutInstances},
        },
    )
    loss = wrapper(_metric_learning_ntxent(temperature), **options)

    def call(x: Tensor, y: Tensor) -> Tensor:
        labels = torch.arange(rank * len(x), (rank + 1) * len(x), device=x.device)
        return loss(torch.cat((x, y)), labels.repeat(2))

    return call


def metric_learning_sup_con(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """pytorch-metric-learning's ``SupConLoss`` of rows and labels, mean over the rows whose loss is positive."""
    return loss_class("pytorch-metric-learning", f"{_METRIC}.losses.supcon_loss", "SupConLoss")(temperature=temperature)


def libauc_unimodal(temperature: float, samples: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """LibAUC's ``GCLoss_v1`` of raw x and y and sample ids: SogCLR; a view's gradient is τ times that of our rows."""
    return loss_class("libauc", "libauc.losses.contrastive", "GCLoss_v1")(N=samples, tau=temperature, device="cpu")


def libauc_bimodal(temperature: float, samples: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """LibAUC's ``GCLoss_v2`` of raw x and y and sample ids: SogCLR, negatives of the other side; ×τ(n − 1) of ours."""
    loss = loss_class("libauc", "libauc.losses.contrastive", "GCLoss_v2")(N=samples, tau=temperature)
    return lambda x, y, ids: loss(F.normalize(x, dim=1), F.normalize(y, dim=1), ids)[0]
