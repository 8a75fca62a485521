"""The objectives L_multi_1 and L_multi_2: a contrastive loss plus α times masked language modelling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

import ctloss

from .encoder import CCEEncoder, learnable_temperature

IGNORED = -100
# Below this φ, 1 - softmax rounds to 0 in float32: infoNCE computed that way would lose these rows' gradients.
SATURATED = math.log(6e-8)
FORCES = ("pull", "push")
# Sides go through the encoder together if that adds at most this share of padding to what they need apart: one call
# of twice the rows does not wait for the start of as many kernels.
SHARED_PADDING = 0.05


class Level(NamedTuple):
    """Vectors of both sides that are contrasted, (n, d), and the ids of the pairs, (n,) or None."""

    x: Tensor
    y: Tensor
    ids: Tensor | None


class Objective(nn.Module):
    """An encoder with its training loss, Chen et al. 2022, eq. (3) with infoNCE and eq. (7) with CZ-NCE:

        L = L_contrastive + α · L_MLM,

    where L_contrastive is the batch mean, eq. (2), over the CCE vectors of clean text, in float32 under any autocast
    (the mean of two such losses, one per level, if the encoder keeps its levels apart), and L_MLM is the mean of both
    languages' cross-entropies over the masked copies. Logits are computed only at the masked positions, and with α = 0
    the masked copies are not read. ``loss`` is ``"cz_nce"`` or ``"info_nce"``; see :func:`ctloss.cz_nce` for
    ``negatives``. The sides of a batch are encoded apart, each with its own length, unless these are about the same.
    Processes find different lengths. Where they share the weights out, every call of the encoder is one of all of them:
    set ``stack_sides=False``, and the number of calls depends on no lengths.

    With ``learn_temperature`` the temperature is a parameter that starts from ``temperature`` and is kept and saved by
    the encoder; see :func:`decays` for weight decay.

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
        learn_temperature: bool = False,
        stack_sides: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        if learn_temperature and encoder.temperature is None:
            encoder.temperature = learnable_temperature(temperature)
        self.loss = loss
        self.temperature = temperature
        self.negatives = negatives
        self.alpha = alpha
        self.group = group
        self.stack_sides = stack_sides
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
        word_ids: Tensor | None = None,
        forces: bool = False,
    ) -> dict[str, Tensor]:
        """Computes the objective of one batch of n pairs.

        Args:
            source_ids, target_ids: wordpieces, (n, length), each side with its own length.
            source_mask, target_mask: 1 at tokens and 0 at padding.
            source_span, target_span: the words' positions, (n, 2), end exclusive; not needed at the sentence level.
            source_masked_ids, target_masked_ids: copies with masked wordpieces; needed with α > 0.
            source_labels, target_labels: the wordpieces to predict, -100 elsewhere; needed with α > 0.
            word_ids: (n,) integers: pairs whose ids are equal, on whichever processes, are no negatives of each other
                where words are contrasted, joined with sentences or apart from them; sentences always are.
            forces: whether to measure ``pull`` and ``push`` too, which costs one more pass through the loss.

        Returns:
            Float32 scalars: ``loss``, and detached ``contrastive``, ``mlm`` (with α > 0), ``z_mean``, ``z_min``,
            ``saturated``, the share of rows with φ = exp(z) < 6e-8, and ``temperature`` if it is learnt. These leave
            out rows without negatives; of no rows they are 0, infinity and 0. On request
            ``pull`` and ``push``, see :func:`pull_and_push`, averaged over the levels if they are apart. With a group
            all but ``pull``, ``push`` and the temperature are of this process's rows.
        """
        pad = self.encoder.backbone.config.pad_token_id
        masks = source_mask, target_mask
        x, y = self._sides(self.encoder, (pad, source_ids, target_ids), (0, *masks), (0, source_span, target_span))
        levels = self._levels(x, y, word_ids)
        rows = [self._rows(*level) for level in levels]
        loss = contrastive = torch.cat(rows).mean()
        measured = {"contrastive": contrastive.detach(), **self._margins(rows, levels)}
        temperature = self._temperature()
        if isinstance(temperature, Tensor):
            measured["temperature"] = temperature.detach()
        if forces:
            measured |= self._forces(levels)
        if self.alpha > 0:
            if source_masked_ids is None or target_masked_ids is None or source_labels is None or target_labels is None:
                raise ValueError(
                    "expected masked copies and labels of both sides with alpha above 0, got a batch without; make the "
                    "collator with mlm_probability above 0, or set alpha to 0"
                )
            mlm = self._mlm((source_masked_ids, target_masked_ids), masks, (source_labels, target_labels))
            loss = contrastive + self.alpha * mlm
            measured["mlm"] = mlm.detach()
        return {"loss": loss, **measured}

    def activation_checkpointing_enable(self, **chosen: Any) -> None:
        """Makes the backward pass compute the encoder's layers again; called by Trainer, with transformers' options."""
        self.encoder.backbone.activation_checkpointing_enable(**chosen)

    def gradient_checkpointing_enable(self, **chosen: Any) -> None:
        """Does the same for versions of transformers that call it so."""
        self.encoder.backbone.gradient_checkpointing_enable(**chosen)

    def _temperature(self) -> float | Tensor:
        learnt = self.encoder.temperature
        return self.temperature if learnt is None else learnt()

    def _levels(self, x: Tensor, y: Tensor, word_ids: Tensor | None) -> list[Level]:
        """What is contrasted: the vectors of both sides and the ids of the pairs, at each level."""
        if x.dim() == 2:
            return [Level(x, y, None if self.encoder.levels == "sentence" else word_ids)]
        return [Level(x[:, 0], y[:, 0], None), Level(x[:, 1], y[:, 1], word_ids)]

    def _rows(self, x: Tensor, y: Tensor, ids: Tensor | None) -> Tensor:
        function = ctloss.cz_nce if self.loss == "cz_nce" else ctloss.info_nce
        with torch.autocast(x.device.type, enabled=False):
            return function(
                x,
                y,
                temperature=self._temperature(),
                ids=ids,
                negatives=self.negatives,
                reduction="none",
                **_shared(self.group),
            )

    def _margins(self, losses: list[Tensor], levels: list[Level]) -> dict[str, Tensor]:
        rows = torch.cat(losses).detach()
        # Equal ids are everybody's, so that a level's rows have negatives all together or not at all.
        counted = torch.cat([_have_negatives(*each) for each in zip(losses, levels, strict=True)])
        # infoNCE's rows are softplus(z); this form of its inverse overflows at neither end.
        if self.loss == "cz_nce":
            z = rows
        else:
            rows = rows.clamp_min(torch.finfo(rows.dtype).tiny)
            z = rows + torch.log(-torch.expm1(-rows))
        number = counted.sum().clamp_min(1)
        return {
            "z_mean": torch.where(counted, z, 0).sum() / number,
            "z_min": torch.where(counted, z, torch.inf).min(),
            "saturated": (counted & (z < SATURATED)).sum() / number,
        }

    def _forces(self, levels: list[Level]) -> dict[str, Tensor]:
        temperature = self._temperature()
        with torch.autocast(levels[0].x.device.type, enabled=False):
            found = [
                pull_and_push(
                    level.x,
                    level.y,
                    ids=level.ids,
                    loss=self.loss,
                    temperature=temperature.detach() if isinstance(temperature, Tensor) else temperature,
                    negatives=self.negatives,
                    group=self.group,
                )
                for level in levels
            ]
        return {name: torch.stack(norms).mean() for name, norms in zip(FORCES, zip(*found, strict=True), strict=True)}

    def _mlm(self, ids: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor]) -> Tensor:
        pad = self.encoder.backbone.config.pad_token_id
        counts = torch.stack([(side != IGNORED).sum() for side in labels])
        if self.group is not None:
            # Processes have masked different numbers of wordpieces: each takes its part of the mean over all of them.
            counts = _summed(counts, self.group) / _processes(self.group)
        entropies = self._sides(self._mlm_of_rows, (pad, *ids), (0, *masks), (IGNORED, *labels))
        sums = torch.stack([side.sum() for side in entropies])
        # A side without masked wordpieces has nothing to predict: 0 with a gradient of 0 instead of NaN.
        return (sums / torch.where(counts > 0, counts, 1)).mean()

    def _mlm_of_rows(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies of each row, (rows,)."""
        _, states = self.encoder.first_and_last(ids, mask)
        chosen = labels != IGNORED
        logits = self.encoder.mlm_logits(states[chosen])
        losses = functional.cross_entropy(logits.float(), labels[chosen], reduction="none")
        return losses.new_zeros(len(ids)).index_add(0, chosen.nonzero()[:, 0], losses)

    def _sides(self, function: Callable[..., Tensor], *given: tuple[int, Tensor | None, Tensor | None]) -> list[Tensor]:
        """What a function makes of the sentences of both sides, each given with what fills up a shorter side."""
        sides = [tensors for _, *tensors in given]
        source, target = (side.shape[1] for side in sides[0] if side is not None)
        if self.stack_sides and 2 * max(source, target) <= (1 + SHARED_PADDING) * (source + target):
            return list(self._by_rows(function, *(_stack(*one) for one in given)).chunk(2))
        return [self._by_rows(function, *side) for side in zip(*sides, strict=True)]

    def _by_rows(self, function: Callable[..., Tensor], *rows: Tensor | None) -> Tensor:
        """What a function makes of sentences, each of them on its own: of all at once, or part by part."""
        if self.cache is None:
            return function(*rows)
        return self.cache(lambda part: function(*part), rows)  # type: ignore[no-any-return]


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter of an objective that it would otherwise apply to.

    It does not to the temperature, which it would draw towards 1: the parameter is its logarithm.

    Example:
        >>> decays("encoder.head.0.weight"), decays("encoder.temperature.log_temperature")
        (True, False)
    """
    return not name.endswith("log_temperature")


def pull_and_push(
    x: Tensor,
    y: Tensor,
    *,
    loss: str,
    temperature: float | Tensor,
    ids: Tensor | None = None,
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
        ids: (n,) integers: pairs whose ids are equal are no negatives of each other.

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
            ids=ids,
            negatives=negatives,
            normalize=False,
            reduction="none",
            **_shared(group),
        )
        gradients = torch.autograd.grad(rows.mean() / processes, (first, second))
    # infoNCE's rows are softplus(z), and sigmoid(z) = 1 - exp(-softplus(z)).
    # A row whose pair has everybody's id has no negatives: loss and gradient are 0.
    weights = (rows != 0).to(rows.dtype) if loss == "cz_nce" else -torch.expm1(-rows.detach())
    shared = weights.view(2, -1).sum(dim=0).unsqueeze(1) / (processes * len(rows) * temperature)
    pulls = torch.cat([shared * second.detach(), shared * first.detach()])
    norms = torch.stack([pulls.norm(), (torch.cat(gradients) + pulls).norm()])
    if group is not None:
        norms = _summed(norms.square(), group).sqrt()
    pull, push = norms.unbind()
    return pull, push


def _have_negatives(losses: Tensor, level: Level) -> Tensor:
    """Whether each row of a level has negatives, (rows,); all have the same answer.

    Without a look at other processes: their ids matter only if all of this one's are equal, and then a row that has
    negatives there has a loss other than 0.
    """
    if level.ids is None:
        return torch.ones_like(losses, dtype=torch.bool)
    return ((level.ids != level.ids[0]).any() | (losses.detach() != 0).any()).expand(len(losses))


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


def _stack(fill: int, source: Tensor | None, target: Tensor | None) -> Tensor | None:
    if source is None or target is None:
        return None
    length = max(source.shape[1], target.shape[1])
    return torch.cat([functional.pad(side, (0, length - side.shape[1]), value=fill) for side in (source, target)])
