"""The ranking losses as sentence-transformers' trainer takes them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch import Tensor, nn

from ..processes import group_of
from . import citations
from .embeddings import Columns, ranking_loss
from .settings import (
    SYMMETRIC,
    Direction,
    HardnessMode,
    Objective,
    PartitionMode,
    Settings,
    Similarity,
    is_cosine,
    name_of,
    sequence,
)

try:
    from sentence_transformers.base.losses.merged_forward import embed_columns
except ImportError:
    # Versions before 6.2 embed each column by itself.
    embed_columns: Any = None  # type: ignore[no-redef]

REPLACEMENT = (
    "{name} is deprecated in sentence-transformers; use {other} with directions=('query_to_doc', 'doc_to_query') and "
    "partition_mode='per_direction', which is the same loss"
)


def embedded(model: nn.Module, sentence_features: Iterable[dict[str, Any]]) -> list[Tensor]:
    """The embeddings of each column, ``(n, d)``, in forward passes as sentence-transformers' own losses make them."""
    if embed_columns is not None:
        return embed_columns(model, sentence_features)
    return [model(features)["sentence_embedding"] for features in sentence_features]


class MultipleNegativesRankingLoss(nn.Module):
    r"""sentence-transformers' loss of the same name: each query must find its document among those of the batch.

    With s the similarity times ``scale``, a query's loss is infoNCE (arXiv 1807.03748),

    .. math:: L_i = -\log \frac{e^{s(q_i, d_i)}}{\sum_j e^{s(q_i, d_j)}} = \operatorname{softplus}(z_i)

    over all documents of the batch, hard negatives among them. Value and gradient are those of the class of this name
    in sentence-transformers; no matrix of similarities is formed, and logits are float32 whatever the embeddings are.

    Columns are (anchor, positive), or (anchor, positive, negative, …) with any number of negatives.

    Args:
        model: a ``SentenceTransformer``.
        scale: what similarities are multiplied by, 1/τ.
        similarity_fct: ``cos_sim`` or ``dot_score`` of ``sentence_transformers.util``, or ``model.similarity`` where
            that is one of them.
        gather_across_devices: compare with the rows of all processes.
        directions: the similarities in the sum: ``"query_to_doc"``, ``"query_to_query"``, ``"doc_to_query"``,
            ``"doc_to_doc"``; in the last, documents of the row's own query are left out.
        partition_mode: ``"joint"``: one softmax over all of them; ``"per_direction"``: the mean of one for each.
        hardness_mode: whose logits ``hardness_strength`` times their similarity, without gradient, is added to:
            ``"in_batch_negatives"`` (arXiv 2503.04812, eq. 5), ``"hard_negatives"`` (2509.20354) or
            ``"all_negatives"``, of ``"query_to_doc"``; ``None``: to nobody's.
        hardness_strength: at least 0.
        objective: ``"info_nce"``; ``"cz_nce"``, which leaves the positive out of the sum; or a function of a
            ``ctloss.Contrast`` with one loss a row, such as ``partial(ctloss.objectives.focal_nce, gamma=2.0)``. z is
            then over all negatives of the softmax.
        margin: leave out negatives that are more similar than the positive by more than this.
        dims: widths of nested embeddings, such as ``(768, 256)``: the same as ``MatryoshkaLoss`` around this loss.
        dim_weights: what the loss at each width is multiplied by; 1 each by default.
        labels_are_ids: the dataset's label column holds integers; pairs with equal ones are not each other's negatives.
            Otherwise labels are ignored.

    Raises:
        TypeError, ValueError: for an option without meaning, a similarity that is neither cosine nor dot product, or a
            width beyond the model's.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Similarity = cos_sim,
        gather_across_devices: bool = False,
        directions: tuple[Direction, ...] = ("query_to_doc",),
        partition_mode: PartitionMode = "joint",
        hardness_mode: HardnessMode | None = None,
        hardness_strength: float = 0.0,
        *,
        objective: Objective = "info_nce",
        margin: float | None = None,
        dims: Sequence[int] | None = None,
        dim_weights: Sequence[float] | None = None,
        labels_are_ids: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.scale = scale
        self.similarity_fct = similarity_fct
        self.gather_across_devices = gather_across_devices
        self.directions: tuple[Direction, ...] = (directions,) if isinstance(directions, str) else tuple(directions)
        self.partition_mode: PartitionMode = partition_mode
        self.hardness_mode: HardnessMode | None = hardness_mode
        self.hardness_strength = hardness_strength
        self.objective = objective
        self.margin = margin
        self.dims = sequence("dims", dims)
        self.dim_weights = sequence("dim_weights", dim_weights)
        self.labels_are_ids = labels_are_ids
        self._check(self.settings)

    @property
    def settings(self) -> Settings:
        """The attributes as they are now, checked again."""
        return Settings(
            scale=self.scale,
            cosine=is_cosine(self.similarity_fct),
            directions=self.directions,
            partition_mode=self.partition_mode,
            hardness_mode=self.hardness_mode,
            hardness_strength=self.hardness_strength,
            objective=self.objective,
            margin=self.margin,
            dims=self.dims,
            dim_weights=self.dim_weights,
        )

    def _check(self, settings: Settings) -> None:
        if settings.hardness_mode is not None and settings.hardness is None:
            warnings.warn(
                f"hardness_mode={settings.hardness_mode!r} changes nothing with hardness_strength=0.0; raise it, or "
                "leave the mode out",
                stacklevel=4,
            )
        # Before version 5.3 the method has the longer name.
        names = ("get_embedding_dimension", "get_sentence_embedding_dimension")
        known = next((getattr(self.model, name) for name in names if hasattr(self.model, name)), lambda: None)
        width = known() if settings.dims else None
        if settings.dims and width is not None and max(settings.dims) > width:
            raise ValueError(
                f"dims: expected widths of at most the model's {width} columns, got {settings.dims}; leave out the "
                "wider ones"
            )

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: the tokenized texts of each column.
            labels: ids of the pairs if ``labels_are_ids``; else ignored.

        Returns:
            ``()``.
        """
        return self.compute_loss_from_embeddings(embedded(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of embeddings, ``(n, d)`` for each column.

        Raises:
            ValueError: for fewer than two columns, or ids that are missing or no integers.
        """
        if len(embeddings) < 2:
            raise ValueError(
                f"columns: expected (anchor, positive) or (anchor, positive, negative, ...), got {len(embeddings)}; "
                "add the positives' column, or take SupConLoss for texts with a label"
            )
        queries, positives, *negatives = embeddings
        ids = integer_labels("ids of the pairs", labels, len(queries)) if self.labels_are_ids else None
        columns = Columns(queries, positives, negatives, ids, group_of(self.gather_across_devices))
        return ranking_loss(columns, self.settings)

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, for model cards: those of sentence-transformers, and of ours what is not as by default."""
        own = {
            "objective": ("info_nce", _name(self.objective)),
            "margin": (None, self.margin),
            "dims": (None, self.dims),
            "dim_weights": (None, self.dim_weights),
            "labels_are_ids": (False, self.labels_are_ids),
        }
        return {
            "scale": self.scale,
            "similarity_fct": name_of(self.similarity_fct),
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
            **{name: value for name, (default, value) in own.items() if value != default},
        }

    @property
    def temperature(self) -> float:
        """τ."""
        return 1.0 / self.scale

    @property
    def citation(self) -> str:
        """BibTeX of the papers that the loss is from, for model cards."""
        found = [citations.CZ_NCE if self.objective == "cz_nce" else citations.INFO_NCE]
        if len(set(self.directions)) == 4:
            found.append(citations.GTE)
        if self.dims is not None:
            found.append(citations.MATRYOSHKA)
        return "".join(found)


def _name(objective: Objective) -> str:
    """How a model card calls an objective; of a partial function, with what is bound."""
    if isinstance(objective, str):
        return objective
    function = getattr(objective, "func", objective)
    name = getattr(function, "__name__", type(function).__name__)
    bound = ", ".join(f"{key}={value!r}" for key, value in getattr(objective, "keywords", {}).items())
    return f"{name}({bound})" if bound else name


def integer_labels(meaning: str, labels: Tensor | None, rows: int) -> Tensor:
    """Labels as ids or classes of rows.

    Raises:
        ValueError: if there are none, or they are no integers, one a row.
    """
    wanted = f"labels: expected integers, the {meaning}, in a column named label"
    if labels is None:
        raise ValueError(f"{wanted}, got none; add it to the dataset")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{wanted}, got {labels.dtype}; number the texts, dataset.class_encode_column('label') does")
    labels = labels.reshape(-1)
    if len(labels) != rows:
        raise ValueError(f"{wanted}, got {len(labels)} for {rows} rows; give one a row")
    return labels


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """sentence-transformers' loss of the same name: the mean of both directions' infoNCE.

    Arguments and errors are those of :class:`MultipleNegativesRankingLoss`.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Similarity = cos_sim,
        gather_across_devices: bool = False,
        **ours: Any,
    ) -> None:
        warnings.warn(
            REPLACEMENT.format(name=type(self).__name__, other="MultipleNegativesRankingLoss"),
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions=SYMMETRIC,
            partition_mode="per_direction",
            **ours,
        )


class CZNCELoss(MultipleNegativesRankingLoss):
    r""":class:`MultipleNegativesRankingLoss` with CZ-NCE: the positive is not in the sum, so its pull never fades.

    .. math:: L_i = -\log \frac{e^{s(q_i, d_i)}}{\sum_{j \ne i} e^{s(q_i, d_j)}} = z_i

    Chen et al. 2022 (arXiv 2202.13083), eq. (5). The loss crosses zero. Arguments and errors are those of
    :class:`MultipleNegativesRankingLoss`.
    """

    def __init__(self, model: SentenceTransformer, *arguments: Any, **options: Any) -> None:
        if options.setdefault("objective", "cz_nce") != "cz_nce":
            raise TypeError(
                f"objective: expected none for CZNCELoss, got {options['objective']!r}; MultipleNegativesRankingLoss "
                "takes it"
            )
        super().__init__(model, *arguments, **options)
