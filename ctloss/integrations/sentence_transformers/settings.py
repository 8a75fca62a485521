"""The options of a ranking loss, checked, with the meanings that sentence-transformers gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor

from ...contrast import Contrast
from ..numbers import positive

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
PartitionMode = Literal["joint", "per_direction"]
HardnessMode = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]
NamedObjective = Literal["info_nce", "cz_nce"]
Objective = NamedObjective | Callable[[Contrast], Tensor]
Similarity = Callable[[Tensor, Tensor], Tensor]

SYMMETRIC: tuple[Direction, ...] = ("query_to_doc", "doc_to_query")


def is_cosine(similarity_fct: object) -> bool:
    """Whether a similarity is the cosine; otherwise it is the dot product.

    ``model.similarity``, a bound method, is what the model's ``similarity_fn_name`` says.

    Raises:
        ValueError: for any other function.
    """
    owner: Any = getattr(similarity_fct, "__self__", None)
    if getattr(similarity_fct, "__name__", "") == "similarity" and hasattr(owner, "similarity_fn_name"):
        named = str(getattr(owner.similarity_fn_name, "value", owner.similarity_fn_name))
        if named in ("cosine", "dot"):
            return named == "cosine"
    if similarity_fct is cos_sim or similarity_fct is dot_score:
        return similarity_fct is cos_sim
    got = getattr(similarity_fct, "__name__", repr(similarity_fct))
    raise ValueError(
        f"similarity_fct: expected cos_sim or dot_score of sentence_transformers.util, got {got}; the losses of ctloss "
        "are of cosines or dot products: choose one of them, or keep sentence-transformers' own loss for this function"
    )


def name_of(similarity_fct: object) -> str:
    """How a model card calls a similarity."""
    return "cos_sim" if is_cosine(similarity_fct) else "dot_score"


def sequence(name: str, given: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """Widths or their weights as a tuple.

    Raises:
        TypeError: for what is no sequence of numbers.
    """
    if given is None:
        return None
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(one, Real) for one in found):
        raise TypeError(f"{name}: expected None or several numbers, got {given!r}; pass a tuple of them")
    return found


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        words = ", ".join(map(repr, allowed))
        raise ValueError(f"{name}: expected one of {words}, got {value!r}; choose one of them")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a ranking loss is, apart from its tensors.

    Attributes:
        scale: what similarities are multiplied by, 1/τ.
        cosine: cosine similarity if true, else dot products.
        directions: which similarities are in the sum; ``"query_to_doc"`` always is.
        partition_mode: one softmax over all directions, or the mean of one for each.
        hardness_mode: whose logits are raised by ``hardness_strength`` times their similarity; ``None``: nobody's.
        hardness_strength: at least 0.
        objective: ``"info_nce"``, ``"cz_nce"``, or a function from a :class:`~ctloss.contrast.Contrast` to row losses,
            such as those of :mod:`ctloss.objectives`.
        margin: leave out negatives more similar than the positive by more than this; ``None``: none.
        dims: widths of nested embeddings; ``None``: the full width.
        dim_weights: what the loss at each width is multiplied by; ``None``: 1 each.

    Raises:
        TypeError, ValueError: for a value or a combination that has no meaning.
    """

    scale: float
    cosine: bool
    directions: tuple[Direction, ...]
    partition_mode: PartitionMode
    hardness_mode: HardnessMode | None
    hardness_strength: float
    objective: Objective = "info_nce"
    margin: float | None = None
    dims: tuple[int, ...] | None = None
    dim_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        positive("scale", self.scale, "20 is usual for cosines")
        positive("hardness_strength", self.hardness_strength, "0 changes nothing", or_zero=True)
        for direction in self.directions:
            _one_of("directions", direction, get_args(Direction))
        if "query_to_doc" not in self.directions:
            raise ValueError(
                f"directions: expected 'query_to_doc' among them, got {self.directions!r}; it holds the positives: "
                "add it"
            )
        _one_of("partition_mode", self.partition_mode, get_args(PartitionMode))
        without_positive = sorted({"query_to_query", "doc_to_doc"} & set(self.directions))
        if self.partition_mode == "per_direction" and without_positive:
            raise ValueError(
                "partition_mode: expected 'joint' with directions that hold no positive, got 'per_direction' with "
                f"{', '.join(without_positive)}; use 'joint', or leave these directions out"
            )
        _one_of("hardness_mode", self.hardness_mode, (None, *get_args(HardnessMode)))
        if not callable(self.objective):
            _one_of("objective", self.objective, get_args(NamedObjective))
        if self.dims is not None and not self.cosine:
            raise ValueError(
                "dims: expected cos_sim with nested widths, got dot_score; MatryoshkaLoss normalises each width, so "
                "its dot products are cosines: pass similarity_fct=cos_sim"
            )

    @property
    def hardness(self) -> str | None:
        """The hardness mode, ``None`` if it changes nothing."""
        return self.hardness_mode if self.hardness_strength else None

    @property
    def joint_positives(self) -> int:
        """How often the positive stands in a joint sum: once from the query, once more from the document."""
        return 1 + ("doc_to_query" in self.directions)
