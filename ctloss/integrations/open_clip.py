"""open_clip's contrastive losses: ``from ctloss.integrations.open_clip import ClipLoss`` instead of ``open_clip``.

Names, arguments and values are theirs; open_clip itself is not needed. Rows are taken as they come, as in open_clip,
whose models normalise them. Over several ranks the gradient is always that of one process with the whole batch.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..losses import info_nce
from ..sig_lip import sig_lip
from .distillation import SCALE, beyond_positives, checked_teacher
from .numbers import one_element, positive, widened
from .overrides import Uncalled
from .processes import mean_over_ranks, world

Outputs = Tensor | dict[str, Tensor]
IMPLEMENTATIONS = (None, "bidir", "shift", "reduce", "gather")


class _AcrossRanks(Uncalled, nn.Module):
    """Which ranks take part."""

    uncalled: tuple[str, ...] = ("get_logits", "get_ground_truth")
    library = "open_clip"

    def __init__(self, cache_labels: bool, rank: int, world_size: int) -> None:
        super().__init__()
        for name, value in (("rank", rank), ("world_size", world_size)):
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name}: expected an integer, got {value!r}; pass that of torchrun as int()")
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to world_size - 1, got {rank} of {world_size}; pass those of torchrun")
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size

    def group(self) -> str | None:
        """The ranks, if there are several.

        Raises:
            RuntimeError: where the process group is not that of the constructor.
        """
        if self.world_size == 1:
            return None
        if world() != self.world_size:
            raise RuntimeError(
                f"world_size: expected the {self.world_size} ranks given, got a process group of {world()}; call "
                "torch.distributed.init_process_group before the loss, or leave out world_size in a single process"
            )
        if dist.get_rank() != self.rank:
            raise RuntimeError(f"rank: expected {dist.get_rank()}, this process' own, got {self.rank}; pass that")
        return "world"


class ClipLoss(_AcrossRanks):
    r"""CLIP's loss (arXiv 2103.00020): :func:`ctloss.info_nce` with ``negatives="cross"`` and τ = 1 / logit_scale.

    Args:
        local_loss: over several ranks, return this rank's part of the loss instead of the whole batch's. The gradient
            is the same; each rank does its own part of the work either way.
        gather_with_grad: accepted; rows of other ranks always have their gradient. Without it open_clip's gradient is
            too small by the number of ranks, and with ``local_loss`` alone it points elsewhere.
        cache_labels: accepted; there are no labels.
        rank: this process' place among the ranks.
        world_size: how many ranks there are; with more than 1, negatives are those of all.
        use_horovod: refused.

    Raises:
        TypeError, ValueError: for a rank outside the ranks, or with ``use_horovod``.

    Example:
        >>> rows = torch.eye(2)
        >>> ClipLoss()(rows, rows, torch.tensor(2.0), output_dict=True)
        {'contrastive_loss': tensor(0.1269)}
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__(cache_labels, rank, world_size)
        if use_horovod:
            raise ValueError(
                "use_horovod: expected False, got True; start the processes with torchrun, whose ranks talk by "
                "torch.distributed"
            )
        self.local_loss, self.gather_with_grad, self.use_horovod = local_loss, gather_with_grad, use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Outputs:
        """The loss of images and texts, ``(n, d)`` each.

        Args:
            image_features: normalised rows.
            text_features: normalised rows.
            logit_scale: what dot products are multiplied by, positive; a tensor of one element receives a gradient.
            logit_bias: accepted; in a softmax it cancels, so its gradient is 0.
            output_dict: return ``{"contrastive_loss": loss}``.
        """
        group = self.group()
        loss = info_nce(
            image_features,
            text_features,
            temperature=_temperature(logit_scale),
            normalize=False,
            negatives="cross",
            group=group,
        )
        if group is not None and not self.local_loss:
            loss = mean_over_ranks(loss)
        if isinstance(logit_bias, Tensor) and logit_bias.requires_grad:
            # A parameter that takes no part in the loss would make DistributedDataParallel wait for it.
            loss = loss + 0.0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss


