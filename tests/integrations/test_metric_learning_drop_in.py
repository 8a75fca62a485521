"""Our NTXent and SupCon losses beside pytorch-metric-learning's, with its reducers, miners and wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support.calls import Largest
from support.integrations.drop_ins import rows, same_numbers, same_training, value_and_gradients

theirs = pytest.importorskip("pytorch_metric_learning.losses")
from pytorch_metric_learning import distances, miners, reducers  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402

from ctloss.integrations import pytorch_metric_learning as ours  # noqa: E402

pytestmark = pytest.mark.numeric
N = 24
LOSSES = ("NTXentLoss", "SupConLoss")


def numbers(most: int, count: int = N) -> Tensor:
    return torch.randint(most, (count,), generator=torch.Generator().manual_seed(most))


LABELS = {
    "two views": torch.arange(N // 2).repeat(2),
    "two views in any order": torch.arange(N // 2).repeat(2)[torch.randperm(N, generator=torch.Generator())],
    "some a label": numbers(6),
    "most in two labels": numbers(2),
}
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "default": dict,
    "dot products": lambda: {"distance": distances.DotProductSimilarity(normalize_embeddings=False), "temperature": 5},
    "mean": lambda: {"reducer": reducers.MeanReducer()},
    "per anchor": lambda: {"reducer": reducers.PerAnchorReducer()},
    "threshold": lambda: {"reducer": reducers.ThresholdReducer(low=2)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", LOSSES)
def test_same_numbers(name: str, labels: str, options: str) -> None:
    mine, other = (getattr(library, name)(**OPTIONS[options]()) for library in (ours, theirs))
    for dtype in (torch.float64, torch.float32):
        x = rows(N, 9, dtype=dtype)
        same_numbers(lambda e: mine(e, LABELS[labels]), lambda e: other(e, LABELS[labels]), x)


@pytest.mark.parametrize("labels", [torch.arange(N), torch.zeros(N, dtype=torch.int64)], ids=["alone", "one label"])
@pytest.mark.parametrize("name", LOSSES)
def test_without_pairs_of_both_kinds_the_loss_is_zero(name: str, labels: Tensor) -> None:
    for library in (ours, theirs):
        loss = getattr(library, name)()
        value, gradient = value_and_gradients(lambda e, loss=loss: loss(e, labels), [rows(N, 9)])
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("labels", ["some a label", "most in two labels"])
@pytest.mark.parametrize("name", LOSSES)
def test_other_rows_as_references(name: str, labels: str) -> None:
    mine, other = (getattr(library, name)() for library in (ours, theirs))

    def call(loss: Any) -> Callable[..., Tensor]:
        return lambda e, f: loss(e, LABELS[labels], ref_emb=f, ref_labels=numbers(8, 30))

    same_numbers(call(mine), call(other), rows(N, 9), rows(30, 9, seed=1))


@pytest.mark.parametrize("labels", ["some a label", "most in two labels"])
@pytest.mark.parametrize(
    "miner",
    [miners.MultiSimilarityMiner(), miners.TripletMarginMiner(margin=0.5), miners.BatchHardMiner()],
    ids=lambda miner: type(miner).__name__,
)
@pytest.mark.parametrize("name", LOSSES)
def test_mined_pairs(name: str, miner: Any, labels: str) -> None:
    """Some rows have no positive or no negative then, and triplets list a pair several times."""
    mine, other = (getattr(library, name)() for library in (ours, theirs))
    x = rows(N, 9)
    found = miner(x, LABELS[labels])
    same_numbers(lambda e: mine(e, LABELS[labels], found), lambda e: other(e, LABELS[labels], found), x)


def test_a_row_without_negatives_has_a_gradient_that_is_a_number() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    pairs = tuple(map(torch.tensor, ([0, 1, 2, 3], [1, 0, 3, 2], [0], [2])))
    for name in LOSSES:
        loss = getattr(ours, name)()
        _, gradient = value_and_gradients(lambda e, loss=loss: loss(e, labels, pairs), [rows(4, 9)])
        assert gradient.isfinite().all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_self_supervised_loss_around_ours(name: str, symmetric: bool) -> None:
    mine, other = (theirs.SelfSupervisedLoss(getattr(one, name)(), symmetric=symmetric) for one in (ours, theirs))
    same_numbers(mine, other, rows(N, 9), rows(N, 9, seed=1))


@pytest.mark.parametrize("name", LOSSES)
def test_cross_batch_memory_around_ours(name: str) -> None:
    """Long enough that its queue is full and begins anew."""
    mine, other = (theirs.CrossBatchMemory(getattr(one, name)(), 9, memory_size=50) for one in (ours, theirs))
    for step in range(4):
        labels = numbers(5 + step)
        same_numbers(lambda e, y=labels: mine(e, y), lambda e, y=labels: other(e, y), rows(N, 9, seed=step))


@pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used in a non-distributed")
def test_the_wrapper_for_ranks_takes_ours() -> None:
    x = rows(N, 9)
    wrapped = DistributedLossWrapper(ours.NTXentLoss())
    torch.testing.assert_close(wrapped(x, LABELS["some a label"]), theirs.NTXentLoss()(x, LABELS["some a label"]))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_same_training(name: str, wrapped: bool) -> None:
    def made(library: Any) -> Any:
        loss = getattr(library, name)()
        return theirs.CrossBatchMemory(loss, 8, memory_size=30) if wrapped else loss

    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
    same_training(made(ours), made(theirs), lambda encoder, x: (encoder(x), labels))


def test_no_matrix_of_pairs_by_pairs() -> None:
    """Theirs forms one of 128 positives by 128 * 126 negatives."""
    labels, largest = torch.arange(64).repeat(2), {}
    for library in (ours, theirs):
        x = rows(128, 9, dtype=torch.float32).requires_grad_()
        with Largest() as watch:
            library.NTXentLoss()(x, labels).backward()
        largest[library.__name__.partition(".")[0]] = watch.entries
    assert largest["ctloss"] <= 128 * 128
    assert largest["pytorch_metric_learning"] >= 128 * 128 * 126


@pytest.mark.parametrize(("name", "tau"), [("NTXentLoss", 0.02), ("SupConLoss", 0.03)])
def test_float32_keeps_the_pull_of_solved_pairs(name: str, tau: float) -> None:
    """At φ of some 1e-9 and less the library's gradient is rounding; in float64 it is what ours is in float32."""
    x = rows(8, 16)
    x = torch.cat((x, x + 0.05 * rows(8, 16, seed=1)))
    labels = torch.arange(8).repeat(2)
    truth = getattr(theirs, name)(temperature=tau)
    mine, other = (getattr(library, name)(temperature=tau) for library in (ours, theirs))
    (_, wanted), (_, found), (_, rounded) = (
        value_and_gradients(lambda e, loss=loss: loss(e, labels), [x.to(dtype)])
        for loss, dtype in ((truth, torch.float64), (mine, torch.float32), (other, torch.float32))
    )
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    assert (rounded - wanted).norm() > 1e-2 * wanted.norm()


