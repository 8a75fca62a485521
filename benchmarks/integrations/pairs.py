"""Which class of ours replaces which of theirs, and how each is called on the same rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers

D = 256
BANK = 4096
HARD = 4
Call = Callable[..., Tensor]
OURS = "ctloss.integrations"


@dataclass(frozen=True)
class Pair:
    """A class of another library, and ours of the same name.

    Attributes:
        library: the module's name in ``ctloss.integrations``.
        name: the class, and its options in words.
        theirs: makes their loss of a number of pairs and a dtype.
        ours: makes ours.
        unit: whether rows come normalised.
        hard: hard negatives a row.
        their_bytes: about what theirs takes for n pairs, so that no machine is exhausted.
    """

    library: str
    name: str
    theirs: Callable[[int, torch.dtype], Call]
    ours: Callable[[int, torch.dtype], Call]
    unit: bool = False
    hard: int = 0
    their_bytes: Callable[[int], float] = field(default=lambda n: 0.0)


class Given(nn.Module):
    """Stands for a model of sentence-transformers: features hold their embeddings already."""

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features with what the losses look for."""
        return {**features, "sentence_embedding": features["rows"]}

    def __getitem__(self, index: int) -> nn.Module:
        return self


def pairs() -> list[Pair]:
    """All of them; making one of a library that is not installed raises :class:`benchmarks.peers.PeerMissing`."""
    return [*_lightly(), *_open_clip(), *_metric_learning(), *_sentence_transformers()]


def ours(library: str, name: str) -> Callable[..., Any]:
    """One of our classes."""
    return _imported(f"{OURS}.{library}", name)


def _imported(module: str, name: str) -> Callable[..., Any]:
    """A class of a module that needs its library as a whole."""
    try:
        made: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as missing:
        raise peers.PeerMissing(str(missing)) from missing
    return made


def _lightly() -> list[Pair]:
    modules = {"NTXentLoss": "ntx_ent_loss", "DCLLoss": "dcl_loss", "DCLWLoss": "dcl_loss"}

    def pair(name: str, words: str = "", **options: Any) -> Pair:
        def of(made: Callable[..., Any], dtype: torch.dtype) -> Call:
            # The same bank in both.
            torch.manual_seed(0)
            loss: Call = made(temperature=0.1, **options).to(dtype)
            return loss

        return Pair(
            "lightly",
            f"{name}{words}",
            lambda n, dtype: of(peers.loss_class("lightly", f"lightly.loss.{modules[name]}", name), dtype),
            lambda n, dtype: of(ours("lightly", name), dtype),
        )

    bank = pair("NTXentLoss", f", bank of {BANK:,}", memory_bank_size=(BANK, D))
    return [pair("NTXentLoss"), bank, pair("DCLLoss"), pair("DCLWLoss")]


def _open_clip() -> list[Pair]:
    def pair(name: str, call: Callable[[Any, int, torch.dtype], Call]) -> Pair:
        return Pair(
            "open_clip",
            name,
            lambda n, dtype: call(peers.loss_class("open_clip_torch", "open_clip.loss", name)(), n, dtype),
            lambda n, dtype: call(ours("open_clip", name)(), n, dtype),
            unit=True,
        )

    def learnt(value: float, dtype: torch.dtype) -> Tensor:
        # As models pass them: what follows from a parameter.
        return torch.tensor(value, dtype=dtype, requires_grad=True)

    def clip(loss: Any, n: int, dtype: torch.dtype) -> Call:
        scale = learnt(14.0, dtype)
        return lambda x, y: loss(x, y, scale)

    def sigmoid(loss: Any, n: int, dtype: torch.dtype) -> Call:
        scale, bias = learnt(10.0, dtype), learnt(-10.0, dtype)
        return lambda x, y: loss(x, y, scale, bias)

    def distilled(loss: Any, n: int, dtype: torch.dtype) -> Call:
        scale = learnt(14.0, dtype)
        torch.manual_seed(1)
        teacher = [nn.functional.normalize(torch.randn(n, D), dim=1).to(dtype) for _ in range(2)]

        def call(x: Tensor, y: Tensor) -> Tensor:
            contrastive, distill = loss(x, y, scale, *teacher, 20.0)
            return contrastive + distill

        return call

    return [
        pair("ClipLoss", clip),
        pair("SigLipLoss", sigmoid),
        pair("DistillClipLoss", distilled),
    ]


def _metric_learning() -> list[Pair]:
    def pair(name: str, rows_a_label: int, their_bytes: Callable[[int], float]) -> Pair:
        def of(made: Callable[..., Any], n: int) -> Call:
            loss = made(temperature=0.1)
            labels = torch.arange(2 * n // rows_a_label).repeat(rows_a_label)
            return lambda x, y: loss(torch.cat((x, y)), labels)

        def theirs(n: int, dtype: torch.dtype) -> Call:
            return of(_imported("pytorch_metric_learning.losses", name), n)

        words = f", {rows_a_label} rows a label"
        return Pair(
            "pytorch_metric_learning",
            name + words,
            theirs,
            lambda n, dtype: of(ours("pytorch_metric_learning", name), n),
            their_bytes=their_bytes,
        )

    # A matrix of positive pairs by negative pairs, several times.
    cubic = [lambda n, k=k: 5 * 4.0 * 2 * n * (k - 1) * (2 * n) ** 2 for k in (2, 4)]
    return [
        pair("NTXentLoss", 2, cubic[0]),
        pair("NTXentLoss", 4, cubic[1]),
        pair("SupConLoss", 2, lambda n: 0.0),
        pair("SupConLoss", 4, lambda n: 0.0),
    ]


def _sentence_transformers() -> list[Pair]:
    def pair(name: str, words: str = "", hard: int = 0, **options: Any) -> Pair:
        def of(made: Callable[..., Any]) -> Call:
            loss = made(Given(), **options)

            def call(x: Tensor, y: Tensor, *negatives: Tensor) -> Tensor:
                columns = [{"rows": side} for side in (x, y, *negatives)]
                found: Tensor = loss(columns, None)
                return found

            return call

        def theirs(n: int, dtype: torch.dtype) -> Call:
            return of(_imported("sentence_transformers.losses", name))

        return Pair(
            "sentence_transformers",
            f"{name}{words}",
            theirs,
            lambda n, dtype: of(ours("sentence_transformers", name)),
            hard=hard,
        )

    both = ("query_to_doc", "doc_to_query")
    every = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    ranking = "MultipleNegativesRankingLoss"
    return [
        pair(ranking),
        pair(ranking, f", {HARD} hard negatives", hard=HARD),
        pair(ranking, ", both directions", directions=both, partition_mode="per_direction"),
        pair(ranking, ", GTE", directions=every, partition_mode="joint"),
    ]
