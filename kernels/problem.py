"""The options of a loss call, defined and checked here, and the tensors that go with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor

Loss = Literal["contrast", "cz_nce", "info_nce", "sig_lip"]
Negatives = Literal["both", "cross", "own", "none"]
Directions = Literal["both", "x"]
Reduction = Literal["mean", "sum", "none"]
Form = Literal["log", "ratio"]
Precision = Literal["highest", "high", "medium"]
Impl = Literal["auto", "reference", "native", "torch", "triton"]

WORDS: dict[str, tuple[str, ...]] = {
    "loss": get_args(Loss),
    "negatives": get_args(Negatives),
    "directions": get_args(Directions),
    "reduction": get_args(Reduction),
    "form": get_args(Form),
    "precision": get_args(Precision),
    "impl": get_args(Impl),
}


class PairOptions(TypedDict, total=False):
    """The options of :func:`ctloss.contrast`, for type checkers; :class:`Problem` has their meanings and defaults."""

    negatives: Negatives
    directions: Directions
    normalize: bool
    margin: float | None
    dims: tuple[int, ...] | None
    precision: Precision
    impl: Impl


class LossOptions(PairOptions, total=False):
    """The options of :func:`ctloss.info_nce`."""

    dim_weights: tuple[float, ...] | None
    reduction: Reduction


class CZOptions(LossOptions, total=False):
    """The options of :func:`ctloss.cz_nce`."""

    form: Form


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Every option of one loss call, checked; its tensors are a :class:`Batch`.

    Attributes:
        loss: ``"cz_nce"`` (row loss z), ``"info_nce"`` (row loss softplus(z)), ``"contrast"`` (z itself), or
            ``"sig_lip"``, which is not a function of z and has its own kernels.
        negatives: which rows a row is compared with in addition to the candidates: the other rows of ``"both"`` sides,
            those of the other side (``"cross"``), those of its ``"own"`` side, or ``"none"``.
        directions: ``"both"``: the 2n rows of x and of y are anchors; ``"x"``: only the rows of x.
        normalize: cosine similarity of the rows if true, else their plain dot products.
        margin: leave out negatives whose similarity exceeds the positive's by more than this; ``None``: none.
        dims: widths of nested embeddings (Matryoshka), each at most the embeddings' width; ``None``: the full width.
        dim_weights: what the loss at each width is multiplied by; ``None``: 1 each.
        reduction: ``"mean"`` or ``"sum"`` of the row losses, or ``"none"``.
        form: ``"log"``, or for CZ-NCE ``"ratio"``.
        precision: how carefully float32 products are formed on a GPU.
        impl: ``"auto"``, or the path to take.
        workspace: bytes of temporary memory allowed beyond inputs, outputs and vectors with one entry per row.

    Raises:
        TypeError: for an option of the wrong type.
        ValueError: for a value that is not one of those listed.

    Example:
        >>> Problem(loss="info_nce", negatives="cross").directions
        'both'
        >>> Problem(negatives="all")
        Traceback (most recent call last):
            ...
        ValueError: negatives: expected one of 'both', 'cross', 'own', 'none', got 'all'
    """

    loss: Loss = "contrast"
    negatives: Negatives = "both"
    directions: Directions = "both"
    normalize: bool = True
    margin: float | None = None
    dims: tuple[int, ...] | None = None
    dim_weights: tuple[float, ...] | None = None
    reduction: Reduction = "mean"
    form: Form = "log"
    precision: Precision = "highest"
    impl: Impl = "auto"
    workspace: int = 256 << 20

    def __post_init__(self) -> None:
        for name, allowed in WORDS.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                words = ", ".join(repr(word) for word in allowed)
                raise ValueError(f"{name}: expected one of {words}, got {value!r}")
        if not isinstance(self.normalize, bool):
            raise TypeError(f"normalize: expected True or False, got {self.normalize!r}; pass one of them")
        if self.form == "ratio" and self.loss != "cz_nce":
            raise ValueError(f"form: expected 'log' for {self.loss}, got 'ratio'; the ratio form belongs to cz_nce")
        _check_margin(self.margin)
        _check_dims(self.dims, self.dim_weights)

    def __hash__(self) -> int:
        # Computed once, because it is looked up at every call; but only then, because torch.compile before PyTorch 2.13
        # cannot record it.
        found: int | None = self.__dict__.get("_hash")
        if found is None:
            found = hash(tuple(getattr(self, field.name) for field in fields(self)))
            object.__setattr__(self, "_hash", found)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # Hashes of strings differ from process to process, so the problem is made anew.
        return parse, (self.spell(),)

    @property
    def num_directions(self) -> int:
        """How many anchors each pair has."""
        return 2 if self.directions == "both" else 1

    @property
    def by_row(self) -> bool:
        """Whether the caller gets one number per row, whose error no mean averages out."""
        return self.loss == "contrast" or self.reduction == "none"

    def spell(self) -> str:
        """All options as one string, for an operator's schema; :func:`parse` reads it.

        Example:
            >>> problem = Problem(negatives="cross", margin=0.1, dims=(8, 4))
            >>> parse(problem.spell()) == problem
            True
        """
        return ";".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))


