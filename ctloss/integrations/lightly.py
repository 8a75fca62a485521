"""lightly's contrastive losses: ``from ctloss.integrations.lightly import NTXentLoss`` instead of ``lightly.loss``.

Names, arguments, values and gradients are theirs; lightly itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn

from .. import objectives
from ..core import checks
from ..core.graphs import outside_graphs
from ..losses import contrast, cz_nce, info_nce
from ..objectives.formula import row_losses
from .numbers import positive
from .overrides import Uncalled
from .processes import check_even, gathered, group_of

WeightFunction = Callable[[Tensor, Tensor], Tensor]
LEARNT = (
    "0.1 to 0.5 are usual; to learn one, use ctloss.InfoNCELoss or ctloss.CZNCELoss with learnable_temperature=True"
)


class MemoryBank(nn.Module):
    """A ring of rows, filled with random directions to begin with.

    Args:
        size: 0 for none, or (rows, columns).

    Raises:
        ValueError: for another size.

    Attributes:
        bank: ``(rows, columns)``, the former rows, normalised.
        bank_ptr: ``(1,)``, where the next batch goes.

    Example:
        >>> bank = MemoryBank((8, 4))
        >>> bank.enqueue(torch.eye(4))
        >>> int(bank.bank_ptr), torch.equal(bank.bank[:4], torch.eye(4))
        (4, True)
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__()
        given = size if isinstance(size, Sequence) and not isinstance(size, str) else (size,)
        self.size: tuple[int, ...] = tuple(given)  # type: ignore[arg-type]
        whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in self.size)
        if not whole or (self.size != (0,) and (len(self.size) != 2 or min(self.size) < 0)):
            raise ValueError(
                f"memory_bank_size: expected 0 or (rows, columns), got {size!r}; such as (4096, 128) for embeddings of "
                "128 columns"
            )
        full = nn.functional.normalize(torch.randn(self.size), dim=-1) if len(self.size) > 1 else torch.empty(0)
        self.register_buffer("bank", full, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)

    @outside_graphs
    @torch.no_grad()
    def snapshot(self, device: torch.device) -> Tensor:
        """The rows as they are now, for a backward that comes after the next ones.

        Outside compiled graphs: in one that does not change the bank, inductor leaves the copy out.
        """
        return self.bank.to(device, copy=True)

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Put a batch over the oldest rows; at the end of the ring, what no longer fits is dropped."""
        start = int(self.bank_ptr)
        stop = start + len(rows)
        self.bank[start:stop] = rows[: len(self.bank) - start]
        self.bank_ptr[0] = stop if stop < len(self.bank) else 0


class NTXentLoss(nn.Module):
    r"""NT-Xent (SimCLR, arXiv 2002.05709), or with a memory bank MoCo's loss (1911.05722).

    Without a bank, :func:`ctloss.info_nce` of both sides. With one, ``out0`` is compared with its positive in ``out1``
    and with the rows of the bank only, ``negatives="none", directions="x", candidates=bank``; then the bank takes
    ``out1`` in, if ``out0`` requires a gradient.

    Args:
        temperature: τ > 0.
        memory_bank_size: 0, or the bank's (rows, columns).
        gather_distributed: without a bank, negatives of all ranks; with one, every rank's bank takes the rows of all.

    Raises:
        TypeError, ValueError: for a temperature that is not a positive number, or another size.

    Example:
        >>> NTXentLoss(temperature=0.5)(torch.eye(2), torch.eye(2))
        tensor(0.2395)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature, LEARNT)
        self.gather_distributed = gather_distributed
        self.memory_bank = MemoryBank(memory_bank_size)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of two views, ``(n, d)`` each: over this rank's rows, the mean if all ranks have as many."""
        if not self.memory_bank.bank.numel():
            return info_nce(out0, out1, temperature=self.temperature, group=group_of(self.gather_distributed))
        checks.pair(out0, out1)
        if not out0.requires_grad:
            return self._of_bank(out0, out1, self.memory_bank.bank.to(out0.device))
        loss = self._of_bank(out0, out1, self.memory_bank.snapshot(out0.device))
        rows = nn.functional.normalize(out1.detach(), dim=1)
        if group_of(self.gather_distributed):
            check_even([rows])
            rows = gathered(rows)
        self.memory_bank.enqueue(rows)
        return loss

    def _of_bank(self, out0: Tensor, out1: Tensor, bank: Tensor) -> Tensor:
        return info_nce(out0, out1, temperature=self.temperature, negatives="none", directions="x", candidates=bank)