def test_mistakes_are_told() -> None:
    with pytest.raises(TypeError, match=r"distance: expected CosineSimilarity\(\) or DotProductSimilarity\(\)"):
        ours.NTXentLoss(distance=distances.LpDistance())
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        ours.SupConLoss(temperature=0)
    both = tuple(torch.tensor([one]).repeat(2) for one in (0, 1, 0, 1))
    with pytest.raises(ValueError, match="expected each pair to be positive or negative"):
        ours.SupConLoss()(rows(4, 9), torch.tensor([0, 0, 1, 1]), both)


@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_are_missing_or_no_integers_are_refused(name: str) -> None:
    loss = getattr(ours, name)()
    with pytest.raises(ValueError, match=r"labels: expected one for each row, or an indices_tuple, got neither"):
        loss(rows(4, 8, dtype=torch.float32, seed=0))
    with pytest.raises(TypeError, match=r"labels: expected integers, got torch.float32; pass labels.long\(\)"):
        loss(rows(4, 8, dtype=torch.float32, seed=0), torch.tensor([0.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
@pytest.mark.parametrize("labels", [[True, False] * 2, [True, True, False, True]])
def test_two_classes_as_booleans(name: str, labels: list[bool]) -> None:
    """As in the library; also for the labels of references."""
    loss, x, classes = getattr(ours, name)(), rows(4, 8, seed=0), torch.tensor(labels)
    torch.testing.assert_close(loss(x, classes), getattr(theirs, name)()(x, classes))
    given = {"ref_emb": rows(4, 8, seed=1), "ref_labels": classes}
    torch.testing.assert_close(loss(x, classes, **given), getattr(theirs, name)()(x, classes, **given))
