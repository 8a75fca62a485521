"""What the Triton path keeps of small batches, and how it multiplies it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from ctloss.kernels.problem import Shape
from ctloss.kernels.triton_path import engine, gradient, small, small_gradient, weights
from ctloss.kernels.triton_path.plan import config, layout
from ctloss.kernels.triton_path.plan.config import CDNA3, choose, choose_small
from ctloss.kernels.triton_path.plan.layout import stack_of
from ctloss.reference import closed_form
from support.regimes import Candidates, Case
from support.triton_calls import DEVICE, DTYPES, ON_GPU, both_passes, chain_of, check, pairs, problem, shape_of

pytestmark = pytest.mark.numeric


def kept_of(case: Case, **tensors: Any) -> torch.Tensor:
    """What the forward keeps, products included."""
    forward = engine.forward(pairs(case, **tensors), case.problem(), moment=True, gradient=True)
    (saved,) = engine.save(forward.state)
    return saved


def kept_products(saved: torch.Tensor, case: Case) -> torch.Tensor:
    """The parts of the products of the 2n rows, (parts, 2n, 2n or n)."""
    n, stack = case.n, stack_of(shape_of(case))
    sides = 1 if case.negatives == "cross" else 2
    parts = saved[stack.saved_floats :].view(layout.product_parts(stack), 2, stack.padded, sides, stack.padded)
    return parts[:, :, :n, :, :n].flatten(1, 2).flatten(2, 3).cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("n", [5, 20, 64])
def test_two_floats_hold_a_product(n: int, negatives: str, dtype: torch.dtype) -> None:
    case = Case("random", n, 12, dtype=dtype, negatives=negatives)
    first, second = kept_products(kept_of(case), case).double()
    x, y = (rows.double() for rows in case.embeddings())
    stacked = torch.cat((x, y))
    exact = torch.cat((x @ y.T, y @ x.T)) if negatives == "cross" else stacked @ stacked.T
    sizes = stacked.norm(dim=1)
    error = (first + second - exact).abs() / (sizes[:, None] * sizes.max())
    assert error.max() < 2.0**-46
    assert (second.abs() <= first.abs() * 2.0**-24).all()
    assert second.any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", [Case("random", 20, 12), Case("scaled", 20, 12), Case("zeros", 70, 9)])
def test_what_is_kept_are_numbers(case: Case, seed: int) -> None:
    """It is an output like any other, in which NaN would mean NaN in the inputs."""
    saved = kept_of(Case(case.regime, case.n, case.d, seed=seed))
    assert saved.dtype == torch.float32
    assert saved.isfinite().all()


def test_products_beyond_float32_leave_no_rest() -> None:
    case = Case("random", 6, 8, normalize=False, temperature=1.0)
    x, y = (rows * 1e25 for rows in case.embeddings(DEVICE))
    first, second = kept_products(kept_of(case, x=x, y=y), case)
    assert first.isinf().any()
    assert not first.isnan().any()
    assert (second[first.isinf()] == 0).all()
    assert second.isfinite().all()


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the interpreter multiply like a GPU; returns the largest entry of each product's left operand.

    It truncates float32 operands of tf32 products, and widens bfloat16 ones, whose bits it would multiply otherwise.
    """
    sizes: list[float] = []

    def operand(given: Any, precision: Any) -> Any:
        data = given.data
        if given.dtype.scalar == tl.bfloat16:
            data = (data.astype(np.uint32) << 16).view(np.float32)
        elif given.dtype.scalar == tl.float32 and str(precision).endswith("TF32"):
            data = (data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return data

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        left, right = operand(a, precision), operand(b, precision)
        sizes.append(float(np.abs(left).max()))
        return interpreter.TensorHandle(np.matmul(left, right, dtype=np.float32) + d.data, d.dtype.scalar)

    if not ON_GPU:
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    return sizes


@pytest.mark.parametrize(("regime", "largest"), [("collapsed", 0.04), ("hard", 1e-3), ("random", 1e-3)])
@pytest.mark.parametrize("n", [50, 100])
def test_tf32_is_truncated_alike_along_the_row_and_across(
    regime: str, largest: float, n: int, tensor_cores: list[float]
) -> None:
    """The radial part is subtracted from a sum of the very products that it was computed from."""
    batch = pairs(Case(regime, n, 192, temperature=1.0))
    a = torch.full((2 * n,), 1 / (2 * n), dtype=torch.float64)
    found = [gradient.cpu() for gradient in both_passes(batch, problem(precision="medium"), a.to(DEVICE))[3:]]
    truth = closed_form(batch.x.cpu(), batch.y.cpu(), a, a, temperature=1.0)
    exact = truth.x, truth.y
    error, size = torch.cat(found).double() - torch.cat(exact), torch.cat(exact).double().norm()
    assert error.norm() <= largest * size
    assert error.norm() >= 1e-5 * size, "nothing was truncated"


@triton.jit
def weighed(weight_ptr, rows_ptr, out_ptr, SIDE: tl.constexpr, TERMS: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.arange(0, SIDE)
    offsets = index[:, None] * SIDE + index[None, :]
    rows = tl.load(rows_ptr + offsets).to(tl.bfloat16)
    total = weights.weighed_sum(tl.load(weight_ptr + offsets), rows, TERMS, True, "ieee")
    tl.store(out_ptr + offsets, total)


@pytest.mark.parametrize("terms", [1, 3])
def test_small_terms_of_weights_are_added_first(terms: int, tensor_cores: list[float]) -> None:
    """Tensor cores round towards zero: adding to a large sum loses up to its last place."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(32, 32, generator=generator)
    rows = torch.randn(32, 32, generator=generator).bfloat16().float()
    out = torch.empty(32, 32, device=DEVICE)
    weighed[(1,)](weight.to(DEVICE), rows.to(DEVICE), out, SIDE=32, TERMS=terms)
    error = (out.cpu().double() - weight.double() @ rows.double()).abs().max()
    size = (weight @ rows.abs()).max()
    # One bfloat16 is off the weight by half a step, 2^-9. Three hold it like float32, and only the sums are left, whose
    # order is up to the processor: 32 additions for each term, none off by more than half a step.
    assert error < {1: 2.0**-9, 3: 3 * 32 * 2.0**-24}[terms] * size
    assert ON_GPU or len(tensor_cores) == terms
    assert tensor_cores == sorted(tensor_cores)


def test_small_terms_of_panels_are_added_first(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[float, bool]] = []
    monkeypatch.setattr(
        gradient, "library_product", lambda weights, packed, sums, first: added.append((weights[0, 0].item(), first))
    )
    block = torch.tensor([1.0, 2.0**-9, 2.0**-18])[:, None, None].expand(3, 4, 4)
    chosen = choose(Shape(600, 64, dtype=torch.bfloat16), 90, problem())
    for first in (True, False):
        gradient.add_gradient(block, torch.ones(4, 8), torch.zeros(4, 8), first, chosen)
    assert added == [
        (2.0**-18, True),
        (2.0**-9, False),
        (1.0, False),
        (2.0**-18, False),
        (2.0**-9, False),
        (1.0, False),
    ]


# Batches whose exponentials take the products' place: both bounds of the temperature, equal rows, rows of zeros and of
# unusual size, where the projection removes nearly everything.
EXPONENTIALS = [
    Case("random", 70, 40, temperature=0.0361),
    Case("random", 90, 33, dtype=torch.float16, negatives="cross", temperature=0.36),
    Case("collapsed", 97, 40, temperature=0.3),
    Case("collapsed", 66, 40, dtype=torch.float16, negatives="cross"),
    Case("identical", 65, 17, temperature=0.36, need=(False, True, False)),
    Case("zeros", 130, 20, strides="padded", negatives="cross"),
    Case("scaled", 70, 64, temperature=0.2, need=(True, False, True)),
    Case("hard", 80, 20, strides="transposed"),
]


@pytest.mark.parametrize("case", EXPONENTIALS, ids=lambda case: f"{case.regime}-{case.n}x{case.d}-{case.negatives}")
@pytest.mark.usefixtures("poisoned")
def test_exponentials_serve_like_products(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is as exact, and nothing else changes."""
    case = replace(case, need=(*case.need[:2], False))
    batch, asked = pairs(case), case.problem()
    assert small.keeps_exponentials(batch, asked, choose_small(batch.shape, config.INTERPRETER, asked))
    check(case, chain_of(case))
    kept = both_passes(batch, asked)
    again = both_passes(batch, asked)
    assert all(map(torch.equal, kept, again))
    for module in (small, small_gradient):
        monkeypatch.setattr(module, "keeps_exponentials", lambda *about: False)
    formed = both_passes(batch, asked)
    assert all(map(torch.equal, kept[:3], formed[:3]))
    if case.dtype == torch.float32:
        assert not all(map(torch.equal, kept[3:], formed[3:])), "products were used both times"


@pytest.mark.parametrize(
    ("options", "tau"),
    [
        ({}, 0.036),
        ({}, 0.37),
        ({}, torch.tensor(0.07)),
        ({"normalize": False}, 0.07),
        ({"directions": "x"}, 0.07),
        ({"n": 64}, 0.07),
    ],
)
def test_products_stay_where_exponentials_would_not_serve(options: dict[str, Any], tau: float | torch.Tensor) -> None:
    case = Case("random", **{"n": 70, "d": 8} | options)
    batch, asked = pairs(case, temperature=tau), case.problem()
    assert not small.keeps_exponentials(batch, asked, choose_small(batch.shape, 90, asked))
    # A logarithm as quick as the exponential is NVIDIA's.
    plain = pairs(Case("random", 70, 8), temperature=0.07)
    assert small.keeps_exponentials(plain, problem(), choose_small(plain.shape, 90, problem()))
    assert not small.keeps_exponentials(plain, problem(), choose_small(plain.shape, CDNA3, problem()))
    rounded = problem(precision="medium")
    assert not small.keeps_exponentials(plain, rounded, choose_small(plain.shape, 90, rounded))


# Sides that do not fill tiles, every format of products, each way to read a row; the last ones in panels.
ON_A_GPU = [
    (80, Case("scaled", 33, 70, negatives="cross", strides="transposed")),
    (90, Case("hard", 66, 33, exponent=-5.0, negatives="cross", strides="every other")),
    (90, Case("collapsed", 130, 40, dtype=torch.float16, directions="x")),
    (100, Case("zeros", 258, 20, dtype=torch.float16, negatives="cross", temperature=0.02)),
    (CDNA3, Case("big", 66, 65, normalize=False, need=(False, True, True))),
    (90, Case("hard", 20, 33, candidates=(Candidates(9), Candidates(30)), ids=9, margin=0.6)),
    (80, Case("collapsed", 70, 33, dtype=torch.float16, temperatures="rows", negatives="own")),
]


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="on a GPU every test uses its tiles")
@pytest.mark.parametrize(("arch", "case"), ON_A_GPU, ids=lambda value: str(getattr(value, "regime", value)))
def test_acceptance_in_the_tiles_of_a_gpu(arch: int, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted = engine.describe(shape_of(case), case.problem())
    monkeypatch.setattr(engine, "_arch", lambda: arch)
    assert engine.describe(shape_of(case), case.problem()) != interpreted
    check(case, chain_of(case))
