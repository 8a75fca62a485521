"""What users of the public functions can rely on, path by path."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import ctloss
from ctloss.kernels.problem import Problem
from support.calls import WHOLE_GRAPHS, on_this_machine

pytestmark = pytest.mark.numeric

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = (*on_this_machine(DEVICE), "torch", "triton")
PATHS = ("reference", *FUSED)


def batch(n: int = 6, d: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    y = x + 0.3 * torch.randn(n, d, generator=generator)
    return x.to(DEVICE, dtype).requires_grad_(), y.to(DEVICE, dtype).requires_grad_()


def bound(temperature: float) -> float:
    """The error allowed in a value, with |s| at most 1/temperature: relative to it, or to 1 if that is more (CZ)."""
    return 5e-7 + 1e-7 / temperature


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves, torch.ones_like(loss))


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ratio_form_is_one_with_the_same_gradient(impl: str, reduction: str) -> None:
    x, y = batch()
    log = ctloss.cz_nce(x, y, reduction=reduction, impl=impl)
    ratio = ctloss.cz_nce(x, y, reduction=reduction, form="ratio", impl=impl)
    expected = {"mean": torch.tensor(1.0), "sum": torch.tensor(12.0), "none": torch.ones(12)}[reduction]
    assert torch.equal(ratio.detach().cpu(), expected)
    torch.testing.assert_close(gradients(log, x, y), gradients(ratio, x, y), rtol=0, atol=0)


@pytest.mark.parametrize("impl", PATHS)
def test_reductions_agree(impl: str) -> None:
    x, y = batch()
    rows = ctloss.info_nce(x, y, reduction="none", impl=impl)
    assert rows.shape == (12,)
    # Each reduction may be computed in its own way, so twice the bound.
    mean, total = (ctloss.info_nce(x, y, reduction=reduction, impl=impl) for reduction in ("mean", "sum"))
    torch.testing.assert_close(mean, rows.mean(), rtol=2 * bound(0.07), atol=0)
    torch.testing.assert_close(total, rows.sum(), rtol=2 * bound(0.07), atol=0)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivative_is_refused_by_name(impl: str, reduction: str) -> None:
    x, y = batch()
    loss = ctloss.cz_nce(x, y, reduction=reduction, impl=impl).sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        first.square().sum().backward()


def test_the_reference_has_second_derivatives_except_of_the_ratio() -> None:
    x, y = batch(dtype=torch.float64)
    (first,) = torch.autograd.grad(ctloss.cz_nce(x, y, impl="reference"), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.abs().max() > 0
    (first,) = torch.autograd.grad(ctloss.cz_nce(x, y, impl="reference", form="ratio"), x, create_graph=True)
    with pytest.raises(RuntimeError, match="form='log'"):
        first.square().sum().backward()


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_changes_nothing(impl: str, dtype: torch.dtype) -> None:
    x, y = batch(n=20, d=40, dtype=dtype)
    plain = ctloss.info_nce(x, y, impl=impl)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside = ctloss.info_nce(x, y, impl=impl)
        inside_gradients = gradients(inside, x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(plain, inside)
    torch.testing.assert_close(gradients(plain, x, y), inside_gradients, rtol=0, atol=0)


@WHOLE_GRAPHS
@pytest.mark.parametrize("impl", PATHS)
def test_compiles_without_a_graph_break(impl: str) -> None:
    x, y = batch()
    tau = torch.tensor(0.1, device=DEVICE, requires_grad=True)

    def step(x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        return ctloss.cz_nce(x * 2, y, temperature=tau, impl=impl) + ctloss.info_nce(x, y, impl=impl)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y, tau), step(x, y, tau))
    expected = gradients(step(x, y, tau), x, y, tau)
    torch.testing.assert_close(gradients(compiled(x, y, tau), x, y, tau), expected)


@WHOLE_GRAPHS
@pytest.mark.parametrize("impl", ["reference", "torch", *on_this_machine(DEVICE)])
def test_compiled_once_for_changing_sizes_and_temperatures(impl: str) -> None:
    torch.compiler.reset()

    def step(x: Tensor, y: Tensor, tau: float) -> Tensor:
        return ctloss.cz_nce(x, y, temperature=tau, impl=impl, form="ratio") * ctloss.cz_nce(
            x, y, temperature=tau, impl=impl
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (6, 7, 300):
        x, y = batch(n=n)
        torch.testing.assert_close(compiled(x, y, 0.1), step(x, y, 0.1))
    x, y = batch()
    for k in range(12):
        tau = 0.5 / (k + 1)
        torch.testing.assert_close(compiled(x, y, tau), step(x, y, tau))


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_grad_and_retain_graph(impl: str, reduction: str) -> None:
    x, y = batch()
    with torch.no_grad():
        assert not ctloss.cz_nce(x, y, reduction=reduction, impl=impl).requires_grad
    loss = ctloss.cz_nce(x, y, reduction=reduction, impl=impl).sum()
    once = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(once, torch.autograd.grad(loss, x)[0])


# Triton's interpreter is slow, and computes bfloat16 wrongly: each reduction once, in another dtype.
CHECKED = [
    (impl, reduction, dtype)
    for impl in FUSED
    for place, reduction in enumerate(("mean", "none"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    if impl != "triton" or DEVICE != "cpu" or dtype == (torch.float32, torch.float16)[place]
]


@pytest.mark.parametrize(("impl", "reduction", "dtype"), CHECKED)
def test_opcheck(impl: str, reduction: str, dtype: torch.dtype) -> None:
    x, y = batch(dtype=dtype)
    tau = torch.tensor(0.2, device=DEVICE, requires_grad=True)
    operator, options = torch.ops.ctloss.contrastive.default, {"reduction": reduction, "impl": impl}
    plain = Problem(loss="cz_nce", **options).spell()
    torch.library.opcheck(operator, ([x, y], tau, None, None, [False], None, [True, True, True], plain))
    torch.library.opcheck(operator, ([x, y.detach()], None, None, None, [False], 0.1, [True, False, False], plain))
    hard, ids = batch(n=4, dtype=dtype, seed=1)[0], torch.tensor([0, 1, 2, 2, 3, 4, 0, 7, 8, 9], device=DEVICE)
    weights, taus = torch.arange(6.0, device=DEVICE), torch.full((6,), 0.2, device=DEVICE, requires_grad=True)
    rich = Problem(loss="info_nce", directions="x", margin=0.5, **options).spell()
    needs = [True, False, True, True]
    torch.library.opcheck(operator, ([x, y, hard], taus, ids, weights, [True, True], None, needs, rich))
    bare = Problem(loss="contrast", impl=impl).spell()
    torch.library.opcheck(operator, ([x, y], tau, None, None, [False], None, [True, True, True], bare))


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("seed", range(2))
def test_opcheck_of_more_pairs(impl: str, seed: int) -> None:
    """Enough numbers for an occasional NaN to show."""
    sides = list(batch(n=20, d=12, seed=seed))
    options = Problem(loss="cz_nce", impl=impl).spell()
    arguments = (sides, None, None, None, [False], 0.07, [True, True, False], options)
    torch.library.opcheck(torch.ops.ctloss.contrastive.default, arguments)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("impl", FUSED)
def test_batched_gradients(impl: str, reduction: str) -> None:
    x, y = batch(20)
    x = x.requires_grad_()
    loss = ctloss.cz_nce(x, y, impl=impl, reduction=reduction)
    upstream = torch.randn(3, *loss.shape)
    together = torch.autograd.grad(loss, x, upstream, is_grads_batched=True, retain_graph=True)[0]
    for one, single in zip(together, upstream, strict=True):
        assert torch.equal(one, torch.autograd.grad(loss, x, single, retain_graph=True)[0])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("impl", FUSED)
def test_batched_gradients_have_no_second_derivative(impl: str, reduction: str) -> None:
    x, y = batch(9)
    loss = ctloss.cz_nce(x, y, impl=impl, reduction=reduction)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.autograd.grad(loss, x, torch.randn(3, *loss.shape), is_grads_batched=True, create_graph=True)


@pytest.mark.parametrize("n", [6, 20, 300])
@pytest.mark.parametrize("impl", FUSED)
def test_row_losses_may_be_changed_in_place(impl: str, n: int) -> None:
    x, y = batch(n)
    loss = ctloss.cz_nce(x.requires_grad_(), y, impl=impl, reduction="none")
    twice = 2 * loss.detach()
    loss *= 2
    assert torch.equal(loss, twice)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("impl", FUSED)
def test_the_operator_and_the_direct_call_are_one(impl: str, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (rows.requires_grad_() for rows in batch(20))
    answers = []
    for unwatched in (True, False):
        monkeypatch.setattr("ctloss.core.ops.unwatched", lambda *tensors, unwatched=unwatched: unwatched)
        loss = ctloss.info_nce(x, y, impl=impl, reduction=reduction)
        answers.append((loss.detach(), *torch.autograd.grad(loss.sum(), (x, y))))
    if reduction == "mean":
        assert all(map(torch.equal, *answers))
    # The operator's backward forms the logits again, possibly in another order.
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", ["cz_nce", "info_nce", "sig_lip", "sup_con"])
@pytest.mark.parametrize("differentiated", [False, True])
def test_a_loss_that_is_dropped_is_freed_at_once(impl: str, reduction: str, loss: str, differentiated: bool) -> None:
    x, y = batch()
    second = y if loss != "sup_con" else torch.arange(6, device=DEVICE) // 2
    tau = torch.tensor(0.1, requires_grad=True)
    found = getattr(ctloss, loss)(x, second, temperature=tau, reduction=reduction, impl=impl)
    if differentiated:
        found.sum().backward(retain_graph=True)
    freed = weakref.ref(found)
    collecting = gc.isenabled()
    gc.disable()
    try:
        del found
        # In no circle, which only a search for garbage would find.
        assert freed() is None
    finally:
        if collecting:
            gc.enable()


@pytest.mark.parametrize("impl", PATHS)
def test_temperature_tensors(impl: str) -> None:
    x, y = batch(n=9)
    value = ctloss.info_nce(x, y, temperature=0.2, impl=impl)
    for tau in (torch.tensor(0.2), torch.tensor([0.2]), torch.tensor(0.2, dtype=torch.float64)):
        leaf = tau.requires_grad_()
        loss = ctloss.info_nce(x, y, temperature=leaf, impl=impl)
        torch.testing.assert_close(loss, value)
        loss.backward()
        assert leaf.grad is not None
        assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, leaf.dtype)
        step = 1e-3
        above, below = (
            ctloss.info_nce(x.double(), y.double(), temperature=0.2 + s, impl="reference") for s in (step, -step)
        )
        assert leaf.grad.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-3)


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_nan(impl: str, negatives: str, normalize: bool, bad: float) -> None:
    for dtype in (torch.float32, torch.float16):
        x, y = batch(dtype=dtype)
        with torch.no_grad():
            x[1, 2] = bad
        loss = ctloss.cz_nce(x, y, negatives=negatives, normalize=normalize, temperature=1.0, impl=impl)
        assert loss.isnan()
        assert all(g.isnan().any() for g in gradients(loss, x, y))


@pytest.mark.parametrize("impl", PATHS)
def test_zero_rows_are_defined(impl: str) -> None:
    x, y = batch()
    with torch.no_grad():
        x[0] = 0
        y[3] = 0
    grad_x, grad_y = gradients(ctloss.cz_nce(x, y, impl=impl), x, y)
    assert grad_x.isfinite().all()
    assert grad_y.isfinite().all()
    assert (grad_x[0] == 0).all()
    assert (grad_y[3] == 0).all()


@pytest.mark.parametrize("impl", FUSED)
def test_gradcheck_of_every_option(impl: str) -> None:
    if impl in ("native", "triton"):
        with pytest.raises(RuntimeError, match="float64"):
            ctloss.cz_nce(*batch(dtype=torch.float64), impl=impl)
        return
    x, y = batch(n=4, d=3, dtype=torch.float64)
    tau = torch.tensor(0.5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    for negatives, normalize, reduction, loss in itertools.product(
        ("both", "cross"), (True, False), ("mean", "sum", "none"), (ctloss.cz_nce, ctloss.info_nce)
    ):
        options = {"negatives": negatives, "normalize": normalize, "reduction": reduction, "impl": impl}

        def call(x: Tensor, y: Tensor, tau: Tensor, loss: Any = loss, options: Any = options) -> Tensor:
            return loss(x, y, temperature=tau, **options)

        assert torch.autograd.gradcheck(call, (x, y, tau)), options


REFUSED = [
    (lambda x, y: ctloss.cz_nce(x[:0], y[:0]), ValueError, "at least 1 row"),
    (lambda x, y: ctloss.cz_nce(x, y[:3]), ValueError, "one shape"),
    (lambda x, y: ctloss.cz_nce(x[0], y[0]), ValueError, "shape"),
    (lambda x, y: ctloss.InfoNCELoss(0.1)(x, torch.arange(6)), TypeError, "labels; ctloss.sup_con"),
    (lambda x, y: ctloss.cz_nce(x.long(), y.long()), TypeError, "int64"),
    (lambda x, y: ctloss.cz_nce(x.cfloat(), y.cfloat()), TypeError, "complex64"),
    (lambda x, y: ctloss.cz_nce(x.tolist(), y), TypeError, "torch.Tensor"),
    (lambda x, y: ctloss.cz_nce(x, y.to("meta")), ValueError, "x's device"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=0.0), ValueError, "positive"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=-1), ValueError, "positive"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=math.nan), ValueError, "positive"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=torch.tensor(-0.1)), ValueError, "positive"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=torch.tensor(math.nan)), ValueError, "positive"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=torch.tensor([1.0, 2.0])), ValueError, "per pair"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=torch.tensor(1)), TypeError, "floating-point"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature="warm"), TypeError, "float"),
    (lambda x, y: ctloss.cz_nce(x, y, negatives="all"), ValueError, "'both', 'cross'"),
    (lambda x, y: ctloss.cz_nce(x, y, reduction="max"), ValueError, "'mean', 'sum', 'none'"),
    (lambda x, y: ctloss.cz_nce(x, y, form="exp"), ValueError, "'log', 'ratio'"),
    (lambda x, y: ctloss.cz_nce(x, y, precision="best"), ValueError, "'highest', 'high', 'medium'"),
    (lambda x, y: ctloss.cz_nce(x, y, impl="cuda"), ValueError, "'auto', 'reference', 'native', 'torch', 'triton'"),
    (lambda x, y: ctloss.cz_nce(x, y, normalize="yes"), TypeError, "True or False"),
    (lambda x, y: ctloss.set_workspace_limit(10), ValueError, "1 MiB"),
    (lambda x, y: ctloss.set_workspace_limit("1G"), TypeError, "int"),
    (lambda x, y: ctloss.CZNCELoss(form="exp"), ValueError, "form"),
    (lambda x, y: ctloss.InfoNCELoss(temperature=0), ValueError, "positive"),
    (lambda x, y: ctloss.CZNCELoss(torch.tensor(-1.0)), ValueError, "positive"),
    (lambda x, y: ctloss.CZNCELoss(torch.zeros((), requires_grad=True).exp()), ValueError, "history"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=1e-9), ValueError, "at least 1e-06"),
    (lambda x, y: ctloss.cz_nce(x.to_sparse(), y), TypeError, "to_dense"),
    (lambda x, y: ctloss.explain(x, y, loss="triplet"), ValueError, "'contrast', 'cz_nce', 'info_nce'"),
    (lambda x, y: ctloss.cz_nce(x, y, negative="cross"), TypeError, "unknown option 'negative'"),  # type: ignore[call-arg]
    (lambda x, y: ctloss.info_nce(x, y, form="log"), TypeError, "unknown option 'form'"),  # type: ignore[call-arg]
    (lambda x, y: ctloss.cz_nce(x, y, directions="y"), ValueError, "'both', 'x'"),
    (lambda x, y: ctloss.cz_nce(x, y, margin="wide"), TypeError, "number or None"),
    (lambda x, y: ctloss.cz_nce(x, y, margin=math.nan), ValueError, "finite"),
    (lambda x, y: ctloss.cz_nce(x, y, dims=[4]), TypeError, "tuple"),
    (lambda x, y: ctloss.cz_nce(x, y, dims=(16,)), ValueError, "8 columns"),
    (lambda x, y: ctloss.cz_nce(x, y, dims=(4, 4)), ValueError, "different"),
    (lambda x, y: ctloss.cz_nce(x, y, dims=(8, 4), dim_weights=(1.0,)), ValueError, "one for each of dims"),
    (lambda x, y: ctloss.cz_nce(x, y, candidates=x[:, :3]), ValueError, "as wide as x"),
    (lambda x, y: ctloss.cz_nce(x, y, candidates=3), TypeError, r"\(m, d\)"),
    (lambda x, y: ctloss.cz_nce(x, y, candidates=x.long()), TypeError, "candidates"),
    (lambda x, y: ctloss.cz_nce(x, y, ids=torch.arange(5)), ValueError, "one id per row"),
    (lambda x, y: ctloss.cz_nce(x, y, ids=torch.rand(6)), TypeError, "integers"),
    (lambda x, y: ctloss.cz_nce(x, y, ids=[1, 2]), TypeError, "integers"),
    (lambda x, y: ctloss.cz_nce(x, y, candidates=x, candidate_ids=torch.arange(2)), ValueError, "candidate_ids"),
    (lambda x, y: ctloss.cz_nce(x, y, candidates=[x, y], candidate_ids=[None]), ValueError, "2 sets"),
    (lambda x, y: ctloss.cz_nce(x, y, candidate_ids=torch.arange(2)), ValueError, "0 sets"),
    (lambda x, y: ctloss.cz_nce(x, y, negatives="none"), ValueError, "candidates: expected some"),
    (lambda x, y: ctloss.cz_nce(x, y, candidates=x[:4, None]), ValueError, "for each of 6 pairs"),
    (
        lambda x, y: ctloss.cz_nce(x, y, candidates=x[:, None], candidate_ids=torch.arange(6)),
        ValueError,
        r"of shape \(6, 1\), got \(6,\)",
    ),
    (lambda x, y: ctloss.cz_nce(x, y, weights=torch.ones(5)), ValueError, "weights"),
    (lambda x, y: ctloss.cz_nce(x, y, weights=[1.0] * 6), TypeError, "weights"),
    (lambda x, y: ctloss.cz_nce(x, y, weights=torch.ones(12), directions="x"), ValueError, "weights"),
    (lambda x, y: ctloss.cz_nce(x, y, temperature=torch.tensor([0.1] * 5 + [-1.0])), ValueError, "positive"),
    (lambda x, y: ctloss.CZNCELoss(torch.tensor(0.1), learnable_temperature=True), TypeError, "initial value"),
    (lambda x, y: ctloss.CZNCELoss(20.0, learnable_temperature=True), ValueError, "between"),
    (lambda x, y: ctloss.explain(x, y, loss="info_nce", form="ratio"), TypeError, "unknown option 'form'"),
    (lambda x, y: ctloss.contrast(x, y, reduction="sum"), TypeError, "unknown option 'reduction'"),  # type: ignore[call-arg]
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_mistakes_get_a_clear_error(call: object, error: type[Exception], words: str) -> None:
    x, y = (rows.detach() for rows in batch())
    with pytest.raises(error, match=words):
        call(x, y)  # type: ignore[operator]


@pytest.mark.parametrize("impl", PATHS)
def test_a_bad_cpu_temperature_is_refused_on_every_path(impl: str) -> None:
    x, y = batch()
    with pytest.raises(ValueError, match="positive"):
        ctloss.info_nce(x, y, temperature=torch.tensor(0.0), impl=impl)


def test_explain_names_path_reason_and_configuration() -> None:
    x, y = batch()
    for impl in PATHS:
        told = ctloss.explain(x, y, impl=impl)
        assert told.path == impl
        assert told.reason == "named explicitly"
        assert told.configuration
        assert str(told).startswith(f"{impl}: ")
    expected = "triton" if DEVICE == "cuda" else [*on_this_machine(DEVICE), "torch"][0]
    assert ctloss.explain(x, y).path == expected


def test_modules_are_the_functions() -> None:
    x, y = batch()
    tau = torch.nn.Parameter(torch.tensor(0.1, device=DEVICE))
    module = ctloss.CZNCELoss(tau, negatives="cross", reduction="sum")
    assert list(module.parameters()) == [tau]
    assert torch.equal(module(x, y), ctloss.cz_nce(x, y, temperature=tau, negatives="cross", reduction="sum"))
    assert "negatives='cross'" in repr(module)
    buffered = ctloss.InfoNCELoss(torch.tensor(0.1))
    assert "temperature" in dict(buffered.named_buffers())
    assert torch.equal(copy.deepcopy(ctloss.InfoNCELoss(0.1))(x, y), ctloss.info_nce(x, y, temperature=0.1))


def test_workspace_limit_is_kept() -> None:
    assert ctloss.get_workspace_limit("cuda") > ctloss.get_workspace_limit()
    try:
        ctloss.set_workspace_limit(1 << 20)
        assert ctloss.get_workspace_limit("cuda") == ctloss.get_workspace_limit() == 1 << 20
        x, y = batch(n=600, d=16)
        ours, exact = (ctloss.cz_nce(x, y, impl=impl) for impl in ("torch", "reference"))
        torch.testing.assert_close(ours, exact, rtol=bound(0.07), atol=bound(0.07))
    finally:
        ctloss.set_workspace_limit(None)
