"""GISTEmbedLoss: a guide model says which negatives are false."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...contrast import Contrast
from ...core import checks
from ...core.units import unit_rows
from ...objectives import epsilon_nce
from ..numbers import finite, positive, widened
from ..overrides import Uncalled
from ..processes import check_even, gathered_with_gradient, group_of
from . import citations
from .mini_batches import own_copy
from .ranking import embedded

LOGITS_AT_ONCE = 1 << 22
"""Logits of a panel of rows: 32 MiB of each of the matrices that a panel needs."""
ROUNDING = 1e-12
"""Cosines of equal rows differ by less than this in float64."""
STRATEGIES = ("absolute", "relative")


class GISTEmbedLoss(Uncalled, nn.Module):
    r"""sentence-transformers' loss of the same name: a guide model leaves out what it takes for false negatives.

    With g the guide's cosines and s the model's cosines over τ,

    .. math:: L_i = \log\Big(1 + \sum_{j : g_{ij} \le t_i} e^{s_{ij} - s^+_i}\Big), \qquad
              t_i = g^+_i - m \;\text{ or }\; g^+_i - m |g^+_i|

    over anchors against positives, anchors against anchors, positives against positives and anchors against negatives.
    Source: arXiv 2402.16829.

    Which pairs are left out differs from row to row, which the kernels of ctloss do not take: neither ids nor a margin
    can say it. So this loss is plain PyTorch: panels of rows, formed again in the backward pass, in float64. Value and
    gradient are those of the class of this name in sentence-transformers; no n × n matrix is kept. A text that equals
    the positive is as similar and no more, so that it stays in whatever the rounding.
    ``MultipleNegativesRankingLoss(margin=...)`` takes the model itself as the guide, in the kernels.

    Columns are (anchor, positive), or (anchor, positive, negative, …) with any number of negatives.

    Args:
        model: a ``SentenceTransformer``.
        guide: another one.
        temperature: τ.
        margin_strategy: whether ``margin`` is subtracted from the guide's similarity of the pair (``"absolute"``), or
            this share of it is (``"relative"``).
        margin: m.
        contrast_anchors: compare anchors with anchors.
        contrast_positives: compare positives with positives.
        gather_across_devices: compare with the positives and negatives of all processes.

    Raises:
        TypeError: for a model or a guide without a tokenizer, or a number that is none.
        ValueError: for an option without meaning, or fewer than two columns.
    """

    uncalled: tuple[str, ...] = ("sim_matrix",)
    library = "sentence_transformers.losses"

    def __init__(
        self,
        model: SentenceTransformer,
        guide: SentenceTransformer,
        temperature: float = 0.01,
        margin_strategy: Literal["absolute", "relative"] = "absolute",
        margin: float = 0.0,
        contrast_anchors: bool = True,
        contrast_positives: bool = True,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        for name, one in (("model", model), ("guide", guide)):
            if not hasattr(getattr(one, "tokenizer", None), "get_vocab"):
                raise TypeError(
                    f"{name}: expected a model with a tokenizer, got {type(one).__name__} without one; the guide reads "
                    "the model's wordpieces or their text"
                )
        if margin_strategy not in STRATEGIES:
            raise ValueError(f"margin_strategy: expected 'absolute' or 'relative', got {margin_strategy!r}; choose one")
        positive("temperature", temperature, "0.01 is usual")
        finite("margin", margin, "0.0 is usual")
        self.model = model
        self.guide = guide
        self.temperature = temperature
        self.margin_strategy = margin_strategy
        self.margin = margin
        self.contrast_anchors = contrast_anchors
        self.contrast_positives = contrast_positives
        self.gather_across_devices = gather_across_devices
        longest, of_guide = (one.max_seq_length or math.inf for one in (model, guide))
        shared = model.tokenizer.get_vocab() == guide.tokenizer.get_vocab() and of_guide >= longest
        self._tokenizer = None if shared else model.tokenizer

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, ``()``; labels are ignored."""
        features = list(sentence_features)
        # The model writes into what it is given: its embeddings and, to leave prompts out, the mask.
        for_guide = [own_copy(column) for column in features]
        embeddings = embedded(self.model, features)
        with torch.no_grad():
            guided = embedded(self.guide, [self._for_guide(column) for column in for_guide])
        return self.compute_loss_from_embeddings(embeddings, guided)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], guided: Sequence[Tensor]) -> Tensor:
        """The loss of the model's and the guide's embeddings, ``(n, d)`` for each column.

        Raises:
            ValueError: for fewer than two columns, another number of them from the guide, or positives that are not as
                many as the anchors.
        """
        if len(embeddings) < 2:
            raise ValueError(
                f"columns: expected (anchor, positive) or (anchor, positive, negative, ...), got {len(embeddings)}; "
                "add the positives' column"
            )
        if len(guided) != len(embeddings):
            raise ValueError(
                f"guided: expected the guide's embeddings of {len(embeddings)} columns, got {len(guided)}; embed the "
                "same columns with both"
            )
        for one in (embeddings, guided):
            checks.pair(*one[:2])
        wide = [_units(one) for one in embeddings]
        guides = [_units(one.detach()) for one in guided]
        first = 0
        if group_of(self.gather_across_devices) is not None:
            check_even([*wide, *guides])
            first = torch.distributed.get_rank() * len(wide[0])
        rows = self._row_losses(
            _Sides(wide, self._gathered(wide), first), _Sides(guides, self._gathered(guides), first)
        )
        return rows.mean().to(torch.promote_types(embeddings[0].dtype, torch.float32))

    def _gathered(self, columns: list[Tensor]) -> list[Tensor]:
        if group_of(self.gather_across_devices) is None:
            return columns
        return [columns[0], *map(gathered_with_gradient, columns[1:])]

    def _for_guide(self, features: dict[str, Any]) -> dict[str, Any]:
        """The same texts for the guide: as they are if it reads the model's wordpieces, else tokenized again."""
        if self._tokenizer is None:
            return features
        if not isinstance(features.get("input_ids"), Tensor) or "cu_seq_lens_q" in features or "offsets" in features:
            raise ValueError(
                "guide: expected padded wordpieces to tokenize again, because guide and model differ in vocabulary or "
                "length; take a guide with the model's tokenizer, or switch flattening of the model's inputs off"
            )
        texts = self._tokenizer.batch_decode(features["input_ids"], skip_special_tokens=True)
        tokenize = getattr(self.guide, "preprocess", None) or self.guide.tokenize
        tokens = tokenize(texts)
        return {k: one.to(self.guide.device) if isinstance(one, Tensor) else one for k, one in tokens.items()}

    def _row_losses(self, sides: _Sides, guides: _Sides) -> Tensor:
        thresholds = guides.of_pairs()
        if self.margin_strategy == "relative":
            thresholds = thresholds - thresholds.abs() * self.margin
        else:
            thresholds = thresholds - self.margin
        positive = sides.of_pairs()
        size = max(1, LOGITS_AT_ONCE // max(1, sum(len(one) for one in sides.everywhere)))

        def panel(start: int, stop: int) -> Tensor:
            parts = []
            for (rows, others, pair), (of_guide, other_guides, _) in zip(
                self._blocks(sides, start, stop), self._blocks(guides, start, stop), strict=True
            ):
                out = of_guide @ other_guides.T > thresholds[start:stop, None] + ROUNDING
                if pair:
                    # The positive is in the 1 of log(1 + …).
                    own = torch.arange(stop - start, device=out.device)
                    out[own, own + sides.first + start] = True
                parts.append((rows @ others.T - positive[start:stop, None]).masked_fill(out, -math.inf))
            logits = torch.cat(parts, 1) / self.temperature
            empty = (logits == -math.inf).all(1)
            return torch.logsumexp(logits.masked_fill(empty[:, None], 0.0), 1).masked_fill(empty, -math.inf)

        with torch.autocast(positive.device.type, enabled=False):
            bounds = [(start, min(start + size, len(positive))) for start in range(0, len(positive), size)]
            z = torch.cat([checkpoint(panel, *one, use_reentrant=False, preserve_rng_state=False) for one in bounds])
        return epsilon_nce(Contrast(z, positive / self.temperature), 1.0)

    def _blocks(self, sides: _Sides, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Rows of this panel, what they are compared with, and whether their positives are in it."""
        (anchors, positives, *_), (_, all_positives, *negatives) = sides.own, sides.everywhere
        yield anchors[start:stop], all_positives, True
        if self.contrast_anchors:
            yield anchors[start:stop], anchors, False
        if self.contrast_positives:
            yield positives[start:stop], all_positives, False
        for negative in negatives:
            yield anchors[start:stop], negative, False

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, for model cards."""
        return {
            "guide": self.guide,
            "temperature": self.temperature,
            "margin_strategy": self.margin_strategy,
            "margin": self.margin,
            "contrast_anchors": self.contrast_anchors,
            "contrast_positives": self.contrast_positives,
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper that the loss is from, for model cards."""
        return citations.GIST


class _Sides(NamedTuple):
    """The columns of this process, those of all processes (anchors excepted), and this process's first row in them."""

    own: list[Tensor]
    everywhere: list[Tensor]
    first: int

    def of_pairs(self) -> Tensor:
        """``(n,)``: the similarity of each pair."""
        return (self.own[0] * self.own[1]).sum(1)


def _units(rows: Tensor) -> Tensor:
    return widened(unit_rows(rows))
