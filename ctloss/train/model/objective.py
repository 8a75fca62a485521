"""The objectives L_multi_1 and L_multi_2: a contrastive loss plus α times masked language modelling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

import ctloss

from .encoder import CCEEncoder

# Below this φ, 1 - softmax rounds to 0 in float32: infoNCE computed that way would lose these rows' gradients.
SATURATED = math.log(6e-8)
FORCES = ("pull", "push")


class Objective(nn.Module):
    """An encoder with its training loss, Chen et al. 2022, eq. (3) with infoNCE and eq. (7) with CZ-NCE:

        L = L_contrastive + α · L_MLM,

    where L_contrastive is the batch mean, eq. (2), over the CCE vectors of clean text, in float32 under any autocast
    (the mean of two such losses, one per level, if the encoder keeps its levels apart), and L_MLM is the mean of both
    languages' cross-entropies over the masked copies. Logits are computed only at the masked positions, and with α = 0
    the masked copies are not read. ``loss`` is ``"cz_nce"`` or ``"info_nce"``; see :func:`ctloss.cz_nce` for
    ``negatives``.

    With a ``group`` of processes (``"world"`` for all) each gives its own pairs, as many as the others, and both terms
    are parts of the loss of one process with all pairs: the mean over processes of what they return, and of its
    gradient, is that loss and its gradient.

    With ``gradient_cache`` the encoder sees the sentences of that many pairs at a time and keeps only their vectors;
    the backward pass encodes them again, with the same dropout. Loss and gradient are those of the same parts encoded
    once.
    """

    # Read by Trainer: the loss is a mean over the batch and takes no token counts.
    accepts_loss_kwargs = False

    def __init__(
        self,
        encoder: CCEEncoder,
        *,
        loss: str,
        temperature: float,
        negatives: Literal["both", "cross"] = "both",
        alpha: float = 0.0,
        group: Any = None,
        gradient_cache: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss
        self.temperature = temperature
        self.negatives = negatives
        self.alpha = alpha
        self.group = group
        # A pair is two sentences.
        self.cache = None if gradient_cache is None else ctloss.GradientCache(2 * gradient_cache)

    def forward(
        self,
        source_ids: Tensor,
        source_mask: Tensor,
        target_ids: Tensor,
        target_mask: Tensor,
        source_span: Tensor | None = None,
        target_span: Tensor | None = None,
        source_masked_ids: Tensor | None = None,
        target_masked_ids: Tensor | None = None,
        source_labels: Tensor | None = None,
        target_labels: Tensor | None = None,
        forces: bool = False,
    ) -> dict[str, Tensor]:
        """Computes the objective of one batch of n pairs.

        Args:
            source_ids, target_ids: wordpieces, (n, length), each side with its own length.
            source_mask, target_mask: 1 at tokens and 0 at padding.
            source_span, target_span: the words' positions, (n, 2), end exclusive; not needed at the sentence level.
            source_masked_ids, target_masked_ids: copies with masked wordpieces; needed with α > 0.
            source_labels, target_labels: the wordpieces to predict, -100 elsewhere; needed with α > 0.
            forces: whether to measure ``pull`` and ``push`` too, which costs one more pass through the loss.

        Returns:
            Float32 scalars: ``loss``, and detached ``contrastive``, ``mlm`` (with α > 0), ``z_mean``, ``z_min`` and
            ``saturated``, the share of rows with φ = exp(z) < 6e-8; on request ``pull`` and ``push``, see
            :func:`pull_and_push`, averaged over the levels if they are apart. With a group all but ``pull`` and
            ``push`` are of this process's rows.
        """
        pad = self.encoder.backbone.config.pad_token_id
        ids, mask = _stack(source_ids, target_ids, pad), _stack(source_mask, target_mask, 0)
        spans = None if source_span is None or target_span is None else torch.cat([source_span, target_span])
        x, y = self._by_rows(self.encoder, ids, mask, spans).chunk(2)
        rows = torch.cat([self._rows(*level) for level in _levels(x, y)])
        loss = contrastive = rows.mean()
        measured = {"contrastive": contrastive.detach(), **self._margins(rows.detach())}
        if forces:
            measured |= self._forces(x, y)
        if self.alpha > 0:
            if source_masked_ids is None or target_masked_ids is None or source_labels is None or target_labels is None:
                raise ValueError(
                    "expected masked copies and labels of both sides with alpha above 0, got a batch without; make the "
                    "collator with mlm_probability above 0, or set alpha to 0"
                )
            masked = _stack(source_masked_ids, target_masked_ids, pad)
            mlm = self._mlm(masked, mask, _stack(source_labels, target_labels, -100))
            loss = contrastive + self.alpha * mlm
            measured["mlm"] = mlm.detach()
        return {"loss": loss, **measured}

    def activation_checkpointing_enable(self, **chosen: Any) -> None:
        """Makes the backward pass compute the encoder's layers again; called by Trainer, with transformers' options."""
        self.encoder.backbone.activation_checkpointing_enable(**chosen)

    def gradient_checkpointing_enable(self, **chosen: Any) -> None:
        """Does the same for versions of transformers that call it so."""
        self.encoder.backbone.gradient_checkpointing_enable(**chosen)

    def _rows(self, x: Tensor, y: Tensor) -> Tensor:
        function = ctloss.cz_nce if self.loss == "cz_nce" else ctloss.info_nce
        with torch.autocast(x.device.type, enabled=False):
            return function(
                x,
                y,
                temperature=self.temperature,
                negatives=self.negatives,
                reduction="none",
                **_shared(self.group),
            )

    def _margins(self, rows: Tensor) -> dict[str, Tensor]:
        # infoNCE's rows are softplus(z); this form of its inverse overflows at neither end.
        if self.loss == "cz_nce":
            z = rows
        else:
            rows = rows.clamp_min(torch.finfo(rows.dtype).tiny)
            z = rows + torch.log(-torch.expm1(-rows))
        return {"z_mean": z.mean(), "z_min": z.min(), "saturated": (z < SATURATED).float().mean()}

    def _forces(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            found = [
                pull_and_push(
                    *level,
                    loss=self.loss,
                    temperature=self.temperature,
                    negatives=self.negatives,
                    group=self.group,
                )
                for level in _levels(x, y)
            ]
        return {name: torch.stack(norms).mean() for name, norms in zip(FORCES, zip(*found, strict=True), strict=True)}

    def _mlm(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        counts = (labels != -100).view(2, -1).sum(dim=1)
        if self.group is not None:
            # Processes have masked different numbers of wordpieces: each takes its part of the mean over all of them.
            counts = _summed(counts, self.group) / _processes(self.group)
        sums = self._by_rows(self._mlm_of_rows, ids, mask, labels).view(2, -1).sum(dim=1)
        # A side without masked wordpieces has nothing to predict: 0 with a gradient of 0 instead of NaN.
        return (sums / torch.where(counts > 0, counts, 1)).mean()

    def _mlm_of_rows(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies of each row, (rows,)."""
        _, states = self.encoder.first_and_last(ids, mask)
        chosen = labels != -100
        logits = self.encoder.mlm_logits(states[chosen])
        losses = functional.cross_entropy(logits.float(), labels[chosen], reduction="none")
        return losses.new_zeros(len(ids)).index_add(0, chosen.nonzero()[:, 0], losses)

    def _by_rows(self, function: Callable[..., Tensor], *rows: Tensor | None) -> Tensor:
        """What a function makes of sentences, each of them on its own: of all at once, or part by part."""
        if self.cache is None:
            return function(*rows)
        return self.cache(lambda part: function(*part), rows)  # type: ignore[no-any-return]


