"""The sigmoid loss: its references agree, its paths on CPUs stay within their bounds, and mistakes are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import batches, peers
from ctloss import sig_lip
from ctloss.core.plan import plan
from ctloss.kernels.problem import Batch, Problem, Shape
from ctloss.kernels.torch_path import sig_lip as torch_path
from ctloss.reference.sig_lip import loop, row_losses
from support.calls import WHOLE_GRAPHS, Largest, autocast, present, value_and_gradients
from support.regimes import Case
from support.sig_lip import Question, check, pairs, questions


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2]])
@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (0.1, -10.0), (0.01, 20.0), (0.01, -90.0)])
def test_eager_is_the_loop(temperature: float, bias: float, ids: list[int] | None, normalize: bool) -> None:
    x, y = pairs(4, 3)
    given_ids = None if ids is None else torch.tensor(ids)
    exactly = loop(x, y, temperature=temperature, bias=bias, ids=given_ids, normalize=normalize)
    found = row_losses(x, y, temperature=temperature, bias=bias, ids=given_ids, normalize=normalize)
    for mine, truth in zip(found.tolist(), exactly, strict=True):
        assert math.isclose(mine, float(truth), rel_tol=1e-12)


def test_eager_is_differentiable_twice() -> None:
    x, y = pairs(4, 3, torch.float64)
    tau, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, -1.0))
    ids = torch.tensor([0, 1, 0, 2])

    def call(*leaves: Tensor) -> Tensor:
        a, b, temperature, offset = leaves
        return sig_lip(a, b, temperature=temperature, bias=offset, ids=ids, impl="reference", reduction="none")

    assert torch.autograd.gradcheck(call, (x, y, tau, bias))
    assert torch.autograd.gradgradcheck(call, (x, y, tau, bias))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_gradcheck(n: int, reduction: str) -> None:
    x, y = pairs(n, 3, torch.float64)
    tau, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, -1.0))
    options: dict[str, Any] = {"reduction": reduction, "ids": torch.arange(n) // 2}
    assert torch.autograd.gradcheck(
        lambda a, b, t, o: sig_lip(a, b, temperature=t, bias=o, **options), (x, y, tau, bias), fast_mode=n > 5
    )


EVERY_DTYPE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@given(question=questions(max_n=230, max_d=80, dtypes=EVERY_DTYPE[:1] + EVERY_DTYPE[2:]))
def test_native_path_within_its_bounds(question: Question) -> None:
    check(question, "native")


@given(question=questions(max_n=150, max_d=80, dtypes=EVERY_DTYPE))
def test_torch_path_within_its_bounds(question: Question) -> None:
    check(question, "torch")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("regime", ["random", "trained", "collapsed"])
@pytest.mark.parametrize("impl", ["native", "torch"])
def test_many_rows(impl: str, regime: str, reduction: str) -> None:
    case = Case(regime=regime, n=700, d=256, temperature=0.02, reduction=reduction, need=(True, True, True))
    check(Question(case, ids=tuple(i // 2 for i in range(700))), impl)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_native_path_gives_the_same_bits_on_any_number_of_threads(reduction: str) -> None:
    x, y = pairs(301, 130)
    before = x.detach().clone(), y.detach().clone()
    upstream = torch.linspace(-1, 2, 301)
    tau, bias = (torch.tensor(value, requires_grad=True) for value in (0.1, -3.0))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss = sig_lip(x, y, temperature=tau, bias=bias, reduction=reduction, impl="native")
            leaves = (x, y, tau, bias)
            found.append((loss, *torch.autograd.grad(loss, leaves, upstream if loss.dim() else None)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_native_path_leaves_more_pairs_than_it_keeps_weights_of() -> None:
    problem = Problem(loss="sig_lip")
    assert plan(Shape(4096, 8), problem).path == "native"
    assert plan(Shape(4097, 8), problem).path == "torch"
    with pytest.raises(RuntimeError, match="the weights of all pairs take more than the 64 MiB that may be kept"):
        plan(Shape(4097, 8), Problem(loss="sig_lip", impl="native"))


def test_inputs_changed_before_the_backward_are_noticed() -> None:
    x, y = pairs()
    loss = sig_lip(x, y)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("impl", ["native", "torch"])
def test_every_second_id(impl: str) -> None:
    """Ids may be any view."""
    x, y = pairs()
    ids = torch.arange(14) // 4
    found = sig_lip(x, y, ids=ids[::2], bias=0.0, impl=impl)
    assert torch.equal(found, sig_lip(x, y, ids=ids[::2].clone(), bias=0.0, impl=impl))


def test_no_tensor_grows_with_all_pairs() -> None:
    """Nothing n × n is held: the largest tensor is a panel or the rows."""

    x, y = pairs(3000, 8)
    with torch.no_grad(), Largest() as largest:
        batch = Batch(x, y, temperature=0.1, ids=torch.arange(3000) // 2)
        torch_path.solve(batch, -10.0, Problem(workspace=1 << 20), needs=(True,) * 4)
    assert largest.entries <= 1 << 18


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_single_pair_has_its_positive(reduction: str) -> None:
    x, y = pairs(1, 3)
    loss = sig_lip(x, y, reduction=reduction).sum()
    assert math.isclose(loss.item(), row_losses(x, y).item(), rel_tol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_entries_show(bad: float) -> None:
    x, y = (side.detach() for side in pairs())
    x[2, 1] = bad
    rows = sig_lip(x, y, reduction="none")
    assert rows[2].isnan()
    assert rows[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_zero_rows_have_cosine_zero_and_no_gradient() -> None:
    x, y = pairs()
    with torch.no_grad():
        x[1] = 0
    (gradient,) = torch.autograd.grad(sig_lip(x, y), x)
    assert (gradient[1] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("n", [7, 100])
def test_autocast_changes_nothing(n: int) -> None:
    x, y = pairs(n)
    plain = torch.autograd.grad(sig_lip(x, y), (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sig_lip(x, y)
    torch.testing.assert_close(plain, torch.autograd.grad(loss, (x, y)), rtol=0, atol=0)


def test_mixed_dtypes_keep_their_own_gradients() -> None:
    x, y = pairs()
    half = x.detach().bfloat16().requires_grad_()
    loss = sig_lip(half, y)
    one, other = torch.autograd.grad(loss, (half, y))
    assert (loss.dtype, one.dtype, other.dtype) == (torch.float32, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_may_run_twice(reduction: str) -> None:
    x, y = pairs()
    loss = sig_lip(x, y, reduction=reduction).sum()
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(loss, (x, y)), rtol=0, atol=0)


@WHOLE_GRAPHS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("learnt", [True, False])
def test_compiles_whole(reduction: str, learnt: bool) -> None:
    x, y = pairs(9)
    tau, bias = (torch.tensor(v, requires_grad=True) if learnt else v for v in (0.1, -10.0))
    leaves = [leaf for leaf in (x, y, tau, bias) if isinstance(leaf, Tensor)]

    def call(a: Tensor, b: Tensor) -> Tensor:
        return sig_lip(a * 2, b, temperature=tau, bias=bias, ids=torch.arange(9) // 2, reduction=reduction).sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    plain, traced = call(x, y), compiled(x, y)
    torch.testing.assert_close(plain, traced)
    torch.testing.assert_close(torch.autograd.grad(plain, leaves), torch.autograd.grad(traced, leaves))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("needs", ["1111", "1000", "0011", "0000"])
def test_opcheck(reduction: str, needs: str) -> None:
    x, y = pairs()
    flags = [need == "1" for need in needs]
    x, y = x.detach().requires_grad_(flags[0]), y.detach().requires_grad_(flags[1])
    tau, bias = (torch.tensor(v, requires_grad=need) for v, need in zip((0.1, -10.0), flags[2:], strict=True))
    options = f"{Problem(reduction=reduction).spell()}|{needs}"
    torch.library.opcheck(torch.ops.ctloss.sig_lip.default, (x, y, tau, bias, torch.arange(7) // 2, options))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fused_paths_refuse_second_derivatives(reduction: str) -> None:
    """For any function of a gradient, through every tensor that it was formed from."""
    x, y = pairs()
    tau, bias = (torch.tensor(v, requires_grad=True) for v in (0.1, -10.0))
    loss = sig_lip(x, y, temperature=tau, bias=bias, reduction=reduction).sum()
    gradients = torch.autograd.grad(loss, (x, y, tau, bias), create_graph=True)
    for gradient in gradients:
        for leaf in (x, y, tau, bias):
            with pytest.raises(RuntimeError, match="impl='reference'"):
                torch.autograd.grad((gradient.square() + leaf.sum()).sum(), leaf, retain_graph=True)


def test_transforms_take_the_reference() -> None:
    x, y = pairs(4, 3, torch.float64)
    ids = torch.tensor([0, 1, 0, 2])

    def call(a: Tensor, impl: str = "auto", reduction: str = "mean") -> Tensor:
        return sig_lip(a, y.detach(), temperature=0.5, bias=-1.0, ids=ids, impl=impl, reduction=reduction)

    plain = x.detach()
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(call)(plain), transform(lambda a: call(a, "reference"))(plain))
    stacked = torch.stack((plain, 2 * plain.flip(0)))
    each = torch.stack([call(one) for one in stacked])
    torch.testing.assert_close(torch.vmap(call)(stacked), each)
    gradients = torch.stack([torch.autograd.grad(call(one), one)[0] for one in stacked.clone().requires_grad_()])
    torch.testing.assert_close(torch.vmap(torch.func.grad(call))(stacked), gradients)
    tangent = torch.ones_like(plain)
    slope = torch.func.jvp(call, (plain,), (tangent,))[1]
    torch.testing.assert_close(slope, torch.autograd.grad(call(x), x)[0].sum())
    for refused in (torch.func.grad, torch.func.hessian, torch.vmap):
        with pytest.raises(RuntimeError, match=r"impl='torch' cannot run here: .* transforms of torch\.func"):
            refused(lambda a: call(a, "torch"))(plain if refused is not torch.vmap else stacked)  # type: ignore[operator]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_several_upstream_gradients_at_once(reduction: str) -> None:
    x, y = pairs()
    tau, bias = (torch.tensor(v, requires_grad=True) for v in (0.1, -10.0))
    leaves = x, tau, bias
    loss = sig_lip(x, y.detach(), temperature=tau, bias=bias, reduction=reduction)
    upstream = torch.stack([torch.linspace(-1, 2, loss.numel()).view(loss.shape) * scale for scale in (1.0, 1e-30)])
    found = torch.autograd.grad(loss, leaves, upstream, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(loss, leaves, one, retain_graph=True) for one in upstream]
    for mine, parts in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(parts))
    with pytest.raises(RuntimeError, match=r"impl='reference'.* create_graph=True"):
        torch.autograd.grad(loss, leaves, upstream, is_grads_batched=True, create_graph=True)


@pytest.mark.parametrize(
    ("needs", "reduction", "forward", "backward"),
    [("00", "mean", 1, 0), ("11", "mean", 3, 0), ("10", "sum", 2, 0), ("11", "none", 1, 3), ("01", "none", 1, 2)],
)
def test_operations_are_counted(needs: str, reduction: str, forward: int, backward: int) -> None:
    x, y = (side.detach().requires_grad_(need == "1") for side, need in zip(pairs(40, 8), needs, strict=True))
    with FlopCounterMode(display=False) as counter:
        loss = sig_lip(x, y, reduction=reduction).sum()
    assert counter.get_total_flops() == forward * 2 * 40 * 40 * 8
    if loss.requires_grad:
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        assert counter.get_total_flops() == backward * 2 * 40 * 40 * 8


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_meta_tensors_have_a_loss_without_values(reduction: str) -> None:
    x, y = (side.detach().to("meta").requires_grad_() for side in pairs())
    loss = sig_lip(x, y, reduction=reduction)
    assert (loss.is_meta, loss.shape) == (True, () if reduction == "mean" else (7,))
    assert torch.autograd.grad(loss.sum(), x)[0].shape == x.shape


REFUSALS: list[tuple[Callable[[Tensor], object], type[Exception], str]] = [
    (lambda x: sig_lip(x, x[:2]), ValueError, "x and y: expected two tensors of one shape"),
    (lambda x: sig_lip(x[:0], x[:0]), ValueError, "expected at least 1 row"),
    (lambda x: sig_lip(x, [[1.0]]), TypeError, "y: expected a torch.Tensor"),
    (lambda x: sig_lip(x.int(), x), TypeError, "x: expected float32"),
    (lambda x: sig_lip(x, x, temperature=0.0), ValueError, "temperature: expected a positive"),
    (lambda x: sig_lip(x, x, temperature=torch.tensor(-1.0)), ValueError, "temperature: expected a positive"),
    (lambda x: sig_lip(x, x, temperature=torch.ones(7)), ValueError, "temperature: expected one element"),
    (lambda x: sig_lip(x, x, bias=math.inf), ValueError, "bias: expected a finite number"),
    (lambda x: sig_lip(x, x, bias="no"), TypeError, "bias: expected a float or a tensor"),
    (lambda x: sig_lip(x, x, bias=torch.ones(2)), ValueError, "bias: expected one element"),
    (lambda x: sig_lip(x, x, bias=torch.tensor(1)), TypeError, "bias: expected a floating-point tensor"),
    (lambda x: sig_lip(x, x, ids=torch.zeros(7)), TypeError, "ids: expected a tensor of integers"),
    (lambda x: sig_lip(x, x, ids=torch.zeros(3, dtype=torch.int64)), ValueError, "ids: expected one id per row"),
    (lambda x: sig_lip(x, x, reduction="max"), ValueError, "reduction: expected one of"),
    (lambda x: sig_lip(x, x, impl="jax"), ValueError, "impl: expected one of"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSALS)
def test_refusals(call: Callable[[Tensor], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(pairs()[0].detach())


def open_clip(temperature: float, bias: float) -> Callable[[Tensor, Tensor], Tensor]:
    return present(peers.open_clip_sig_lip, temperature, bias)


@pytest.mark.parametrize(("n", "temperature", "bias"), [(2, 0.5, -1.0), (33, 0.1, -10.0), (70, 0.01, -15.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_equal_to_open_clip(dtype: torch.dtype, tolerance: float, n: int, temperature: float, bias: float) -> None:
    x, y = batches.untrained(n, 16, dtype=dtype, device="cpu", seed=n)
    theirs = value_and_gradients(open_clip(temperature, bias), x, y)
    mine = value_and_gradients(lambda a, b: sig_lip(a, b, temperature=temperature, bias=bias), x, y)
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).norm() <= tolerance * max(1.0, other.norm().item())


def error(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, temperature: float, bias: float) -> float:
    found = torch.cat(value_and_gradients(call, x, y)[1:]).double()

    def exactly(a: Tensor, b: Tensor) -> Tensor:
        return row_losses(a, b, temperature=temperature, bias=bias).mean()

    truth = torch.cat(value_and_gradients(exactly, x.double(), y.double())[1:])
    return ((found - truth).norm() / truth.norm()).item()


def test_open_clip_rounds_its_logits_to_bfloat16() -> None:
    """A logit of 98 is off by up to a quarter; ours is formed in float32 from the same rows, also under autocast."""
    x, y = batches.trained(32, 256, dtype=torch.bfloat16, device="cpu")
    ours = {"temperature": 0.01, "bias": -98.0}
    assert error(open_clip(0.01, -98.0), x, y, **ours) > 0.1
    assert error(lambda a, b: sig_lip(a, b, **ours), x, y, **ours) < 5e-3
    assert error(autocast(open_clip(0.01, -98.0)), x.float(), y.float(), **ours) > 0.05
    assert error(autocast(lambda a, b: sig_lip(a, b, **ours)), x.float(), y.float(), **ours) < 1e-4
