"""The losses as modules, for code that keeps its criterion in an object."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from .core import checks
from .core.keywords import only, unknown_to
from .core.ops import forward_mode
from .core.plan import problem_for
from .losses import CandidateIds, Candidates, CZCall, LossCall, cz_nce, info_nce, takes
from .ranks.group import taken

if TYPE_CHECKING:
    from typing_extensions import Unpack

LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.001, 10.0


class _Bounded(torch.autograd.Function):
    """A clamp whose gradient can lead back inside: only gradients that lead further outside become zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, least: float, largest: float) -> Tensor:
        return value.clamp(least, largest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, *ctx.bounds = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        least, largest = ctx.bounds
        # A descent step goes against the gradient.
        outward = ((value <= least) & (gradient > 0)) | ((value >= largest) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


class LearnableTemperature(nn.Module):
    """A temperature that stays in its domain under any optimiser: stored as its logarithm, clamped when it is used.

    Whatever the parameter becomes, :meth:`forward` returns its exponential clamped to [0.001, 10]; beyond a bound only
    gradients that lead back are passed on.

    Args:
        initial: the initial τ.

    Raises:
        ValueError: for an initial temperature outside the bounds.

    Example:
        >>> LearnableTemperature(0.07)()
        tensor(0.0700, grad_fn=<ExpBackward0>)
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        if not LEAST_TEMPERATURE <= initial <= LARGEST_TEMPERATURE:
            raise ValueError(
                f"temperature: expected a learnable one to start between {LEAST_TEMPERATURE} and "
                f"{LARGEST_TEMPERATURE}, got {initial}; 0.07 is usual"
            )
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial), dtype=torch.float32))

    def forward(self) -> Tensor:
        """τ, a scalar, differentiable."""
        # Inside by more than one rounding, so that the exponential is not outside.
        least, largest = math.log(LEAST_TEMPERATURE) + 1e-6, math.log(LARGEST_TEMPERATURE) - 1e-6
        if forward_mode():
            return self.log_temperature.clamp(least, largest).exp()
        bounded: Tensor = _Bounded.apply(self.log_temperature, least, largest)
        return bounded.exp()


class _PairLoss(nn.Module):
    """What the modules share: options, checked when the module is made, the temperature, and the call."""

    loss: ClassVar[str]
    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, temperature: float | Tensor, learnable_temperature: bool, options: Any) -> None:
        super().__init__()
        self.options = dict(options)
        _, others = taken(self.options)
        problem_for(self.loss, "cpu", others)
        if learnable_temperature:
            if isinstance(temperature, Tensor):
                raise TypeError(
                    "temperature: expected a float with learnable_temperature=True, got a tensor; "
                    "pass its initial value, such as 0.07"
                )
            checks.positive(temperature)
            self.temperature: float | Tensor | LearnableTemperature = LearnableTemperature(float(temperature))
            return
        if isinstance(temperature, Tensor):
            if temperature.requires_grad and not temperature.is_leaf:
                raise ValueError(
                    "temperature: expected a float, an nn.Parameter or a tensor without history, got the result of a "
                    "computation, whose graph is gone after the first step; learnable_temperature=True learns one "
                    "safely, or call the function with it at every step"
                )
            if temperature.numel() != 1:
                raise ValueError(
                    f"temperature: expected one element, got shape {tuple(temperature.shape)}; "
                    "call the function for one temperature per row"
                )
        device = temperature.device if isinstance(temperature, Tensor) else None
        checks.temperature(temperature, torch.empty((1, 1), device=device), 1, read=True)
        # Assigning a parameter registers it; a plain tensor must be made a buffer to move with the module.
        if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = temperature

    def current_temperature(self) -> float | Tensor:
        """τ as the next call will use it; a learnt one is differentiable."""
        if isinstance(self.temperature, LearnableTemperature):
            learnt: Tensor = self.temperature()
            return learnt
        return self.temperature

    @only
    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        candidates: Candidates = None,
        ids: Tensor | None = None,
        candidate_ids: CandidateIds = None,
        weights: Tensor | None = None,
        **others: NoReturn,
    ) -> Tensor:
        """The loss of a batch of pairs; arguments as for :func:`ctloss.cz_nce`."""
        if others:
            raise unknown_to(self.forward, others, type(self).__name__)
        return self.function(
            x,
            y,
            temperature=self.current_temperature(),
            candidates=candidates,
            ids=ids,
            candidate_ids=candidate_ids,
            weights=weights,
            **self.options,
        )

    def extra_repr(self) -> str:
        named = [f"{name}={value!r}" for name, value in self.options.items()]
        own = [] if isinstance(self.temperature, LearnableTemperature) else [f"temperature={self.temperature}"]
        return ", ".join([*own, *named])


class CZNCELoss(_PairLoss):
    """:func:`ctloss.cz_nce` as a module: equations (2), (4) and (5) of Chen et al. 2022 (arXiv 2202.13083).

    Args:
        temperature: τ > 0; an ``nn.Parameter`` is learned as it is, and you have to keep it positive.
        learnable_temperature: learn τ, as its logarithm, between 0.001 and 10, starting from ``temperature``.
        options: those of :func:`ctloss.cz_nce`.

    Raises:
        TypeError, ValueError: for an option that :func:`ctloss.cz_nce` would refuse.

    Example:
        >>> import torch, ctloss
        >>> criterion = ctloss.CZNCELoss(temperature=0.5)
        >>> criterion(torch.eye(2), torch.eye(2))
        tensor(-1.3069)
    """

    loss = "cz_nce"
    function = staticmethod(cz_nce)

    @takes("cz_nce")
    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        *,
        learnable_temperature: bool = False,
        **options: Unpack[CZCall],
    ) -> None:
        super().__init__(temperature, learnable_temperature, options)


class InfoNCELoss(_PairLoss):
    """:func:`ctloss.info_nce` as a module: equations (1) and (2) of Chen et al. 2022 (arXiv 2202.13083).

    Arguments and errors are those of :class:`CZNCELoss`, with the options of :func:`ctloss.info_nce`.

    Example:
        >>> import torch, ctloss
        >>> criterion = ctloss.InfoNCELoss(temperature=0.5, learnable_temperature=True)
        >>> round(criterion(torch.eye(2), torch.eye(2)).item(), 4)
        0.2395
    """

    loss = "info_nce"
    function = staticmethod(info_nce)

    @takes("info_nce")
    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        *,
        learnable_temperature: bool = False,
        **options: Unpack[LossCall],
    ) -> None:
        super().__init__(temperature, learnable_temperature, options)
