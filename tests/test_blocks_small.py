"""What small batches of the Triton path keep, and how they multiply it."""

from __future__ import annotations

import pytest
import torch
from block_calls import DEVICE, DTYPES, problem
from regimes import Case

from ctloss.kernels.blocks import engine, schedule, stats


def forward_of(case: Case) -> torch.Tensor:
    """The statistics that the forward keeps, products included."""
    x, y = case.embeddings(DEVICE)
    asked = problem(negatives=case.negatives, normalize=case.normalize)
    needs = {"need_x": True, "need_y": True, "need_temperature": True}
    return engine.forward(x, y, case.temperature, asked, **needs)[1]


def kept_products(saved: torch.Tensor, case: Case) -> torch.Tensor:
    """The parts of the products of the 2n rows, (parts, 2n, 2n or n)."""
    n, padded = case.n, schedule.padded_rows(case.n)
    sides = 1 if case.negatives == "cross" else 2
    parts = saved[stats.PLANES * 2 * padded :].view(schedule.product_parts(n), 2, padded, sides, padded)
    return parts[:, :, :n, :, :n].flatten(1, 2).flatten(2, 3).cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("n", [5, 20, 64])
def test_two_floats_hold_a_product(n: int, negatives: str, dtype: torch.dtype) -> None:
    case = Case("random", n, 12, dtype=dtype, negatives=negatives)
    first, second = kept_products(forward_of(case), case).double()
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
    """The statistics are an output like any other: NaN in them would say that the inputs held some."""
    saved = forward_of(Case(case.regime, case.n, case.d, seed=seed))
    assert saved.dtype == torch.float32
    assert saved.isfinite().all()


def test_products_beyond_float32_leave_no_rest() -> None:
    case = Case("random", 6, 8, normalize=False)
    x, y = (rows * 1e25 for rows in case.embeddings(DEVICE))
    needs = {"need_x": True, "need_y": True, "need_temperature": False}
    first, second = kept_products(engine.forward(x, y, 1.0, problem(normalize=False), **needs)[1], case)
    assert first.isinf().any()
    assert not first.isnan().any()
    assert (second[first.isinf()] == 0).all()
    assert second.isfinite().all()