def pull_and_push(
    x: Tensor,
    y: Tensor,
    *,
    loss: str,
    temperature: float,
    negatives: Literal["both", "cross"] = "both",
    group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Norms of the two parts of the gradient: what pulls positives together and what pushes negatives apart.

    With unit rows u_i, N = 2n of them, and a row's weight w_i = 1 (CZ-NCE) or sigmoid(z_i) (infoNCE), the gradient of
    Chen et al. 2022, eq. (2), before it is taken through the cosine, is

        dL/du_i = push_i - pull_i,   pull_i = (w_i + w_p(i)) u_p(i) / (Nτ),   push_i = Σ_j W_ij u_j / (Nτ).

    Args:
        x, y: (n, d), not normalised.
        loss, temperature, negatives, group: as in :class:`Objective`.

    Returns:
        The norms of all pulls and of all pushes, those of all processes with a group: scalars without gradient.
    """
    processes = _processes(group)
    with torch.enable_grad():
        first, second = (functional.normalize(side.detach(), dim=1).requires_grad_() for side in (x, y))
        function = ctloss.cz_nce if loss == "cz_nce" else ctloss.info_nce
        rows = function(
            first,
            second,
            temperature=temperature,
            negatives=negatives,
            normalize=False,
            reduction="none",
            **_shared(group),
        )
        gradients = torch.autograd.grad(rows.mean() / processes, (first, second))
    # infoNCE's rows are softplus(z), and sigmoid(z) = 1 - exp(-softplus(z)).
    weights = torch.ones_like(rows) if loss == "cz_nce" else -torch.expm1(-rows.detach())
    shared = weights.view(2, -1).sum(dim=0).unsqueeze(1) / (processes * len(rows) * temperature)
    pulls = torch.cat([shared * second.detach(), shared * first.detach()])
    norms = torch.stack([pulls.norm(), (torch.cat(gradients) + pulls).norm()])
    if group is not None:
        norms = _summed(norms.square(), group).sqrt()
    pull, push = norms.unbind()
    return pull, push


def _processes(group: Any) -> int:
    return distributed.get_world_size(_process_group(group)) if group is not None else 1


def _summed(values: Tensor, group: Any) -> Tensor:
    distributed.all_reduce(values, group=_process_group(group))
    return values


def _process_group(group: Any) -> Any:
    return None if group == "world" else group


def _shared(group: Any) -> dict[str, Any]:
    # Every process has as many pairs at every step.
    return {"group": group, "even": True} if group is not None else {}


def _levels(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, y)] if x.dim() == 2 else list(zip(x.unbind(dim=1), y.unbind(dim=1), strict=True))


def _stack(source: Tensor, target: Tensor, fill: int) -> Tensor:
    length = max(source.shape[1], target.shape[1])
    return torch.cat([functional.pad(side, (0, length - side.shape[1]), value=fill) for side in (source, target)])
