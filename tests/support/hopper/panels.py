"""Panels for the Hopper kernels on the simulated multiprocessor, and their answers in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .language import Kernel

TILE, DEPTH = 128, 64
ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Panel:
    """A part of the stacked rows of ``n`` pairs and ``m`` candidates against another.

    Attributes:
        rows: the tiles of its rows, first and last excluded.
        columns: the same of its columns.
        n, m, padded: pairs, candidates, and rows of a side with their padding.
        d: columns of the rows.
        dtype: the rows'.
        normalize: cosines.
        rate: log2(e)/τ.
        ids: how many different ids the pairs have; 0: none are given.
        kept: the dtype of kept logits.
        num_kept: how many tiles there is room for.
        blocks: of a launch.
    """

    rows: tuple[int, int] = (0, 3)
    columns: tuple[int, int] = (0, 3)
    n: int = 150
    m: int = 0
    padded: int = 256
    d: int = 128
    dtype: torch.dtype = torch.bfloat16
    normalize: bool = True
    rate: float = 20.0
    ids: int = 0
    kept: torch.dtype | None = None
    num_kept: int = 4
    blocks: int = 2

    @property
    def triangle(self) -> bool:
        """Whether it is symmetric."""
        return self.rows == self.columns

    @property
    def num_rows(self) -> int:
        """All stacked rows."""
        return 2 * self.padded + -(-self.m // TILE) * TILE

    @property
    def extents(self) -> tuple[int, ...]:
        """The integers that the kernels take from num_pairs on."""
        (a, a_stop), (b, b_stop) = self.rows, self.columns
        tiles = a_stop - a, b_stop - b
        return self.n, self.m, self.padded, self.num_rows, self.d, a * TILE, b * TILE, *tiles

    def packed(self) -> Tensor:
        """The stacked rows, zeros for padding."""
        torch.manual_seed(0)
        rows = torch.zeros(self.num_rows, self.d)
        for first, count in ((0, self.n), (self.padded, self.n), (2 * self.padded, self.m)):
            rows[first : first + count] = torch.randn(count, self.d)
        return (rows if self.normalize else rows / self.d**0.25).to(self.dtype)

    def identities(self) -> Tensor:
        """A number for each stacked row, −1 for padding."""
        found = torch.full((self.num_rows,), -1, dtype=torch.int32)
        own = torch.arange(self.n, dtype=torch.int32) % (self.ids or self.n)
        found[: self.n] = found[self.padded : self.padded + self.n] = own
        found[2 * self.padded : 2 * self.padded + self.m] = torch.arange(self.n, self.n + self.m, dtype=torch.int32)
        return found


class Truth:
    """What a panel holds, in float64, and how far float32 may be from it.

    The products of 64 columns are summed in float32 and these sums again: an error of a roundoff for each addition and
    a few for the factors, relative to the products of the norms.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.rows = panel.packed()
        exact = self.rows.double()
        norms = exact.norm(dim=1)
        self.inverse = torch.where(norms > 0, 1 / norms, 0.0)
        root = self.inverse * math.sqrt(panel.rate)
        self.factor = torch.stack((root.float(), (root - root.float()).float()))
        ids = panel.identities()
        (a, a_stop), (b, b_stop) = panel.rows, panel.columns
        self.of_rows = slice(a * TILE, a_stop * TILE)
        self.of_columns = slice(b * TILE, b_stop * TILE)
        scale = self.inverse if panel.normalize else torch.ones_like(norms)
        product = exact @ exact.T
        self.every = panel.rate * product * scale[:, None] * scale[None, :]
        live = (ids[:, None] != ids[None, :]) & (ids >= 0)[:, None] & (ids >= 0)[None, :]
        self.live = live[self.of_rows, self.of_columns]
        self.logits = self.every[self.of_rows, self.of_columns].masked_fill(~self.live, -math.inf)
        largest = panel.rate * (1.0 if panel.normalize else norms.max().item() ** 2)
        # In the logit, hence relative in its exponential.
        self.error = (DEPTH + panel.d / DEPTH + 8) * ROUNDOFF * largest * math.log(2)


def check_lse(modules: SimpleNamespace, panel: Panel, seed: int = 0, *, moment: bool = True) -> list[Tensor]:
    """Fill the slots of a panel and hold them, and what is kept, to the truth; return all that was written."""
    truth = Truth(panel)
    planes = 3 if moment else 2
    tiles_a, tiles_b = panel.extents[-2:]
    row_slots = torch.full((planes, tiles_b, tiles_a * TILE), math.nan)
    mirrored = panel.triangle or panel.columns[0] * TILE < 2 * panel.padded
    column_slots = row_slots if panel.triangle else torch.full((planes, tiles_a, tiles_b * TILE), math.nan)
    kept = None if panel.kept is None else torch.full((panel.num_kept * TILE * TILE,), 77, dtype=panel.kept)
    # Tiles are numbered as in one block: a square's upper half, or column by column.
    place = (panel.num_kept, 0, panel.columns[0] * TILE, 0, 0 if panel.triangle else tiles_a)
    if panel.triangle:
        place = (panel.num_kept, 0, 0, 0, 0)
    with one_of(modules, panel.blocks, seed):
        modules.lse.launch(
            truth.rows,
            truth.factor[0],
            torch.tensor([panel.rate]),
            panel.identities() if panel.ids else None,
            row_slots,
            column_slots,
            kept,
            (*place, *panel.extents),
            triangle=panel.triangle,
            mirrored=mirrored,
            normalize=panel.normalize,
            moment=moment,
        )
    hold(row_slots, truth.logits, truth.error)
    if mirrored and not panel.triangle:
        hold(column_slots, truth.logits.T, truth.error)
    if kept is not None:
        hold_kept(kept.view(panel.num_kept, TILE, TILE), truth, place)
    return [row_slots, column_slots, *([] if kept is None else [kept])]


