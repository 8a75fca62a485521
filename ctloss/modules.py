"""The losses as modules, for those who keep their criterion in an object."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import checks
from .kernels.problem import Negatives, Precision, Reduction
from .losses import Form, Impl, cz_nce, info_nce


class _PairLoss(nn.Module):
    """Options checked once, when the module is made."""

    def __init__(
        self,
        temperature: float | Tensor,
        negatives: Negatives,
        normalize: bool,
        reduction: Reduction,
        precision: Precision,
        impl: Impl,
    ) -> None:
        super().__init__()
        checks.option("negatives", negatives, checks.NEGATIVES)
        checks.flag("normalize", normalize)
        checks.option("reduction", reduction, checks.REDUCTIONS)
        checks.option("precision", precision, checks.PRECISIONS)
        checks.option("impl", impl, checks.IMPLS)
        checks.temperature(temperature, temperature.device if isinstance(temperature, Tensor) else torch.device("cpu"))
        if isinstance(temperature, Tensor):
            if temperature.requires_grad and not temperature.is_leaf:
                raise ValueError(
                    "temperature: expected a float, an nn.Parameter or a tensor without history, got the result of a "
                    "computation, which would be differentiated a second time at the second step; "
                    "call the function with it instead, at every step"
                )
            if temperature.device.type == "cpu":
                checks.positive(float(temperature.detach()))
        # A parameter is registered by the assignment itself, a plain tensor has to be named a buffer to move along.
        if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = temperature
        self.negatives: Negatives = negatives
        self.normalize = normalize
        self.reduction: Reduction = reduction
        self.precision: Precision = precision
        self.impl: Impl = impl

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, negatives={self.negatives!r}, normalize={self.normalize}, "
            f"reduction={self.reduction!r}, precision={self.precision!r}, impl={self.impl!r}"
        )


class CZNCELoss(_PairLoss):
    """:func:`ctloss.cz_nce` as a module: equations (2), (4) and (5) of Chen et al. 2022.

    Args:
        temperature: τ > 0; an ``nn.Parameter`` is learned with the model.
        negatives: see :func:`ctloss.cz_nce`, as for all options.
        normalize: cosine similarity if true.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        form: ``"log"`` or ``"ratio"``.
        precision: ``"highest"``, ``"high"`` or ``"medium"``.
        impl: ``"auto"`` or a path's name.

    Raises:
        TypeError, ValueError: for an option that :func:`ctloss.cz_nce` would refuse.

    Example:
        >>> import torch, ctloss
        >>> criterion = ctloss.CZNCELoss(temperature=0.5)
        >>> criterion(torch.eye(2), torch.eye(2))
        tensor(-1.3069)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        *,
        negatives: Negatives = "both",
        normalize: bool = True,
        reduction: Reduction = "mean",
        form: Form = "log",
        precision: Precision = "highest",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(temperature, negatives, normalize, reduction, precision, impl)
        checks.option("form", form, checks.FORMS)
        self.form: Form = form

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch of pairs; see :func:`ctloss.cz_nce`."""
        return cz_nce(
            x,
            y,
            temperature=self.temperature,
            negatives=self.negatives,
            normalize=self.normalize,
            reduction=self.reduction,
            form=self.form,
            precision=self.precision,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form!r}"


class InfoNCELoss(_PairLoss):
    """:func:`ctloss.info_nce` as a module: equations (1) and (2) of Chen et al. 2022.

    Args:
        temperature: τ > 0; an ``nn.Parameter`` is learned with the model.
        negatives: see :func:`ctloss.info_nce`, as for all options.
        normalize: cosine similarity if true.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: ``"highest"``, ``"high"`` or ``"medium"``.
        impl: ``"auto"`` or a path's name.

    Raises:
        TypeError, ValueError: for an option that :func:`ctloss.info_nce` would refuse.

    Example:
        >>> import torch, ctloss
        >>> criterion = ctloss.InfoNCELoss(temperature=0.5)
        >>> criterion(torch.eye(2), torch.eye(2))
        tensor(0.2395)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        *,
        negatives: Negatives = "both",
        normalize: bool = True,
        reduction: Reduction = "mean",
        precision: Precision = "highest",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(temperature, negatives, normalize, reduction, precision, impl)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch of pairs; see :func:`ctloss.info_nce`."""
        return info_nce(
            x,
            y,
            temperature=self.temperature,
            negatives=self.negatives,
            normalize=self.normalize,
            reduction=self.reduction,
            precision=self.precision,
            impl=self.impl,
        )