def _check_margin(margin: object) -> None:
    if margin is None:
        return
    if isinstance(margin, bool) or not isinstance(margin, Real):
        raise TypeError(f"margin: expected a number or None, got {margin!r}; 0.1 leaves out false negatives by cosine")
    if not math.isfinite(margin):
        raise ValueError(f"margin: expected a finite number or None, got {margin!r}; None leaves out nothing")


def _check_dims(dims: object, weights: object) -> None:
    if dims is not None:
        wanted = "dims: expected a tuple of different positive widths such as (768, 256, 64)"
        if not isinstance(dims, tuple) or not all(type(width) is int for width in dims):
            raise TypeError(f"{wanted}, got {dims!r}")
        if not dims or min(dims) < 1 or len(set(dims)) < len(dims):
            raise ValueError(f"{wanted}, got {dims!r}")
    if weights is not None:
        wanted = "dim_weights: expected a tuple of finite numbers, one for each of dims"
        if not isinstance(weights, tuple) or not all(isinstance(one, Real) and math.isfinite(one) for one in weights):
            raise TypeError(f"{wanted}, got {weights!r}")
        if not isinstance(dims, tuple) or len(dims) != len(weights):
            raise ValueError(f"{wanted}, got {weights!r} for dims={dims!r}")


def parse(spelled: str) -> Problem:
    """The problem that :meth:`Problem.spell` was called on.

    Example:
        >>> parse(Problem(precision="high").spell()).precision
        'high'
    """
    from ast import literal_eval

    return Problem(**{name: literal_eval(value) for name, value in (part.split("=", 1) for part in spelled.split(";"))})


class Shape(NamedTuple):
    """What a path's choices depend on, together with the problem: sizes, dtypes, device, and which tensors are given.

    Attributes:
        n: pairs.
        d: columns.
        candidates: rows of each candidate side.
        dtype: the dtype that all sides promote to.
        device_type: ``"cpu"``, ``"cuda"``, …
        masked: whether ids are given.
        per_row: whether each row has its own temperature.
    """

    n: int
    d: int
    candidates: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    device_type: str = "cpu"
    masked: bool = False
    per_row: bool = False

    def fills(self, problem: Problem) -> bool:
        """Whether every anchor is certain to have a negative: whatever the tensors hold, no z is −inf.

        Example:
            >>> Shape(1, 8).fills(Problem()), Shape(2, 8).fills(Problem())
            (False, True)
        """
        if self.masked or problem.margin is not None:
            return False
        return any(self.candidates) or (self.n > 1 and problem.negatives != "none")


class Batch(NamedTuple):
    """The tensors of one loss call, checked.

    Attributes:
        x: ``(n, d)``.
        y: ``(n, d)``; row i is the positive of row i of x.
        candidates: ``(m, d)`` each: more rows that every row is compared with.
        temperature: a positive float, a 0-d tensor, or one per anchor, ``(n,)`` or ``(2n,)``, x's first.
        ids: ``(n,)`` int64, one per pair; ``None`` stands for 0 … n − 1.
        candidate_ids: ``(m,)`` int64 for each candidate side, or ``None`` for ids that no other row has.
    """

    x: Tensor
    y: Tensor
    candidates: tuple[Tensor, ...] = ()
    temperature: float | Tensor = 0.07
    ids: Tensor | None = None
    candidate_ids: tuple[Tensor | None, ...] = ()

    @property
    def sides(self) -> tuple[Tensor, ...]:
        """x, y and the candidates."""
        return (self.x, self.y, *self.candidates)

    @property
    def sizes(self) -> list[int]:
        """Rows of each side."""
        return [side.shape[0] for side in self.sides]

    @property
    def shape(self) -> Shape:
        """What a path's choices depend on."""
        x, y, candidates, temperature, ids, candidate_ids = self
        n, d = x.shape
        dtype, per_row = x.dtype, isinstance(temperature, Tensor) and temperature.dim() == 1
        if y.dtype == dtype and not candidates:
            return Shape(n, d, (), dtype, x.device.type, ids is not None, per_row)
        for side in (y, *candidates):
            if side.dtype != dtype:
                dtype = torch.promote_types(dtype, side.dtype)
        masked = ids is not None or any(own is not None for own in candidate_ids)
        return Shape(n, d, tuple(side.shape[0] for side in candidates), dtype, x.device.type, masked, per_row)


def narrowed(batch: Batch, width: int) -> Batch:
    """The batch with only the first columns of every side.

    Example:
        >>> narrowed(Batch(torch.eye(2), torch.eye(2)), 1).x
        tensor([[1.],
                [0.]])
    """
    x, y, *candidates = (side[:, :width] for side in batch.sides)
    return batch._replace(x=x, y=y, candidates=tuple(candidates))


class Forward(NamedTuple):
    """What a path makes of a batch.

    Attributes:
        z: ``(rows,)`` float64, lse over a row's negatives minus the positive's logit; −inf for a row without negatives.
        positive: ``(rows,)`` float64, the positives' logits; may be ``None`` if neither single rows nor the moment are
            requested.
        moment: ``(rows,)`` float64, Σ_j P_ij s_ij − s⁺_i, 0 for a row without negatives; ``None`` unless requested.
        state: whatever the path's ``backward`` needs from its ``forward``.
    """

    z: Tensor
    positive: Tensor | None
    moment: Tensor | None
    state: Any
