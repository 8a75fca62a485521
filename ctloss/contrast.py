"""The result of :func:`ctloss.contrast`, which the losses in :mod:`ctloss.objectives` are functions of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Contrast(NamedTuple):
    """How every anchor compares with its negatives.

    Indexing gives its two tensors, as with any tuple; :meth:`rows` selects rows.

    Attributes:
        z: ``(rows,)`` log φ = lse over the negatives − s⁺; −inf for a row without negatives. With ``dims``,
            ``(widths, rows)``.
        positive: s⁺, the logit of the row's positive, in the shape of z.

    Example:
        >>> import torch
        >>> c = Contrast(torch.tensor([-2.0, 0.5]), torch.tensor([5.0, 1.0]))
        >>> c.lse
        tensor([3.0000, 1.5000])
        >>> c.rows(slice(1))
        Contrast(z=tensor([-2.]), positive=tensor([5.]))
    """

    z: Tensor
    positive: Tensor

    @property
    def lse(self) -> Tensor:
        """log Σ exp(s) over the negatives, with one more rounding: use z where lse − s⁺ matters."""
        return self.z + self.positive

    def rows(self, index: slice | list[int] | Tensor) -> Contrast:
        """Some of the rows, at every width if there are several.

        Args:
            index: a slice, row numbers, or a mask with one entry per row.

        Returns:
            Their :class:`Contrast`, differentiable.

        Example:
            >>> import torch
            >>> Contrast(torch.tensor([-2.0, 0.5]), torch.tensor([5.0, 1.0])).rows(torch.tensor([False, True]))
            Contrast(z=tensor([0.5000]), positive=tensor([1.]))
        """
        return Contrast(self.z[..., index], self.positive[..., index])
