"""Two ranks' blocks on the native path: what the kernels decline, bands, threads and memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctloss.kernels.blocks import Anchors, Sums, native, torch_path
from ctloss.kernels.native import library, sig_lip
from ctloss.kernels.problem import Batch, Problem
from ctloss.kernels.torch_path import sig_lip as torch_sig_lip
from support.calls import noisy

pytestmark = [pytest.mark.numeric, pytest.mark.skipif(library.kernels is None, reason=str(library.missing()))]

NEEDS = (True, True, True)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    former = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(former)


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each call of the kernels returned: negative where they declined."""
    found: list[int] = []
    assert library.kernels is not None
    block = library.kernels.block

    def noted(*arguments: float) -> int:
        found.append(block(*arguments))
        return found[-1]

    monkeypatch.setattr(library, "kernels", SimpleNamespace(block=noted))
    return found


def ranks(n: int, m: int, d: int, **options: Any) -> tuple[Batch, Batch]:
    """Two ranks of n and m pairs, with a side of candidates each."""
    x, y = noisy(n + m, d)
    (further,) = noisy(17, d, seed=1)[:1]
    own = Batch(x[:n], y[:n], (further[:5],), **options)
    return own, Batch(x[n:], y[n:], (further[5:],), **options)


def anchors(n: int, m: int, lse: float = 20.0) -> tuple[Anchors, Anchors]:
    """Unequal weights of either sign, of both directions."""
    a = torch.linspace(-1, 2, 2 * (n + m), dtype=torch.float64)
    sums = torch.full((2 * (n + m),), lse, dtype=torch.float64)
    return Anchors(a[: 2 * n], sums[: 2 * n]), Anchors(a[2 * n :], sums[2 * n :])


def same_sums(one: tuple[Sums, Sums | None], two: tuple[Sums, Sums | None]) -> bool:
    """Whether two results have the same bits, NaN among them."""
    for first, second in zip(one, two, strict=True):
        for a, b in zip(first or (), second or (), strict=True):
            if a is not None and b is not None and not torch.equal(a.view(torch.int64), b.view(torch.int64)):
                return False
    return True


def bits(gradients: list[Tensor | None]) -> list[Tensor | None]:
    return [None if one is None else one.view(torch.int32) for one in gradients]


@pytest.mark.parametrize("name", ["infinite", "opposite", "vanishing", "overflowing"])
def test_what_the_kernels_decline_has_the_bits_of_the_torch_path(name: str, statuses: list[int]) -> None:
    own, other = ranks(4, 3, 8, temperature=0.005)
    problem = Problem(negatives="cross", normalize=name != "overflowing")
    if name == "infinite":
        own.y[1, 2] = torch.inf
    if name == "opposite":
        # Cosines of −1 so cold are below the normal numbers next to those of 1, and no anchor has others.
        own = Batch(own.x.abs(), own.x.abs(), temperature=0.005)
        other = Batch(-own.x[:3], -own.x[:3], temperature=0.005)
    if name == "vanishing":
        ids = torch.zeros(4, dtype=torch.int64)
        own, other = own._replace(candidates=(), ids=ids), other._replace(candidates=(), ids=ids[:3])
    found = native.meet(own, other, problem, mutual=True, moment=True)
    assert statuses == [-1 if name == "infinite" else -2]
    assert same_sums(found, torch_path.meet(own, other, problem, mutual=True, moment=True))


@pytest.mark.parametrize("lse", [-500.0, 500.0])
def test_a_gradient_out_of_range_has_the_bits_of_the_torch_path(lse: float, statuses: list[int]) -> None:
    own, other = ranks(4, 3, 8)
    pulled = native.pull(own, other, Problem(), *anchors(4, 3, lse), NEEDS)
    assert statuses == [-2]
    wanted = torch_path.pull(own, other, Problem(), *anchors(4, 3, lse), NEEDS)
    assert all(
        torch.equal(a.view(torch.int32), b.view(torch.int32))
        for a, b in zip(pulled, wanted, strict=True)
        if a is not None and b is not None
    )


def test_sides_in_double_precision_go_to_the_torch_path(statuses: list[int]) -> None:
    own, other = ranks(4, 3, 8)
    other = other._replace(y=other.y.double())
    native.meet(own, other, Problem(), mutual=True, moment=False)
    gradients = native.pull(own, other, Problem(), *anchors(4, 3), NEEDS)
    assert statuses == []
    assert [None if one is None else one.dtype for one in gradients] == [torch.float64] * 3


