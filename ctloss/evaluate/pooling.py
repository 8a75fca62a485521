"""From hidden states to a sentence's vector."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

POOLINGS = ("layer", "mean", "avg-first-last", "cls", "model")


def states_wanted(output: Any, pooling: str, layer: int | None) -> Tensor:
    """Returns the hidden states that a pooling looks at, float32 (rows, length, H)."""
    states = output.hidden_states
    if pooling == "avg-first-last":
        return states[1].float() + states[-1].float()
    if pooling == "layer" and layer is not None:
        return states[layer].float()
    return states[-1].float()


def pooled(output: Any, mask: Tensor, pooling: str, layer: int | None) -> Tensor:
    """Returns the sentences' vectors, float32 (rows, H).

    Args:
        output: what the model returned, with ``hidden_states`` (or ``pooler_output`` for ``"pooler"``).
        mask: 1 at tokens and 0 at the padding after them, (rows, length).
        pooling: ``"layer"``, ``"mean"``, ``"avg-first-last"``, ``"cls"`` or ``"pooler"``.
        layer: index into the hidden states for ``"layer"``.
    """
    if pooling == "pooler":
        return output.pooler_output.float()
    states = states_wanted(output, pooling, layer)
    if pooling == "cls":
        return states[:, 0]
    weights = mask.to(states.dtype).unsqueeze(2)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def own_pooling(name: str) -> str:
    """Returns the pooling that a model's own files name; ``"pooler"``, its trained pooler, if they name none.

    Args:
        name: name or folder of a Hugging Face model; empty for one without.

    Raises:
        ValueError: they name a pooling that is none of those known here.
    """
    from transformers.utils.hub import cached_file

    def settings(file: str) -> dict[str, Any] | None:
        if not name:
            return None
        path = cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if path is None:
            return None
        with open(path, encoding="utf-8") as opened:
            return json.load(opened)

    ours = settings("cce.json")
    if ours is not None:
        return _known(str(ours.get("pooling")), name)
    theirs = settings("1_Pooling/config.json")
    if theirs is None:
        return "pooler"
    chosen = [key.removeprefix("pooling_mode_") for key, value in theirs.items() if value is True and "mode" in key]
    mode = str(theirs.get("pooling_mode", "+".join(chosen)))
    return _known({"mean_tokens": "mean", "cls_token": "cls"}.get(mode, mode), name)


def _known(pooling: str, name: str) -> str:
    if pooling not in ("mean", "cls", "avg-first-last"):
        raise ValueError(
            f"expected {name!r} to be pooled by mean, cls or avg-first-last, got {pooling!r} in its files; "
            f"choose one of {', '.join(POOLINGS[:-1])}"
        )
    return pooling
