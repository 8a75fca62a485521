"""pytorch-metric-learning's NT-Xent and SupCon losses, to import instead of its own.

    from ctloss.integrations.pytorch_metric_learning import NTXentLoss

They are the library's classes with another ``compute_loss``: reducers, regularizers, statistics, miners and the
wrappers around losses work on them as before. What the library computes from lists of pairs, with memory that grows
with their product, comes from :func:`ctloss.info_nce`, :func:`ctloss.contrast` and :func:`ctloss.sup_con` where all
pairs of a batch take part, and otherwise from one matrix of logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..losses import contrast, info_nce
from ..objectives.formula import softplus
from ..sup_con import sup_con
from .numbers import positive, widened
from .overrides import Uncalled

try:
    from pytorch_metric_learning import losses as theirs
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer
    from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_pairs
except ImportError as missing:
    raise ImportError(
        "ctloss.integrations.pytorch_metric_learning: expected pytorch-metric-learning, got an environment without it "
        f"({missing}); pip install pytorch-metric-learning"
    ) from missing

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]
PAIRS_PER_ROW = 8
"""Positives of a row, on average, up to which their logits are formed one by one."""


class _Cosines(Uncalled):
    """Checks what both losses are made with."""

    entry = "compute_loss"
    temperature: float
    distance: Any

    def check(self) -> None:
        """Refuse distances that are no dot products, and temperatures that are not positive.

        Raises:
            TypeError, ValueError: for those.
        """
        if not isinstance(self.distance, DotProductSimilarity) or self.distance.power != 1 or self.distance.p != 2:
            raise TypeError(
                "distance: expected CosineSimilarity() or DotProductSimilarity(), with p=2 and power=1, got "
                f"{self.distance}; take pytorch_metric_learning.losses for another"
            )
        tau: Any = self.temperature
        positive("temperature", tau.item() if isinstance(tau, Tensor) else tau, "0.07 is usual")

    @staticmethod
    def checked_labels(
        labels: Tensor | None, ref_labels: Tensor | None, indices_tuple: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both labels as integers; refuses a call without labels or pairs, and labels that are fractions.

        Raises:
            TypeError, ValueError: for those.
        """
        if labels is None and indices_tuple is None:
            raise ValueError("labels: expected one for each row, or an indices_tuple, got neither; pass one of them")
        if labels is not None and labels.is_floating_point():
            raise TypeError(f"labels: expected integers, got {labels.dtype}; pass labels.long()")
        own, others = (
            given.long() if given is not None and given.dtype == torch.bool else given for given in (labels, ref_labels)
        )
        # The library tells by identity whether references are the rows themselves.
        return own, own if ref_labels is labels else others

    @property
    def cosines(self) -> bool:
        """Whether rows are normalised."""
        return bool(self.distance.normalize_embeddings)

    def logits(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The matrix of logits, in float32 or better."""
        sides = [widened(side) for side in (embeddings, ref_emb)]
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.cosines:
                sides = [torch.nn.functional.normalize(side, dim=1) for side in sides]
            return sides[0] @ sides[1].T / self.temperature


class NTXentLoss(_Cosines, theirs.NTXentLoss):
    r"""NT-Xent over labels: for each pair of one label, infoNCE with the rows of other labels as negatives.

    .. math:: L_{ap} = \mathrm{softplus}\Big(\log \sum_{n : \ell_n \ne \ell_a} e^{s_{an}} - s_{ap}\Big)

    Source: arXiv 1807.03748, as pytorch-metric-learning extends it to labels: the mean over all pairs (a, p). With two
    rows a label it is :func:`ctloss.info_nce`.

    Args:
        temperature: τ > 0.
        options: ``distance`` (cosines or dot products), ``reducer``, ``embedding_regularizer`` and what else the
            library's class takes.

    Raises:
        TypeError, ValueError: for another distance, or a temperature that is not positive.

    Example:
        >>> NTXentLoss(temperature=0.5)(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]))
        tensor(0.2395)
    """

    uncalled = ("_compute_loss", "mat_based_loss", "pair_based_loss")
    library = "pytorch_metric_learning.losses"

    def __init__(self, temperature: float = 0.07, **options: Any) -> None:
        super().__init__(temperature=temperature, **options)
        self.check()

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> dict[str, Any]:
        """What the library's reducers take; see its documentation."""
        labels, ref_labels = self.checked_labels(labels, ref_labels, indices_tuple)
        if indices_tuple is None and labels is not None and ref_labels is not None:
            if ref_emb is embeddings:
                sides = _two_a_label(labels)
                if sides is not None and type(self.reducer) is MeanReducer:
                    x, y = (embeddings[side] for side in sides)
                    return _reduced(info_nce(x, y, temperature=self.temperature, normalize=self.cosines))
                pairs = _positives(labels)
                if len(pairs[0]) and len(pairs[0]) <= PAIRS_PER_ROW * len(labels) and bool((labels != labels[0]).any()):
                    return _of_pairs(self._of_labels(embeddings, labels, *pairs), *pairs)
            elif _one_a_row(labels, ref_labels) and type(self.reducer) is MeanReducer:
                options: dict[str, Any] = {"negatives": "cross", "directions": "x", "normalize": self.cosines}
                return _reduced(info_nce(embeddings, ref_emb, temperature=self.temperature, **options))
        anchors, positives, others, negatives = convert_to_pairs(indices_tuple, labels, ref_labels)
        if not len(anchors) or not len(others):
            return self.zero_losses()
        logits = self.logits(embeddings, ref_emb)
        # A pair that is listed twice, as miners of triplets do, counts twice.
        once = torch.ones_like(logits[:1, 0])
        times = torch.zeros_like(logits).index_put_((others, negatives), once, accumulate=True)
        lse = _lse(logits + times.log(), times > 0)
        return _of_pairs(softplus(lse[anchors] - logits[anchors, positives]), anchors, positives)

    def _of_labels(self, embeddings: Tensor, labels: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        """The losses of pairs: z relative to a row's first positive, and what other positives differ from it by."""
        _, first = torch.unique_consecutive(anchors, return_inverse=True)
        starts = torch.ones_like(first, dtype=torch.bool)
        starts[1:] = first[1:] != first[:-1]
        own = anchors[starts]
        partner = torch.arange(len(labels), device=labels.device)
        partner[own] = positives[starts]
        c = contrast(
            embeddings,
            embeddings[partner],
            temperature=self.temperature,
            ids=labels,
            negatives="own",
            directions="x",
            normalize=self.cosines,
        )
        rest = ~starts
        losses = softplus(c.z[anchors].double())
        if bool(rest.any()):
            rows = torch.nn.functional.normalize(embeddings.double(), dim=1) if self.cosines else embeddings.double()
            a, p = anchors[rest], positives[rest]
            lower = (rows[a] * (rows[partner[a]] - rows[p])).sum(1) / self.temperature
            losses = losses.index_put((rest.nonzero()[:, 0],), softplus(c.z[a].double() + lower))
        return losses.to(c.z.dtype)


class SupConLoss(_Cosines, theirs.SupConLoss):
    r"""The supervised contrastive loss (arXiv 2004.11362, eq. 2): :func:`ctloss.sup_con` where all pairs take part.

    Args:
        temperature: τ > 0.
        options: as for :class:`NTXentLoss`.

    Raises:
        TypeError, ValueError: for another distance, or a temperature that is not positive.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
        >>> SupConLoss(temperature=0.5)(rows, torch.tensor([0, 0, 1, 1]))
        tensor(0.4302)
    """

    uncalled = ("_compute_loss", "mat_based_loss", "pair_based_loss")
    library = "pytorch_metric_learning.losses"

    def __init__(self, temperature: float = 0.1, **options: Any) -> None:
        super().__init__(temperature=temperature, **options)
        self.check()

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> dict[str, Any]:
        """What the library's reducers take; see its documentation."""
        labels, ref_labels = self.checked_labels(labels, ref_labels, indices_tuple)
        if indices_tuple is None and ref_emb is embeddings and labels is not None:
            if not bool((labels != labels[:1]).any()):
                return self.zero_losses()
            # The library's default leaves out rows without a loss: those without a positive.
            whole = type(self.reducer) is AvgNonZeroReducer
            found = sup_con(
                embeddings,
                labels,
                temperature=self.temperature,
                normalize=self.cosines,
                reduction="mean" if whole else "none",
            )
            return _reduced(found) if whole else _of_rows(found)
        anchors, positives, others, negatives = convert_to_pairs(indices_tuple, labels, ref_labels)
        if not len(anchors) or not len(others):
            return self.zero_losses()
        logits = self.logits(embeddings, ref_emb)
        attracts, repels = (torch.zeros_like(logits, dtype=torch.bool) for _ in range(2))
        attracts[anchors, positives], repels[others, negatives] = True, True
        if bool((attracts & repels).any()):
            raise ValueError(
                "indices_tuple: expected each pair to be positive or negative, got some that are both; check the miner"
            )
        count = attracts.sum(1)
        own = _lse(logits, attracts)
        mean = logits.masked_fill(~attracts, 0.0).sum(1) / count.clamp(min=1)
        losses = softplus(_lse(logits, repels) - own) + own - mean
        return _of_rows(losses.masked_fill(count == 0, 0.0))


def _lse(logits: Tensor, keep: Tensor) -> Tensor:
    """The log-sum-exp of some of a row's logits; where there are none, far below any, but finite for the gradient."""
    none = ~keep.any(1)
    kept = logits.masked_fill(~keep, -torch.inf).masked_fill(none[:, None], 0.0)
    return kept.logsumexp(1).masked_fill(none, -1e30)


def _two_a_label(labels: Tensor) -> tuple[Tensor | slice, Tensor | slice] | None:
    """The first and the second row of each label, if each has two."""
    half, odd = divmod(len(labels), 2)
    if odd or not half:
        return None
    in_order = labels.sort()
    first, second = in_order.values[::2], in_order.values[1::2]
    if not torch.equal(first, second) or bool((first[1:] == second[:-1]).any()):
        return None
    if torch.equal(labels[:half], labels[half:]):
        return slice(half), slice(half, None)
    return in_order.indices[::2], in_order.indices[1::2]


def _one_a_row(labels: Tensor, ref_labels: Tensor) -> bool:
    """Whether row i of the others is the only one of row i's label."""
    return torch.equal(labels, ref_labels) and len(torch.unique(labels)) == len(labels)


def _positives(labels: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of one label, by their anchor."""
    alike = labels[:, None] == labels
    alike.fill_diagonal_(False)
    anchors, positives = alike.nonzero(as_tuple=True)
    return anchors, positives


def _reduced(loss: Tensor) -> dict[str, Any]:
    return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


def _of_pairs(losses: Tensor, anchors: Tensor, positives: Tensor) -> dict[str, Any]:
    return {"loss": {"losses": losses, "indices": (anchors, positives), "reduction_type": "pos_pair"}}


def _of_rows(losses: Tensor) -> dict[str, Any]:
    indices = torch.arange(len(losses), device=losses.device)
    return {"loss": {"losses": losses, "indices": indices, "reduction_type": "element"}}