def test_anchors_without_negatives_are_not_declined(statuses: list[int]) -> None:
    """Nothing that they are compared with, or nothing that ids leave; the others have theirs."""
    own, other = ranks(4, 3, 8, temperature=0.07)
    bare = own._replace(candidates=())
    of_own, of_other = native.meet(bare, other, Problem(negatives="none"), mutual=True, moment=True)
    assert of_other is not None
    assert of_own.z.isfinite().all()
    assert of_other.z.tolist() == [-math.inf] * 6
    assert of_other.moment is not None
    assert of_other.moment.tolist() == [0.0] * 6
    one, many = torch.tensor([7, 7, 1, 2]), torch.tensor([7, 7, 7])
    alike = bare._replace(ids=one), other._replace(candidates=(), ids=many)
    of_own, _ = native.meet(*alike, Problem(), mutual=False, moment=False)
    assert (of_own.z == -math.inf).tolist() == [True, True, False, False] * 2
    assert statuses == [0, 0]


@pytest.mark.parametrize("negatives", ["both", "cross", "own"])
def test_exponentials_kept_or_formed_in_bands_agree(negatives: Any) -> None:
    own, other = ranks(150, 330, 40, temperature=0.1)
    problem = Problem(negatives=negatives)
    pulled = [
        native.pull(own, other, replace(problem, workspace=workspace), *anchors(150, 330), NEEDS)
        for workspace in (problem.workspace, 1, 1 << 20)
    ]
    for again in pulled[1:]:
        for one, two in zip(pulled[0], again, strict=True):
            assert one is not None
            assert two is not None
            # The same terms, added up in another order.
            assert (one - two).norm() <= 1e-6 * one.norm()


def test_any_part_of_the_gradient_has_the_same_bits() -> None:
    """Rectangles that serve no wanted row are left out."""
    own, other = ranks(120, 70, 24)
    for negatives, workspace in (("both", 256 << 20), ("cross", 256 << 20), ("own", 1)):
        problem = Problem(negatives=negatives, workspace=workspace)
        whole = native.pull(own, other, problem, *anchors(120, 70), NEEDS)
        for needs in ((True, False, False), (False, True, False), (False, False, True)):
            part = native.pull(own, other, problem, *anchors(120, 70), needs)
            for one, wanted, need in zip(bits(part), bits(whole), needs, strict=True):
                assert (one is not None) == need
                assert one is None or (wanted is not None and torch.equal(one, wanted))


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    own, other = ranks(150, 330, 80)
    for workspace in (1, 256 << 20):
        problem = Problem(workspace=workspace)
        found = []
        for count in (1, 3):
            threads(count)
            sums = native.meet(own, other, problem, mutual=True, moment=True)
            found.append((sums, native.pull(own, other, problem, *anchors(150, 330), NEEDS)))
        assert same_sums(found[0][0], found[1][0])
        pairs = zip(bits(found[0][1]), bits(found[1][1]), strict=True)
        assert all(one is not None and two is not None and torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_in_half_precision_are_read_as_what_they_are(dtype: torch.dtype) -> None:
    """Widening them changes no number; only some processors round weights of theirs."""
    own, other = ranks(60, 50, 24, temperature=0.1)
    narrow = [batch._replace(x=batch.x.to(dtype), y=batch.y.to(dtype), candidates=()) for batch in (own, other)]
    wide = [batch._replace(x=batch.x.float(), y=batch.y.float()) for batch in narrow]
    for given in ((narrow[0], wide[1]), (narrow[0], narrow[1])):
        (found, _), (wanted, _) = (
            native.meet(*both, Problem(), mutual=True, moment=False) for both in (given, (wide[0], wide[1]))
        )
        assert (found.z - wanted.z).abs().max() <= 2e-5
        pulled, expected = (
            native.pull(*both, Problem(), *anchors(60, 50), (True, True)) for both in (given, (wide[0], wide[1]))
        )
        rounding = 4e-3 if dtype == torch.bfloat16 and given[1].x.dtype == dtype else 1e-5
        for one, two in zip(pulled, expected, strict=True):
            assert one is not None
            assert two is not None
            assert one.dtype == torch.float32
            assert (one - two).norm() <= rounding * two.norm()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2, 8), TypeError, "too few"),
        ((1, *[0] * 19), ValueError, "at least two sides"),
        ((2, *[0] * 11, 8, *[0] * 7), ValueError, "a and lse go together"),
        ((2, *[0] * 19, *[0] * 18), TypeError, "at least 4 sides"),
        ((2, *[0] * 19, *[0, 1, 1, 0, 0, 0] * 3, 0, 2, 1, 0, 0, 0), ValueError, "as many rows of y as of x"),
        ((2, *[0] * 19, *[0, 1, 1, 0, 0, 8], *[0, 1, 1, 0, 0, 0] * 3), ValueError, "a gradient needs"),
    ],
)
def test_calls_that_make_no_sense_are_refused(arguments: tuple[int, ...], error: type, message: str) -> None:
    """Before any address is read."""
    assert library.kernels is not None
    with pytest.raises(error, match=message):
        library.kernels.block(*arguments)