class DCLLoss(Uncalled, nn.Module):
    r"""Decoupled contrastive loss (arXiv 2110.06848): :func:`ctloss.cz_nce` of both sides.

    Args:
        temperature: τ > 0.
        weight_fn: of the normalised views, called once for each of them as the anchor; its ``(n,)`` numbers multiply
            the logits of the positives.
        gather_distributed: negatives of all ranks.

    Raises:
        TypeError, ValueError: for a temperature that is not a positive number, or a ``weight_fn`` that is no function
            or returns another shape.

    Example:
        >>> DCLLoss(temperature=0.5)(torch.eye(2), torch.eye(2))
        tensor(-1.3069)
    """

    uncalled = ("_loss",)
    library = "lightly.loss"

    def __init__(
        self, temperature: float = 0.1, weight_fn: WeightFunction | None = None, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature, LEARNT)
        if weight_fn is not None and not callable(weight_fn):
            raise TypeError(f"weight_fn: expected a function of both views, got {weight_fn!r}; pass None for DCL")
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of two views, ``(n, d)`` each: over this rank's rows, the mean if all ranks have as many."""
        group = group_of(self.gather_distributed)
        if self.weight_fn is None:
            return cz_nce(out0, out1, temperature=self.temperature, group=group)
        c = contrast(out0, out1, temperature=self.temperature, group=group)
        units = [nn.functional.normalize(side, dim=1) for side in (out0, out1)]
        weights = torch.cat([self._weights(anchors, positives) for anchors, positives in (units, units[::-1])])
        return row_losses(c, lambda z, positive: z + (1 - weights) * positive).mean()

    def _weights(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """What ``weight_fn`` returns for one direction, ``(n,)``."""
        assert self.weight_fn is not None
        found = self.weight_fn(anchors, positives)
        if not isinstance(found, Tensor) or found.shape not in ((), (len(anchors),)):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"weight_fn: expected a function that returns one weight a row, ({len(anchors)},), got {got}; sum or "
                "average over the columns"
            )
        return found.expand(len(anchors))


class DCLWLoss(DCLLoss):
    r"""DCL with higher weights for pairs that are far apart, :func:`ctloss.objectives.dclw`.

    Args:
        temperature: τ > 0.
        sigma: σ of the weights.
        gather_distributed: negatives of all ranks; weights compare the pairs of one.

    Raises:
        TypeError, ValueError: for a temperature that is not a positive number.

    Example:
        >>> DCLWLoss(temperature=0.5)(torch.eye(2), torch.eye(2))
        tensor(-1.3069)
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False) -> None:
        super().__init__(temperature, partial(negative_mises_fisher_weights, sigma=sigma), gather_distributed)
        self.sigma = sigma

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of two views, ``(n, d)`` each: over this rank's rows, the mean if all ranks have as many."""
        c = contrast(out0, out1, temperature=self.temperature, group=group_of(self.gather_distributed))
        return objectives.dclw(c, self.temperature, self.sigma).mean()


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """DCLW's weights of the pairs of normalised views, ``(n,)``: 2 − n softmax(cos / σ), without a gradient."""
    similarity = (out0.detach() * out1.detach()).sum(1)
    return 2 - len(out0) * torch.softmax(similarity / sigma, 0)