def hold(slots: Tensor, logits: Tensor, error: float) -> None:
    """Compare slots (planes, tiles, rows), folded about the largest peak, with the sums of (rows, columns) logits."""
    peak, total, *moment = slots.double()
    assert not slots.isnan().any()
    top = peak.max(0).values
    scale = torch.exp2(peak - top)
    weights = torch.exp2(logits - top[:, None])
    exact = weights.sum(1)
    # A roundoff for each addition, and for the exponential's own error.
    allowed = 2 * error + (2 * TILE + 8) * ROUNDOFF
    assert ((scale * total).sum(0) - exact).abs().le(allowed * exact).all()
    if moment:
        distance = torch.where(weights > 0, logits - top[:, None], 0.0)
        exact = (weights * distance).sum(1)
        found = (scale * (moment[0] + (peak - top) * total)).sum(0)
        size = (weights * (distance.abs() + 1 / math.log(2))).sum(1)
        # Rounding a logit also moves the distance itself.
        assert (found - exact).abs().le(2 * allowed * size + 1e-30).all()


def hold_kept(kept: Tensor, truth: Truth, place: tuple[int, ...]) -> None:
    """Compare kept tiles with all logits, whether they count or not."""
    panel = truth.panel
    num_kept, block_a, block_b, before, high = place
    (a, a_stop), (b, b_stop) = panel.rows, panel.columns
    seen = 0
    for column in range(b, b_stop):
        for row in range(a, column + 1 if panel.triangle else a_stop):
            at = column - block_b // TILE
            number = before + (at * high if high else at * (at + 1) // 2) + row - block_a // TILE
            if number >= num_kept:
                continue
            seen += 1
            exact = truth.every[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            if kept.dtype == torch.int16:
                steps = exact / panel.rate * 32767
                allowed = 0.5 + 32767 * truth.error / panel.rate
                assert (kept[number] - steps.clamp(max=32767)).abs().le(allowed).all()
            else:
                inside = exact.isfinite() & ~kept[number].isinf()
                assert (kept[number] - exact).masked_fill(~inside, 0.0).abs().le(2 * truth.error).all()
    assert seen == min(num_kept, seen) > 0


def check_weights(modules: SimpleNamespace, panel: Panel, seed: int = 0, *, terms: int = 1) -> list[Tensor]:
    """Fill a panel's weights and hold them to the truth; return them."""
    truth = Truth(panel)
    generator = torch.Generator().manual_seed(1)
    coefficient = torch.rand(panel.num_rows, generator=generator)
    coefficient[2 * panel.padded :] = 0
    peak = torch.zeros(panel.num_rows)
    if panel.rate > 40 or not panel.normalize:
        peak = truth.every.max(1).values.float()
    rows, columns = truth.live.shape
    half = panel.dtype == torch.bfloat16
    weights = torch.full((terms, rows, columns), math.nan, dtype=torch.bfloat16 if half else torch.float32)
    rounded = panel.normalize and terms == 1
    with one_of(modules, panel.blocks, seed):
        modules.weights.launch(
            truth.rows,
            truth.factor[0],
            truth.inverse.float(),
            peak,
            torch.tensor([panel.rate]),
            coefficient,
            panel.identities() if panel.ids else None,
            weights,
            panel.extents,
            triangle=panel.triangle,
            normalize=panel.normalize,
            rounded=rounded,
        )
    k, top = coefficient.double(), peak.double()
    exact = k[:, None] * torch.exp2(truth.every - top[:, None]) + k[None, :] * torch.exp2(truth.every - top[None, :])
    if panel.normalize:
        exact = exact * truth.inverse[:, None] * truth.inverse[None, :]
    exact = exact[truth.of_rows, truth.of_columns].masked_fill(~truth.live, 0.0)
    # Half a step of what the weights are rounded to.
    digits = 2.0**-8 if half else 2.0**-11
    allowed = (digits if rounded else 2.0**-22) + 2 * truth.error + 16 * ROUNDOFF
    assert not weights.isnan().any()
    # What is flushed to 0 is far below the smallest normal number.
    assert (weights.double().sum(0) - exact).abs().le(allowed * exact + 2.0**-120).all()
    return [weights]


class one_of:
    """Launches on so many blocks, in the order of a seed."""

    def __init__(self, modules: SimpleNamespace, blocks: int, seed: int) -> None:
        self.modules, self.blocks, self.seed = modules, blocks, seed

    def __enter__(self) -> None:
        self.before: Any = self.modules.lse.grid
        for module in (self.modules.lse, self.modules.weights):
            module.grid = lambda programs, device: (min(self.blocks, programs),)
        Kernel.seed = self.seed

    def __exit__(self, *exception: object) -> None:
        for module in (self.modules.lse, self.modules.weights):
            module.grid = self.before
        Kernel.seed = 0