class CoCaLoss(ClipLoss):
    r"""CoCa's two losses (arXiv 2205.01917): :class:`ClipLoss`, and the cross-entropy of the captions, as PyTorch's.

    Args:
        caption_loss_weight: what the captions' loss is multiplied by.
        clip_loss_weight: what CLIP's loss is multiplied by; 0 leaves it out.
        pad_id: the label of the captions that is not counted.
        local_loss: as for :class:`ClipLoss`; so are all that follow.
        gather_with_grad: accepted.
        cache_labels: accepted.
        rank: this process' place among the ranks.
        world_size: how many ranks there are; captions are each rank's own.
        use_horovod: refused.

    Raises:
        ValueError: as :class:`ClipLoss`.

    Example:
        >>> rows, words = torch.eye(2), torch.zeros(2, 3, 5)
        >>> CoCaLoss(2.0, 1.0)(rows, rows, words, torch.ones(2, 3, dtype=torch.long), torch.tensor(2.0))
        (tensor(0.1269), tensor(3.2189))
    """

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        pad_id: int = 0,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod)
        self.clip_loss_weight, self.caption_loss_weight = clip_loss_weight, caption_loss_weight
        self.caption_loss = nn.CrossEntropyLoss(ignore_index=pad_id)

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Both losses of images and texts, ``(n, d)`` each.

        Args:
            image_features: normalised rows.
            text_features: normalised rows.
            logits: the captions', ``(n, words, vocabulary)``.
            labels: their words, ``(n, words)``.
            logit_scale: as for :class:`ClipLoss`.
            output_dict: return ``{"contrastive_loss": loss, "caption_loss": loss}``.
        """
        contrastive = torch.zeros((), device=logits.device)
        if self.clip_loss_weight:
            found = super().forward(image_features, text_features, logit_scale)
            assert isinstance(found, Tensor)
            contrastive = self.clip_loss_weight * found
        caption = self.caption_loss_weight * self.caption_loss(logits.permute(0, 2, 1), labels)
        return {"contrastive_loss": contrastive, "caption_loss": caption} if output_dict else (contrastive, caption)


class DistillClipLoss(ClipLoss):
    r"""CLIP's loss, and the cross-entropy of the student's probabilities with those of a teacher.

    With P the teacher's softmax, the second loss of a row is lse_i − Σ_j P_ij s_ij, and the first lse_i − s_ii. They
    differ by what is linear in the logits: a product of each row with a mean of the others, which P makes, formed a
    panel of rows at a time. No matrix is kept. Arguments are those of :class:`ClipLoss`. Several ranks must bring as
    many rows each; these and the teacher's are gathered.

    Raises:
        TypeError, ValueError: as :class:`ClipLoss`; in a call, for a teacher's rows or scale that do not fit the
            student's, or require a gradient.

    Example:
        >>> rows, scale = torch.eye(2), torch.tensor(2.0)
        >>> contrastive, distill = DistillClipLoss()(rows, rows, scale, rows, rows, scale)
        >>> contrastive, distill
        (tensor(0.1269), tensor(0.3653))
    """

    uncalled = (*_AcrossRanks.uncalled, "dist_loss")

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Both losses of images and texts, ``(n, d)`` each, beside the teacher's, ``(n, e)``, which get no gradient."""
        teacher = checked_teacher(image_features, dist_image_features, dist_text_features, dist_logit_scale)
        tau, group = _temperature(logit_scale), self.group()
        contrastive = info_nce(
            image_features, text_features, temperature=tau, normalize=False, negatives="cross", group=group
        )
        beyond = beyond_positives(image_features, text_features, *teacher, across=group is not None)
        distill = contrastive - beyond / tau
        if group is not None and not self.local_loss:
            contrastive, distill = mean_over_ranks(contrastive), mean_over_ranks(distill)
        return {"contrastive_loss": contrastive, "distill_loss": distill} if output_dict else (contrastive, distill)


class SigLipLoss(_AcrossRanks):
    r"""SigLIP's loss (arXiv 2303.15343): :func:`ctloss.sig_lip` with τ = 1 / logit_scale.

    Args:
        cache_labels: accepted; there are no labels.
        rank: this process' place among the ranks.
        world_size: how many ranks there are; with more than 1, images are compared with the texts of all. The loss is
            that of this rank's images, as in open_clip.
        dist_impl: accepted: open_clip's four ways to exchange rows give one result. Rows travel round a ring, or are
            gathered where they are few.

    Raises:
        ValueError: for a rank outside the ranks, or another ``dist_impl``.

    Example:
        >>> rows = torch.eye(2)
        >>> SigLipLoss()(rows, rows, 1.0, -1.0)
        tensor(1.0064)
    """

    uncalled = (*_AcrossRanks.uncalled, "_loss")

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__(cache_labels, rank, world_size)
        if dist_impl not in IMPLEMENTATIONS:
            names = ", ".join(repr(name) for name in IMPLEMENTATIONS)
            raise ValueError(f"dist_impl: expected one of {names}, got {dist_impl!r}; all give one result")
        self.dist_impl = dist_impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Outputs:
        """The loss of images and texts, ``(n, d)`` each.

        Args:
            image_features: normalised rows.
            text_features: normalised rows.
            logit_scale: what dot products are multiplied by, positive; a tensor of one element receives a gradient.
            logit_bias: what is added to the logits; a tensor of one element receives a gradient.
            output_dict: return ``{"contrastive_loss": loss}``.
        """
        loss = sig_lip(
            image_features,
            text_features,
            temperature=_temperature(logit_scale),
            bias=0.0 if logit_bias is None else logit_bias,
            normalize=False,
            group=self.group(),
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _temperature(scale: float | Tensor) -> Any:
    """τ, differentiable where the scale is."""
    if isinstance(scale, Tensor):
        one_element("logit_scale", scale, SCALE)
        return widened(scale).reciprocal()
    return 1 / positive("logit_scale", scale, SCALE)
