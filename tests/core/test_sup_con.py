"""SupCon against its definition on the whole matrix of logits, infoNCE, and pytorch-metric-learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ctloss
from benchmarks import batches, peers
from ctloss.kernels.native import sup_con as native
from ctloss.kernels.problem import Problem
from ctloss.reference.eager import unit_rows
from support.calls import Largest, on_this_machine, present, since

F = torch.nn.functional


def definition(x: Tensor, labels: Tensor, temperature: float | Tensor, normalize: bool = True) -> Tensor:
    """Equation (2) written out, in float64; 0 for rows without a positive."""
    units = unit_rows(x.double()) if normalize else x.double()
    tau = temperature[:, None] if isinstance(temperature, Tensor) and temperature.dim() else temperature
    logits = units @ units.T / tau
    own = torch.eye(len(x), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~own
    lse = torch.logsumexp(logits.masked_fill(own, -torch.inf), 1)
    count = positive.sum(1)
    mean = (logits * positive).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, lse - mean, 0.0)


def rows(n: int, d: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@given(
    labels=st.lists(st.integers(-3, 4), min_size=2, max_size=14),
    temperature=st.sampled_from([0.07, 0.5]),
    normalize=st.booleans(),
    small=st.sampled_from([1, 3, 32]),
    seed=st.integers(0, 99),
)
def test_is_the_definition(labels: list[int], temperature: float, normalize: bool, small: int, seed: int) -> None:
    x, names = rows(len(labels), seed=seed), torch.tensor(labels)
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("ctloss.sup_con"), "SMALL_CLASS", small)
        found = ctloss.sup_con(x, names, temperature=tau, normalize=normalize, reduction="none")
    wanted = definition(x, names, tau, normalize)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    upstream = torch.linspace(-1, 2, len(labels), dtype=torch.float64)
    mine, truth = (torch.autograd.grad(loss, (x, tau), upstream) for loss in (found, wanted))
    torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-9)


@given(
    classes=st.lists(st.integers(1, 45), min_size=1, max_size=8),
    d=st.integers(1, 40),
    temperature=st.sampled_from([0.05, 0.5]),
    normalize=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    exponent=st.sampled_from([0, -30]),
    seed=st.integers(0, 99),
)
def test_native_path_within_its_bounds(
    classes: list[int],
    d: int,
    temperature: float,
    normalize: bool,
    reduction: str,
    dtype: torch.dtype,
    exponent: int,
    seed: int,
) -> None:
    """The bounds of infoNCE, 5e-7 + 1e-7 S of what a row's terms add up to: those of the negatives and of the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(classes)) - 2
    labels = labels[torch.randperm(len(labels), generator=generator)]
    n = len(labels)
    raw = torch.randn(n, d, generator=generator) / d**0.5
    if normalize:
        raw = raw * torch.exp2(exponent * torch.rand(n, 1, generator=generator))
    x = raw.to(dtype).requires_grad_()
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(n if reduction == "none" else (), generator=generator)
    loss = ctloss.sup_con(x, labels, temperature=tau, normalize=normalize, reduction=reduction, impl="native")
    found = torch.autograd.grad(loss, (x, tau), upstream)

    wide = x.detach().double().requires_grad_()
    each = definition(wide, labels, tau, normalize)
    paired = (labels[:, None] == labels).sum(1) > 1
    share = upstream.double() / (max(int(paired.sum()), 1) if reduction == "mean" else 1)
    truth = torch.autograd.grad((each * share).sum(), (wide, tau))
    value = each.detach() if reduction == "none" else each.detach().sum() * share / upstream.double()

    units = unit_rows(wide.detach()) if normalize else wide.detach()
    logits = units @ units.T / temperature
    own = torch.eye(n, dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~own
    softmax = torch.softmax(logits.masked_fill(own, -torch.inf), 1).nan_to_num()
    sizes = (softmax + positive / positive.sum(1, keepdim=True).clamp(min=1)) * paired[:, None]
    per_logit = 5e-7 + 1e-7 * logits.abs().max().item()
    allowed = 2 * paired if reduction == "none" else 2 * (paired * share / upstream).sum()
    assert ((loss.detach().double() - value).abs() <= (allowed + value) * per_logit).all()

    norm = wide.detach().norm(dim=1) if normalize else torch.ones(n, dtype=torch.float64)
    weights = sizes * share.abs().expand(n)[:, None]
    bound = (weights + weights.T) @ units.norm(dim=1) / temperature
    rounding = 2.0**-24 if dtype == torch.float32 else 4e-3
    error = ((found[0].double() - truth[0]) * norm[:, None]).norm()
    assert error <= (bound * per_logit).norm() + rounding * (truth[0] * norm[:, None]).norm() + 1e-37
    slope_bound = (weights * logits.abs()).sum() / temperature
    assert (found[1] - truth[1]).abs() <= slope_bound * per_logit + 1e-37


def test_native_path_gives_the_same_bits_on_any_number_of_threads() -> None:
    x, labels = rows(330, 200, torch.float32), torch.arange(330) ** 2 % 11
    before, upstream = x.detach().clone(), torch.linspace(-1, 2, 330)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss = ctloss.sup_con(x, labels, reduction="none", impl="native")
            mean = ctloss.sup_con(x, labels, impl="native")
            found.append((loss, mean, *torch.autograd.grad(loss, x, upstream), *torch.autograd.grad(mean, x)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert torch.equal(x, before)


def test_native_path_declines_what_its_exponentials_cannot_hold() -> None:
    """A negative's weight of 2^-600 is no single-precision number; the same call then goes another way."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    labels, tau = torch.tensor([0, 0, 1, 1]), 2 / 600
    assert native.solve(x, labels, tau, Problem(), needs=(True, False)) is None
    found = ctloss.sup_con(x, labels, temperature=tau, impl="native")
    torch.testing.assert_close(found, definition(x, labels, tau).mean().float())


def test_backward_may_run_twice() -> None:
    x, labels = rows(9, 4, torch.float32), torch.arange(9) // 2
    loss = ctloss.sup_con(x, labels, impl="native")
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, kept)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_several_upstream_gradients_at_once() -> None:
    x, labels = rows(9, 4, torch.float32), torch.arange(9) // 2
    loss = ctloss.sup_con(x, labels, reduction="none", impl="native")
    upstream = torch.eye(9)[:3]
    (found,) = torch.autograd.grad(loss, x, upstream, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(loss, x, one, retain_graph=True)[0] for one in upstream]
    torch.testing.assert_close(found, torch.stack(each))


def test_mean_is_over_rows_with_a_positive() -> None:
    x, labels = rows(5), torch.tensor([0, 1, 0, 2, 0])
    each = ctloss.sup_con(x, labels, reduction="none")
    assert (each == 0).tolist() == [False, True, False, True, False]
    torch.testing.assert_close(ctloss.sup_con(x, labels), each.sum() / 3)
    torch.testing.assert_close(ctloss.sup_con(x, labels, reduction="sum"), each.sum())


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_positives_loss_and_gradient_are_zero(labels: list[int]) -> None:
    x = rows(len(labels), dtype=torch.float32)
    loss = ctloss.sup_con(x, torch.tensor(labels))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert (gradient == 0).all()


def test_one_class_has_no_negatives() -> None:
    x, labels = rows(4), torch.zeros(4, dtype=torch.int64)
    found, wanted = ctloss.sup_con(x, labels), definition(x, labels, 0.07).mean()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (found, wanted)))


def test_a_temperature_for_each_row() -> None:
    x, labels = rows(7), torch.tensor([0, 1, 0, 2, 0, 1, 3])
    tau = torch.linspace(0.1, 0.7, 7, dtype=torch.float64, requires_grad=True)
    found = ctloss.sup_con(x, labels, temperature=tau, reduction="none")
    wanted = definition(x, labels, tau)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), tau)[0] for loss in (found, wanted)))


@pytest.mark.parametrize("impl", ["reference", "torch", *on_this_machine()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_rows(dtype: torch.dtype, impl: str) -> None:
    x, labels = rows(80, 32, dtype), torch.arange(80) % 31
    found, wanted = (loss.mean() for loss in (ctloss.sup_con(x, labels, impl=impl), definition(x, labels, 0.07)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=0.0)
    mine, truth = (torch.autograd.grad(loss, x)[0].double() for loss in (found, wanted))
    assert (mine - truth).norm() <= (2e-6 if dtype == torch.float32 else 4e-3) * truth.norm()


def test_reference_is_differentiable_twice() -> None:
    x, labels = rows(6, 3), torch.tensor([0, 1, 0, 2, 0, 1])
    options: dict[str, Any] = {"temperature": 0.7, "impl": "reference"}
    assert torch.autograd.gradcheck(lambda a: ctloss.sup_con(a, labels, **options), x)
    assert torch.autograd.gradgradcheck(lambda a: ctloss.sup_con(a, labels, **options), x)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 0, 1], [0, 1, 2, 3, 4, 4], [0] * 6])
@pytest.mark.parametrize(("small", "impl"), [(1, "torch"), (32, "torch"), (32, "native")])
def test_fused_path_refuses_second_derivatives(labels: list[int], small: int, impl: str) -> None:
    """Never a partial one: the classes' own rows could be differentiated twice, the negatives' term cannot."""
    x = rows(6, 3, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("ctloss.sup_con"), "SMALL_CLASS", small)
        loss = ctloss.sup_con(x, torch.tensor(labels), impl=impl)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.autograd.grad(gradient.square().sum(), x)


@since("2.10")
def test_transforms_over_rows() -> None:
    """Rows may be transformed; all share one vector of labels."""
    x, labels = rows(6, 3).detach(), torch.tensor([0, 1, 0, 2, 0, 1])

    def call(a: Tensor) -> Tensor:
        return ctloss.sup_con(a, labels, temperature=0.5)

    wanted = torch.autograd.grad(call(leaf := x.clone().requires_grad_()), leaf)[0]
    torch.testing.assert_close(torch.func.grad(call)(x), wanted)
    stacked = torch.stack((x, x.flip(0)))
    torch.testing.assert_close(torch.vmap(call)(stacked), torch.stack([call(one) for one in stacked]))
    torch.testing.assert_close(torch.func.hessian(call)(x), torch.func.jacrev(torch.func.jacrev(call))(x))


def test_labels_that_cannot_be_read_are_refused() -> None:
    plain, labels = rows(6, 3).detach(), torch.tensor([0, 1, 0, 2, 0, 1])
    refused = pytest.raises(
        ValueError, match="labels: expected a tensor whose values can be read, got a tensor that has"
    )
    with refused:
        ctloss.sup_con(plain.to("meta"), labels.to("meta"))
    with FakeTensorMode() as mode, refused:
        ctloss.sup_con(mode.from_tensor(plain), mode.from_tensor(labels))
    with pytest.raises(
        ValueError, match=r"labels: expected .*, got a batch of them under torch\.vmap; .* once for each"
    ):
        torch.vmap(lambda one: ctloss.sup_con(plain, one))(torch.stack((labels, labels)))


def test_compiles_around_a_break() -> None:
    x, labels = rows(6, 3), torch.tensor([0, 1, 0, 2, 0, 1])
    compiled = torch.compile(lambda a: ctloss.sup_con(a * 2, labels), backend="aot_eager")
    torch.testing.assert_close(compiled(x), ctloss.sup_con(x * 2, labels))


def pairs(phi: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, float]:
    """A batch late in training with one positive per row, as rows with labels and as pairs."""
    x, y = batches.trained(32, 256, dtype=dtype, device="cpu")
    return torch.cat((x, y)), torch.arange(32).repeat(2), x, batches.temperature_for(x, y, phi)


@pytest.mark.parametrize("phi", [1e-3, 1e-20, 1e-36])
def test_one_positive_is_infonce(phi: float) -> None:
    stacked, labels, x, temperature = pairs(phi)
    leaf = stacked.clone().requires_grad_()
    found = ctloss.sup_con(leaf, labels, temperature=temperature)
    other = ctloss.info_nce(leaf[: len(x)], leaf[len(x) :], temperature=temperature, impl="reference")
    assert math.isclose(found.item(), other.item(), rel_tol=1e-5)
    mine, truth = (torch.autograd.grad(loss, leaf)[0] for loss in (found, other))
    largest = truth.abs().max()
    assert ((mine - truth) / largest).norm() <= 1e-5 * (truth / largest).norm()


def test_no_tensor_grows_with_all_pairs() -> None:
    x, labels = rows(2000, 4, torch.float32), torch.arange(2000) // 40
    with Largest() as largest:
        ctloss.sup_con(x, labels).backward()
        ctloss.sup_con(x, labels // 2 * 2 + labels % 2).backward()
    assert largest.entries <= 64 * 2000


def test_autocast_changes_nothing() -> None:
    x, labels = rows(40, 16, torch.float32), torch.arange(40) // 3
    plain = ctloss.sup_con(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ctloss.sup_con(x, labels), plain)


REFUSALS: list[tuple[Callable[[Tensor], object], type[Exception], str]] = [
    (lambda x: ctloss.sup_con(x, [0, 1, 2, 3]), TypeError, "labels: expected a tensor of integers"),
    (lambda x: ctloss.sup_con(x, torch.zeros(4)), TypeError, "labels: expected a tensor of integers"),
    (lambda x: ctloss.sup_con(x, torch.arange(3)), ValueError, "labels: expected one id per row"),
    (lambda x: ctloss.sup_con(torch.arange(4), torch.arange(4)), TypeError, "x: expected embeddings"),
    (lambda x: ctloss.sup_con(x, torch.arange(4), temperature=0.0), ValueError, "temperature: expected a positive"),
    (lambda x: ctloss.sup_con(x, torch.arange(4), reduction="max"), ValueError, "reduction: expected one of"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSALS)
def test_refusals(call: Callable[[Tensor], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(torch.zeros(4, 3))


def metric_learning(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    return present(peers.metric_learning_sup_con, temperature)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 1, 3], [5, 5, 5, 5, 7]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_equal_to_metric_learning(dtype: torch.dtype, tolerance: float, labels: list[int]) -> None:
    x, names = rows(len(labels), 8, dtype), torch.tensor(labels)
    mine, theirs = ctloss.sup_con(x, names, temperature=0.1), metric_learning(0.1)(x, names)
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, x)[0] for loss in (mine, theirs)), rtol=tolerance, atol=tolerance
    )


def error(loss: Tensor, leaf: Tensor, truth: Tensor) -> float:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return ((gradient.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(("dtype", "phi", "ours"), [(torch.float32, 1e-20, 1e-4), (torch.bfloat16, 1e-3, 5e-3)])
def test_metric_learning_on_a_trained_batch(dtype: torch.dtype, phi: float, ours: float) -> None:
    """In theirs the positive's pull rounds to nothing, or the logits are rounded to bfloat16."""
    stacked, labels, x, temperature = pairs(phi, dtype)
    exact = stacked.double().requires_grad_()
    loss = ctloss.info_nce(exact[: len(x)], exact[len(x) :], temperature=temperature, impl="reference")
    (truth,) = torch.autograd.grad(loss, exact)
    leaf = stacked.clone().requires_grad_()
    assert error(metric_learning(temperature)(leaf, labels), leaf, truth) > 0.1
    assert error(ctloss.sup_con(leaf, labels, temperature=temperature), leaf, truth) < ours
