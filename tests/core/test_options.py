"""What the losses' options mean; the acceptance tests check that they are exact."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ctloss
from support.calls import WHOLE_GRAPHS, on_this_machine, since

LOSSES = (ctloss.cz_nce, ctloss.info_nce)
PATHS = ("reference", *on_this_machine(), "torch")


def rows(n: int, d: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def pair(n: int = 6, d: int = 8) -> tuple[Tensor, Tensor]:
    x = rows(n, d)
    return x.requires_grad_(), (x.detach() + 0.3 * rows(n, d, 1)).requires_grad_()


def plain(logits: Tensor) -> Tensor:
    """What users of cross_entropy write: the positive of query i is document i."""
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))


@pytest.mark.parametrize("k", [1, 4])
def test_queries_to_documents_with_hard_negatives_is_cross_entropy_of_the_rectangle(k: int) -> None:
    x, y = pair()
    hard = rows(6 * k, seed=2).view(6, k, 8).requires_grad_()
    loss = ctloss.info_nce(x, y, temperature=0.1, negatives="cross", directions="x", candidates=hard)
    documents = torch.cat((y, hard.flatten(0, 1)))
    unit = torch.nn.functional.normalize
    expected = plain(unit(x, dim=1) @ unit(documents, dim=1).T / 0.1)
    torch.testing.assert_close(loss, expected)
    leaves = (x, y, hard)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves))


def test_a_queue_needs_no_gradient_and_candidates_may_come_in_sets() -> None:
    x, y = pair()
    queue, hard = rows(20, seed=3), rows(12, seed=4).view(6, 2, 8).requires_grad_()
    together = torch.cat((queue, hard.detach().flatten(0, 1)))
    for loss in LOSSES:
        value = loss(x, y, candidates=[queue, hard])
        torch.testing.assert_close(value, loss(x, y, candidates=together))
        value.backward()
    assert queue.grad is None
    assert hard.grad is not None
    assert hard.grad.shape == hard.shape


def test_equal_ids_are_no_negatives_of_one_another() -> None:
    x, y = pair()
    ids = torch.tensor([5, 5, 7, 8, 9, 9])
    kept = ids[:, None] != ids[None, :]
    logits = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T / 0.1
    z = torch.logsumexp(logits.masked_fill(~kept, -math.inf), 1) - logits.diagonal()
    found = ctloss.contrast(x, y, temperature=0.1, negatives="cross", directions="x", ids=ids)
    torch.testing.assert_close(found.z, z)
    torch.testing.assert_close(found.lse, z + logits.diagonal())
    # A candidate with a row's id is left out for that row; one without ids never is.
    twins = y.detach().clone()
    same = ctloss.contrast(x, y, negatives="cross", candidates=twins, candidate_ids=torch.arange(6))
    assert torch.equal(same.z > 10, torch.zeros(12, dtype=torch.bool))
    assert (ctloss.contrast(x, y, negatives="cross", candidates=twins).z[:6] >= 0).all()


def test_margin_leaves_out_what_is_more_alike_than_the_positive() -> None:
    x = torch.eye(3)
    y = torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]])
    # y_0 is closer to x_1 than its own positive by more than the margin of 0.05, so it is left out.
    found = ctloss.contrast(x, y, temperature=1.0, negatives="cross", directions="x", margin=0.05)
    cosines = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    assert cosines[1, 0] > cosines[1, 1] + 0.05
    torch.testing.assert_close(found.z[1], cosines[1, 2] - cosines[1, 1])
    wide = ctloss.contrast(x, y, temperature=1.0, negatives="cross", directions="x", margin=2.0)
    torch.testing.assert_close(wide.z, ctloss.contrast(x, y, temperature=1.0, negatives="cross", directions="x").z)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("impl", PATHS)
def test_weights_make_a_weighted_mean(loss: Any, impl: str) -> None:
    x, y = pair()
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    one_by_one = loss(x, y, reduction="none", impl=impl)
    expected = (one_by_one * weights.repeat(2)).sum() / (2 * weights.sum())
    gradients = torch.autograd.grad(expected, (x, y), retain_graph=True)
    for given in (weights, weights.repeat(2)):
        mean = loss(x, y, weights=given, impl=impl)
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(loss(x, y, weights=given, reduction="sum", impl=impl), 2 * weights.sum() * expected)
        torch.testing.assert_close(torch.autograd.grad(mean, (x, y)), gradients)
    torch.testing.assert_close(loss(x, y, weights=weights, reduction="none", impl=impl), one_by_one * weights.repeat(2))
    learnt = weights.clone().requires_grad_()
    loss(x, y, weights=learnt, reduction="sum", impl=impl).backward()
    assert learnt.grad is not None
    torch.testing.assert_close(learnt.grad, one_by_one.detach().view(2, 6).sum(0))


@pytest.mark.parametrize("impl", PATHS)
def test_temperatures_of_pairs_and_of_rows(impl: str) -> None:
    x, y = pair()
    taus = torch.linspace(0.05, 0.3, 6).requires_grad_()
    of_rows = torch.cat((taus, taus)).detach().requires_grad_()
    of_pairs = ctloss.info_nce(x, y, temperature=taus, impl=impl)
    separate = ctloss.info_nce(x, y, temperature=of_rows, impl=impl)
    torch.testing.assert_close(of_pairs, separate)
    (by_pair,), (by_row,) = torch.autograd.grad(of_pairs, taus), torch.autograd.grad(separate, of_rows)
    torch.testing.assert_close(by_pair, by_row.view(2, 6).sum(0))
    for i in (0, 4):
        single = ctloss.info_nce(x, y, temperature=taus[i].item(), reduction="none", impl="reference")
        torch.testing.assert_close(ctloss.info_nce(x, y, temperature=taus, reduction="none", impl=impl)[i], single[i])


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_dims_add_up_the_loss_over_widths(impl: str) -> None:
    x, y = pair(d=16)
    hard = rows(5, 16, 7).requires_grad_()
    widths, shares = (16, 8, 3), (1.0, 0.5, 0.25)
    loss = ctloss.info_nce(x, y, candidates=hard, dims=widths, dim_weights=shares, impl=impl)
    parts = [
        share * ctloss.info_nce(x[:, :width], y[:, :width], candidates=hard[:, :width], impl=impl)
        for width, share in zip(widths, shares, strict=True)
    ]
    expected = parts[0] + parts[1] + parts[2]
    torch.testing.assert_close(loss, expected)
    leaves = (x, y, hard)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves))
    assert ctloss.contrast(x, y, dims=widths).z.shape == (3, 12)


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_without_negatives_has_loss_zero(loss: Any, impl: str) -> None:
    x, y = rows(1).requires_grad_(), rows(1, seed=1).requires_grad_()
    value = loss(x, y, impl=impl)
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(value, (x, y)))
    x, y = pair()
    same = torch.zeros(6, dtype=torch.int64)
    tau = torch.tensor(0.1, requires_grad=True)
    value = loss(x, y, ids=same, temperature=tau, impl=impl)
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(value, (x, y, tau)))
    found = ctloss.contrast(x, y, ids=same, impl=impl)
    assert (found.z == -math.inf).all()
    assert found.positive.isfinite().all()
    nothing = torch.autograd.grad(found.z.exp().sum(), (x, y), allow_unused=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in nothing)
    # Rows with negatives keep their losses, and the mean is over all rows.
    ids = torch.tensor([0, 0, 0, 0, 0, 1])
    by_row = loss(x, y, ids=ids, negatives="cross", reduction="none", impl=impl)
    torch.testing.assert_close(loss(x, y, ids=ids, negatives="cross", impl=impl), by_row.mean())


def test_a_last_batch_of_one_pair_does_not_break_training() -> None:
    encoder = torch.nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(rows(33), rows(33, seed=1))
    for x, y in torch.utils.data.DataLoader(data, batch_size=16):
        optimizer.zero_grad()
        ctloss.cz_nce(encoder(x), encoder(y)).backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in encoder.parameters())


def test_dtypes_may_differ_and_each_gradient_has_its_own() -> None:
    x, y = pair(20, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = torch.nn.Linear(12, 12)(x.detach()).detach().requires_grad_()
        assert narrow.dtype == torch.bfloat16
        loss = ctloss.info_nce(narrow, y)
    torch.testing.assert_close(loss, ctloss.info_nce(narrow.float(), y))
    by_narrow, by_wide = torch.autograd.grad(loss, (narrow, y))
    assert (by_narrow.dtype, by_wide.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", [ctloss.CZNCELoss, ctloss.InfoNCELoss])
@pytest.mark.parametrize("step", [0.05, 50.0])
def test_a_learnt_temperature_stays_in_its_domain(kind: Any, step: float) -> None:
    x = rows(16)
    module = kind(learnable_temperature=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=step)
    for turn in range(100):
        optimizer.zero_grad()
        loss = module(x, x + 0.01 * rows(16, seed=turn))
        loss.backward()
        optimizer.step()
        tau = float(module.current_temperature())
        assert 0.001 <= tau <= 10
        assert loss.isfinite()
    copy = kind(learnable_temperature=True)
    copy.load_state_dict(module.state_dict())
    assert float(copy.current_temperature()) == tau


def test_a_temperature_beyond_its_bounds_returns() -> None:
    module = ctloss.InfoNCELoss(learnable_temperature=True)
    with torch.no_grad():
        next(module.parameters()).fill_(math.log(1e-6))
    assert float(module.current_temperature()) == pytest.approx(0.001, rel=1e-5)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for turn in range(200):
        optimizer.zero_grad()
        # Unrelated pairs are best fitted by a high temperature.
        module(rows(16), rows(16, seed=turn + 1)).backward()
        optimizer.step()
    assert float(module.current_temperature()) > 0.01


def test_modules_pass_on_tensors() -> None:
    x, y = pair()
    options: dict[str, Any] = {"candidates": rows(4, seed=5), "ids": torch.tensor([0, 1, 1, 2, 3, 4])}
    module = ctloss.InfoNCELoss(0.1, negatives="cross", directions="x")
    expected = ctloss.info_nce(x, y, temperature=0.1, negatives="cross", directions="x", **options)
    assert torch.equal(module(x, y, **options), expected)


def transforms() -> dict[str, Any]:
    x, y = rows(6), rows(6, seed=1)
    direction = rows(6, seed=2)
    stack = rows(18, seed=3).view(3, 6, 8)

    def loss(a: Tensor, impl: Any = "auto") -> Tensor:
        return ctloss.cz_nce(a, y, impl=impl)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, "reference"), leaf)
    batched = stack.clone().requires_grad_()
    (of_stack,) = torch.autograd.grad(sum(loss(part, "reference") for part in batched), batched)
    taus = torch.tensor([0.1, 0.2, 0.4])

    def of_vmap() -> Tensor:
        leaves = stack.clone().requires_grad_()
        torch.vmap(loss)(leaves).sum().backward()
        assert leaves.grad is not None
        return leaves.grad

    def dual() -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            made = loss(torch.autograd.forward_ad.make_dual(x, direction))
            tangent = torch.autograd.forward_ad.unpack_dual(made).tangent
            assert tangent is not None
            return tangent

    return {
        "grad": (lambda: torch.func.grad(loss)(x), gradient),
        "jacrev": (lambda: torch.func.jacrev(loss)(x), gradient),
        "vjp": (lambda: torch.func.vjp(loss, x)[1](torch.tensor(1.0))[0], gradient),
        "jvp": (lambda: torch.func.jvp(loss, (x,), (direction,))[1], (gradient * direction).sum()),
        "forward_ad": (dual, (gradient * direction).sum()),
        "vmap": (of_vmap, of_stack),
        "vmap of temperatures": (
            lambda: torch.vmap(lambda tau: ctloss.cz_nce(x, y, temperature=tau))(taus),
            torch.stack([ctloss.cz_nce(x, y, temperature=tau.item()) for tau in taus]),
        ),
        "functional_call": (
            lambda: torch.func.functional_call(ctloss.CZNCELoss(), {}, (x, y)),
            loss(x, "reference"),
        ),
    }


@pytest.mark.parametrize("name", transforms())
def test_transforms_are_right(name: str) -> None:
    run, expected = transforms()[name]
    torch.testing.assert_close(run(), expected)


def test_a_fused_path_refuses_transforms_by_name() -> None:
    x, y = rows(6), rows(6, seed=1)
    for impl in PATHS[1:]:
        with pytest.raises(RuntimeError, match="impl='reference'"):
            torch.func.grad(lambda a, impl=impl: ctloss.cz_nce(a, y, impl=impl))(x)
    assert torch.func.hessian(lambda a: ctloss.cz_nce(a, y))(x).abs().max() > 0


@WHOLE_GRAPHS
def test_sizes_known_at_run_time_only() -> None:
    x, y, chosen = rows(12), rows(12, seed=1), torch.arange(12) % 3 != 0
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda a, b, m: ctloss.cz_nce(a[m], b[m]), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, y, chosen), ctloss.cz_nce(x[chosen], y[chosen]))


@WHOLE_GRAPHS
def test_new_options_compile_whole() -> None:
    x, y = pair()
    hard, ids, weights = rows(4, seed=5).requires_grad_(), torch.tensor([0, 1, 1, 2, 3, 4]), torch.rand(6)
    taus = torch.full((6,), 0.2, requires_grad=True)

    def step(x: Tensor, y: Tensor, hard: Tensor, ids: Tensor, weights: Tensor, taus: Tensor) -> Tensor:
        one = ctloss.info_nce(x, y, candidates=hard, ids=ids, weights=weights, temperature=taus, margin=0.5)
        found = ctloss.contrast(x, y, negatives="own", candidates=[hard], directions="x", temperature=taus)
        return one + found.z.exp().log1p().mean() + found.positive.mean()

    given = (x, y, hard, ids, weights, taus)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), step(*given))
    leaves = (x, y, hard, taus)
    expected = torch.autograd.grad(step(*given), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*given), leaves), expected)


@WHOLE_GRAPHS
@pytest.mark.slow
def test_exported_and_compiled_ahead_of_time() -> None:
    class Loss(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return ctloss.cz_nce(a, b)

    x, y = rows(12), rows(12, seed=1)
    exported = torch.export.export(Loss(), (x, y))
    torch.testing.assert_close(exported.module()(x, y), ctloss.cz_nce(x, y))
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(exported, package_path=f"{folder}/loss.pt2")
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x, y), ctloss.cz_nce(x, y))


def test_floating_point_operations_are_counted() -> None:
    x, y = pair(16, 8)
    with FlopCounterMode(display=False) as counter:
        ctloss.cz_nce(x, y).backward()
    # Half of 32 x 32 logits forward, and twice as much for the gradient.
    assert counter.get_total_flops() == 3 * 2 * 8 * 32 * 32 // 2
    with FlopCounterMode(display=False) as counter:
        ctloss.contrast(x, y, negatives="cross").z.sum().backward()
    assert counter.get_total_flops() == (1 + 3) * 2 * 8 * 16 * 16


def test_meta_tensors_have_shapes_and_no_numbers() -> None:
    x = torch.randn(4, 3, device="meta", requires_grad=True)
    loss = ctloss.info_nce(x, x.detach())
    assert (loss.device.type, loss.shape) == ("meta", ())
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.shape == x.shape
    with pytest.raises(ValueError, match="on meta"):
        ctloss.info_nce(x, x, temperature=torch.tensor(0.1, requires_grad=True))


def test_distributed_tensors_next_to_plain_ones_are_refused_by_name() -> None:
    """In a separate process, because a process group would be left behind."""
    program = (
        "import os, torch, ctloss\n"
        "import torch.distributed as dist\n"
        "from torch.distributed.tensor import DTensor, Shard, init_device_mesh\n"
        "store = dist.HashStore()\n"
        "dist.init_process_group('gloo', store=store, rank=0, world_size=1)\n"
        "rows = DTensor.from_local(torch.randn(4, 3), init_device_mesh('cpu', (1,)), [Shard(0)])\n"
        "try:\n    ctloss.cz_nce(rows.to_local(), rows)\n"
        "except TypeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "y: expected a plain tensor, got a DTensor; pass y.to_local()" in done.stdout, done.stderr


def sum_of_contrast(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return ctloss.contrast(x, y, **options).z.sum()


@pytest.mark.parametrize("changed", ["rows", "temperature"])
@pytest.mark.parametrize("loss", [*LOSSES, partial(ctloss.info_nce, reduction="none"), sum_of_contrast])
def test_an_input_changed_before_the_backward_is_noticed(loss: Any, changed: str) -> None:
    x, y = pair()
    tau = torch.tensor(0.1, requires_grad=True)
    value = loss(x, y, temperature=tau).sum()
    with torch.no_grad():
        {"rows": x, "temperature": tau}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("loss", [*LOSSES, sum_of_contrast])
def test_second_derivatives_are_refused_in_every_form(loss: Any) -> None:
    x, y = pair()

    def first() -> tuple[Tensor, Tensor]:
        value = loss(x, y)
        return value, torch.autograd.grad(value, x, create_graph=True)[0]

    value, gradient = first()
    for run in (
        lambda: torch.autograd.grad(gradient.square().sum(), x, retain_graph=True),
        lambda: torch.autograd.grad(value + gradient.square().sum(), x, retain_graph=True),
        lambda: (value + gradient.square().sum()).backward(inputs=[x]),
        lambda: torch.autograd.functional.hessian(lambda a: loss(a, y), x),
        lambda: torch.autograd.functional.jvp(lambda a: loss(a, y), x.detach(), x.detach()),
    ):
        with pytest.raises(RuntimeError, match="impl='reference'"):
            run()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_that_is_kept_keeps_no_gradient(reduction: Any) -> None:
    x, y = pair(64, 32)
    loss = ctloss.info_nce(x, y, reduction=reduction)
    loss.sum().backward()
    assert loss.grad_fn is not None
    assert loss.grad_fn.found is None  # type: ignore[attr-defined]
    again = ctloss.info_nce(x, y, reduction=reduction).sum()
    one, other = (torch.autograd.grad(again, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(one, other)


def test_weights_of_any_dtype_are_summed_in_double_precision() -> None:
    x, y = pair()
    for weights in (torch.full((6,), 6e4).half(), torch.full((6,), 3e38), torch.ones(6, dtype=torch.float64)):
        expected = ctloss.info_nce(x, y, weights=weights)
        learnt = ctloss.info_nce(x, y, weights=weights.clone().requires_grad_())
        assert expected.dtype == learnt.dtype == torch.float32
        torch.testing.assert_close(learnt, expected)
        torch.testing.assert_close(expected, ctloss.info_nce(x, y))
    nothing = ctloss.info_nce(x, y, weights=torch.zeros(6))
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, x)[0] == 0).all()


@pytest.mark.parametrize("impl", [*PATHS[1:], pytest.param("triton", marks=since("2.11"))])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_reduction_has_a_gradient_on_every_path(loss: Any, reduction: Any, impl: str) -> None:
    x, y = pair(9, 12)
    for options in ({}, {"negatives": "own"}, {"candidates": rows(5, 12, 3)}, {"ids": torch.tensor([0, 0, *range(7)])}):
        ours, theirs = (
            torch.autograd.grad(loss(x, y, reduction=reduction, impl=path, **options).sum(), (x, y))
            for path in (impl, "reference")
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_learnt_temperatures_and_ratios_go_through_transforms() -> None:
    x, y = pair()
    module = ctloss.InfoNCELoss(learnable_temperature=True)
    parameters = dict(module.named_parameters())

    def loss(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, given, (x.detach(), y.detach()))

    (found,) = torch.func.grad(loss)(parameters).values()
    module(x.detach(), y.detach()).backward()
    torch.testing.assert_close(found, next(module.parameters()).grad)
    stack = {name: torch.stack([value.detach()] * 3) for name, value in parameters.items()}
    assert torch.vmap(loss)(stack).shape == (3,)
    of_ratio = torch.func.grad(lambda a: ctloss.cz_nce(a, y.detach(), form="ratio"))(x.detach())
    torch.testing.assert_close(of_ratio, torch.autograd.grad(ctloss.cz_nce(x, y), x)[0])