def most_resident() -> int:
    """The most memory that this process had resident since it asked to forget what it had before."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def test_memory_stays_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it, the gradients and vectors with one entry per row; a thread's tile, and the allocators' slack."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux, which tells the most memory since it was asked to forget")
    monkeypatch.setattr(native, "torch_path", None)
    n, m, d, limit = 1500, 2500, 16, 8 << 20
    own, other = ranks(n, m, d)
    problem = Problem(workspace=limit)
    weights = anchors(n, m)
    Path("/proc/self/clear_refs").write_text("5")
    before = most_resident()
    native.meet(own, other, problem, mutual=True, moment=True)
    native.pull(own, other, problem, *weights, NEEDS)
    rows = 2 * (n + m)
    assert most_resident() - before < limit + 4 * d * rows + 200 * rows + (6 << 20)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 5, 3), (150, 40, 33), (70, 290, 80)])
def test_sigmoid_losses_of_rows_without_a_partner(n: int, m: int, d: int, normalize: bool) -> None:
    """Next to the torch path in double precision."""
    (x,), (y,) = noisy(n, d)[:1], noisy(m, d, seed=1)[:1]
    # One row so short that it is multiplied by a power of two.
    x[0] *= 2.0**-60
    problem = Problem(loss="sig_lip", normalize=normalize)
    weights = torch.linspace(0.1, 1.9, n, dtype=torch.float64)
    ids = torch.arange(n) % 7, torch.arange(m) % 11
    for given in (None, ids):
        every = (True, True, True, True)
        found = sig_lip.oppose(x, y, 0.5, -1.0, given, problem, weights=weights, needs=every)
        wide = torch_sig_lip.oppose(x.double(), y.double(), 0.5, -1.0, given, problem, weights=weights, needs=every)
        assert (found.rows - wide.rows).abs().max() <= 1e-6 * wide.rows.abs().max()
        assert found.slope is not None
        assert wide.slope is not None
        assert found.offset is not None
        assert wide.offset is not None
        size = 2.0**30 * (weights * (wide.rows + 1)).sum() * (1 if normalize else d)
        assert (found.slope - wide.slope).abs() <= 4e-6 * size
        assert (found.offset - wide.offset).abs() <= 4e-6 * size
        for index, (one, two) in enumerate(zip(found.gradients, wide.gradients, strict=True)):
            assert one is not None
            assert two is not None
            if found.exponents is not None:
                assert wide.exponents is not None
                rows = slice(0, n) if index == 0 else slice(n, n + m)
                one = one * 2.0 ** (found.exponents[rows] - wide.exponents[rows])
            assert (one - two).norm() <= 1e-5 * two.norm()
        alone = sig_lip.oppose(x, y, 0.5, -1.0, given, problem, weights=weights, needs=(False, True, False, False))
        assert alone.gradients[0] is None
        assert torch.equal(*(gradient for gradient in (alone.gradients[1], found.gradients[1]) if gradient is not None))
        assert torch.equal(alone.rows, found.rows)


def test_sigmoid_weights_beyond_the_workspace_and_rows_that_are_not_finite_go_to_the_torch_path() -> None:
    x, y = noisy(6, 4)
    tight = Problem(loss="sig_lip", workspace=100)
    needs = (True, False, False, False)
    found, wanted = (path.oppose(x, y[:5], 1.0, 0.0, None, tight, needs=needs) for path in (sig_lip, torch_sig_lip))
    assert torch.equal(found.rows, wanted.rows)
    y[1, 1] = torch.inf
    assert sig_lip.oppose(x, y[:5], 1.0, 0.0, None, Problem(loss="sig_lip")).rows.isnan().all()
