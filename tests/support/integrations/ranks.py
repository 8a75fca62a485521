"""What a rank does with an integration's class, ours or theirs; runs in the rank's process."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import peers
from ctloss.integrations import lightly, open_clip

from .drop_ins import rows

ROWS = 3
LIGHTLY = {"NTXentLoss": "ntx_ent_loss", "DCLLoss": "dcl_loss", "DCLWLoss": "dcl_loss"}


class Encoder(nn.Module):
    """Two views, normalised, and a scale and a bias of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(7, 6).double()
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        image, text = (nn.functional.normalize(self.inner(one), dim=1) for one in (x, x + 0.3 * x.flip(1)))
        return image, text, self.log_scale.exp(), 1.0 * self.bias


def criterion(library: str, name: str, ours: bool, options: dict[str, Any], group: Any) -> Any:
    """The loss of one rank, that knows of the others."""
    if library == "open_clip":
        options = options | {"rank": dist.get_rank(group), "world_size": dist.get_world_size(group)}
        made = getattr(open_clip, name) if ours else peers.loss_class("open_clip_torch", "open_clip.loss", name)
        loss = made(**options)
        return WITH_MORE[name](loss) if name in WITH_MORE else loss
    torch.manual_seed(dist.get_rank(group))
    made = getattr(lightly, name) if ours else peers.loss_class("lightly", f"lightly.loss.{LIGHTLY[name]}", name)
    loss = made(gather_distributed=True, **options)
    return lambda image, text, scale, bias: loss(image, text) + 0.0 * (scale + bias)


def captioned(loss: Any) -> Any:
    """The sum of CoCa's losses, with captions of two words, of which the second does not count."""

    def call(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        labels = torch.stack([1 + torch.arange(len(image)), torch.zeros(len(image), dtype=torch.long)], dim=1)
        contrastive, caption = loss(image, text, torch.stack([3.0 * image, text], dim=1), labels, scale)
        return contrastive + caption + 0.0 * bias

    return call


def taught(loss: Any) -> Any:
    """The sum of the losses of a student, whose teacher is narrower and goes by the rows."""

    def call(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        teacher = [nn.functional.normalize(one.detach()[:, 2:] ** 2, dim=1) for one in (image, text)]
        contrastive, distill = loss(image, text, scale, *teacher, 9.0)
        return contrastive + 0.3 * distill + 0.0 * bias

    return call


WITH_MORE = {"CoCaLoss": captioned, "DistillClipLoss": taught}


def trained(
    group: Any, library: str, name: str, ours: bool, options: dict[str, Any], steps: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The losses of some steps of SGD, the first step's gradients after averaging, and the weights at the end."""
    warnings.simplefilter("ignore")
    encoder = DistributedDataParallel(Encoder(), process_group=group)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    loss_of = criterion(library, name, ours, options, group)
    losses, first = [], []
    for step in range(steps):
        whole = rows(ROWS * dist.get_world_size(group), 7, seed=step)
        own = whole[ROWS * dist.get_rank(group) :][:ROWS]
        loss = loss_of(*encoder(own))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if not step:
            first = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in encoder.parameters()]
        optimizer.step()
    return torch.stack(losses), first, [one.detach() for one in encoder.parameters()]


def unequal(group: Any) -> str:
    """What a rank is told whose rows are more or fewer than those of the others."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    mine = rows(ROWS + rank, 6, dtype=torch.float32)
    loss = open_clip.DistillClipLoss(rank=rank, world_size=world)
    try:
        loss(mine, mine, 5.0, mine, mine, 5.0)
    except ValueError as error:
        return str(error)
    return ""


def banks(group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The bank of a rank after two steps, where it begins, and the last loss."""
    torch.manual_seed(7)
    loss = lightly.NTXentLoss(memory_bank_size=(30, 6), gather_distributed=True)
    value = torch.zeros(())
    for step in range(2):
        x, y = (rows(ROWS, 6, dtype=torch.float32, seed=10 * step + 2 * dist.get_rank(group) + k) for k in (0, 1))
        value = loss(x.requires_grad_(), y)
    return loss.memory_bank.bank, loss.memory_bank.bank_ptr, value.detach()
