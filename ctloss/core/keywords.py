"""Errors for keywords that a loss does not have, above all for other libraries' names of the same things."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_ACROSS_RANKS = "group='world' compares with the rows of all ranks, exactly"
_TEMPERATURE = "pass temperature=1 / {name}; ctloss divides by a temperature instead of multiplying by a scale"
_ANOTHER_CLASS = "ctloss.integrations.{place} has their class with its own names"

ELSEWHERE: dict[str, str] = {
    "scale": f"{_TEMPERATURE}; {_ANOTHER_CLASS.format(place='sentence_transformers')}",
    "logit_scale": f"{_TEMPERATURE}; {_ANOTHER_CLASS.format(place='open_clip')}",
    "tau": "pass temperature=",
    "temp": "pass temperature=",
    "logit_bias": "ctloss.sig_lip has it as bias=; in a softmax it cancels",
    "bias": "it belongs to ctloss.sig_lip; in a softmax it cancels",
    "gather_distributed": _ACROSS_RANKS,
    "gather_across_devices": _ACROSS_RANKS,
    "gather_with_grad": f"{_ACROSS_RANKS}, with its gradient",
    "negatives_cross_device": _ACROSS_RANKS,
    "local_loss": f"{_ACROSS_RANKS}, and each rank forms its own part",
    "world_size": _ACROSS_RANKS,
    "rank": _ACROSS_RANKS,
    "process_group": "pass group=",
    "memory_bank_size": "keep the former rows yourself and pass them as candidates=; "
    + _ANOTHER_CLASS.format(place="lightly"),
    "queue": "pass its rows as candidates=",
    "negative_keys": "pass them as candidates=",
    "hard_negatives": "pass them as candidates=, (n, k, d)",
    "label_smoothing": "ctloss.objectives.label_smoothing(c, mean_logits, smoothing) has it",
    "labels": "ids= leaves out negatives with the same number; ctloss.sup_con(x, labels) makes positives of them",
    "indices_tuple": _ANOTHER_CLASS.format(place="pytorch_metric_learning"),
    "ref_emb": "pass its rows as candidates=; " + _ANOTHER_CLASS.format(place="pytorch_metric_learning"),
    "ref_labels": "pass candidate_ids=; " + _ANOTHER_CLASS.format(place="pytorch_metric_learning"),
    "similarity_fct": "normalize=True takes cosines, normalize=False dot products",
    "similarity": "normalize=True takes cosines, normalize=False dot products",
    "distance": "normalize=True takes cosines, normalize=False dot products",
    "normalized": "pass normalize=",
    "weight_fn": "form the weights and make the loss of ctloss.contrast, as ctloss.objectives.dclw does",
    "hardness_mode": "ctloss.objectives.hardness_alpha and hardness_beta weigh negatives",
    "hardness_strength": "ctloss.objectives.hardness_alpha and hardness_beta weigh negatives",
    "partition_mode": "ctloss.objectives.gte_nce is the joint one",
    "symmetric": "directions='both' takes both sides as anchors, directions='x' only x",
    "bidirectional": "directions='both' takes both sides as anchors, directions='x' only x",
    "matryoshka_dims": "pass dims=",
    "matryoshka_weights": "pass dim_weights=",
    "mini_batch_size": "ctloss.cached encodes a batch chunk by chunk",
    "chunk_size": "leave it out: no path forms the matrix; ctloss.set_workspace_limit bounds its memory",
    "size_average": "pass reduction=",
    "weight": "pass weights=",
}
"""What to use instead of a keyword of another library."""
BY_NAME = ("temperature", "candidates", "ids", "candidate_ids", "group", "average", "even", "shared_candidates")
"""What the losses of pairs take by name besides the options of a problem."""


def unknown(function: str, names: Iterable[str], known: Iterable[str]) -> TypeError:
    """The error for keywords that a function does not take; to be raised.

    Args:
        function: its name.
        names: what was passed; the first is told.
        known: what it takes.

    Example:
        >>> raise unknown("info_nce", ["label_smoothing"], ["temperature"])
        Traceback (most recent call last):
            ...
        TypeError: info_nce: unknown option 'label_smoothing'; ctloss.objectives.label_smoothing(c, mean_logits, \
smoothing) has it; its options are temperature
    """
    name, taken = next(iter(names)), sorted(known)
    advice = ELSEWHERE.get(name, "").format(name=name)
    # What it does not have either is no advice.
    helps = advice and all(option in taken for option in re.findall(r"(?<![.(\w])(\w+)=", advice))
    instead = f"{advice}; " if helps else ""
    return TypeError(f"{function}: unknown option {name!r}; {instead}its options are {', '.join(taken)}")


def unknown_to(function: Callable[..., Any], names: Iterable[str], name: str | None = None) -> TypeError:
    """The same for a function whose signature says what it takes by name; ``name`` is what users call it by."""
    taken = inspect.signature(function).parameters.values()
    known = [one.name for one in taken if one.kind is inspect.Parameter.KEYWORD_ONLY]
    return unknown(name or function.__name__, names, known)


def only(function: Function) -> Function:
    """Leave the keywords that a function takes in order to refuse them out of its signature.

    The function itself stays as it is: no call is slower, and compilers see no wrapper.
    """
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return function
