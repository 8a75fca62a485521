"""How an encoder's outputs become vectors, as an option says or as the model's own files say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

Pooling = Literal["layer", "mean", "avg-first-last", "cls", "model"]
# Every pooling but the model's own.
OTHERS = ", ".join(get_args(Pooling)[:-1])
# Where sentence-transformers has kept the settings of its first module.
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class Method:
    """How an encoder's outputs become vectors.

    Args:
        pooling: one of :class:`ctloss.evaluate.Encoder`'s, but ``"pooler"`` in place of ``"model"``.
        layer: for ``"layer"``.
        layer_weights: of each of hidden_states, if tokens are their weighted mean rather than the last of them.
        after: what is applied to the pooled vectors.
        width: of the vectors, if ``after`` changes it.
        max_length: the most tokens that the model's files name.
        lower_case: whether the text is lower-cased first.
        prompt: text before every sentence.
        about: the method in words, with digests of its weights: two that differ are called differently.
    """

    pooling: str
    layer: int | None = None
    layer_weights: tuple[float, ...] = ()
    after: nn.Module | None = None
    width: int | None = None
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    about: str = ""

    def states(self, output: Any) -> Tensor:
        """Returns the hidden states that are pooled, float32 (rows, length, H), of what a model returned."""
        states = output.hidden_states
        if self.layer_weights:
            if len(states) != len(self.layer_weights):
                raise ValueError(
                    f"expected a weight for each of {len(states)} hidden states, got {len(self.layer_weights)} in "
                    f"1_WeightedLayerPooling; choose one of {OTHERS}"
                )
            chosen = [(weight, state) for weight, state in zip(self.layer_weights, states, strict=True) if weight]
            return sum(weight * state.float() for weight, state in chosen) / sum(weight for weight, _ in chosen)  # type: ignore[return-value]
        if self.pooling == "avg-first-last":
            return states[1].float() + states[-1].float()
        if self.pooling == "layer" and self.layer is not None:
            return states[self.layer].float()
        return states[-1].float()

    def vectors(self, output: Any, mask: Tensor) -> Tensor:
        """Returns the sentences' vectors, float32 (rows, width).

        Args:
            output: what the model returned, with ``hidden_states`` (or ``pooler_output`` for ``"pooler"``).
            mask: 1 at tokens and 0 at the padding after them, (rows, length).
        """
        if self.pooling == "pooler":
            found = output.pooler_output.float()
        elif self.pooling == "cls":
            found = self.states(output)[:, 0]
        else:
            states = self.states(output)
            weights = mask.to(states.dtype).unsqueeze(2)
            found = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return found if self.after is None else self.after(found)


def own_method(name: str) -> Method:
    """Returns how a model's own files say that vectors are made; by its trained pooler if they say nothing.

    They are ``cce.json``, as ctloss.train writes it, or else those of sentence-transformers: a Transformer, perhaps
    WeightedLayerPooling, then Pooling by mean or first token, then any number of Dense and Normalize. A model without a
    name has no files.

    Raises:
        ValueError: they name something else, which would be left out, or lack the weights of a module.
    """
    files = _Files(name)
    ours = files.read("cce.json")
    if ours is not None:
        return Method(_known(name, str(ours.get("pooling"))), about=str(ours.get("pooling")))
    modules = files.read("modules.json", list)
    if modules is None:
        pooling = files.read("1_Pooling/config.json")
        modules = [] if pooling is None else [{"type": "Transformer", "path": ""}, _module("1_Pooling")]
    if not modules:
        return Method("pooler", about="pooler")
    return _read_modules(files, [(_kind(module), str(module.get("path", ""))) for module in modules])


class _Files:
    """The files of a model, by its name on the hub or its folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def path(self, file: str) -> Path | None:
        from transformers.utils.hub import cached_file

        if not self.name:
            return None
        found = cached_file(
            self.name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return None if found is None else Path(found)

    def read(self, file: str, kind: type = dict) -> Any:
        path = self.path(file)
        if path is None:
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected JSON, got something else ({error}); fetch the model again") from error
        parts = found if isinstance(found, list) else [found]
        wanted = isinstance(found, kind) and all(isinstance(part, dict) for part in parts)
        if not wanted:
            raise ValueError(f"{path}: expected settings, got {str(found)[:40]!r}; fetch the model again")
        return found

    def settings(self, file: str) -> dict[str, Any]:
        found: dict[str, Any] = self.read(file) or {}
        return found

    def weights(self, folder: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path(f"{folder}/model.safetensors")
        if path is None:
            raise ValueError(
                f"expected the weights of {folder} as safetensors, got {self.name!r} without "
                f"{folder}/model.safetensors; convert them where you trust its pickled weights (load the model with "
                f"SentenceTransformer, write it with save_pretrained), or choose one of {OTHERS}"
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: expected whole weights, got others ({error}); fetch the model again") from error


def _module(path: str) -> dict[str, str]:
    return {"type": f"sentence_transformers.models.{path.partition('_')[2]}", "path": path}


def _kind(module: Any) -> str:
    # Its package has moved between versions; a type from elsewhere is code that comes with the model.
    kind = str(module.get("type", "")) if isinstance(module, dict) else ""
    ours = kind.startswith("sentence_transformers.") or kind == "Transformer"
    return kind.rpartition(".")[2] if ours else kind or "a module without a type"


def _known(name: str, pooling: str) -> str:
    if pooling not in ("mean", "cls", "avg-first-last"):
        raise ValueError(
            f"expected {name!r} to be pooled by mean, cls or avg-first-last, got {pooling!r} in its files; "
            f"choose one of {OTHERS}"
        )
    return pooling


def _refused(files: _Files, got: str) -> ValueError:
    return ValueError(
        f"expected {files.name!r} to consist of Transformer, perhaps WeightedLayerPooling, Pooling, and then Dense or "
        f"Normalize, got {got} in its modules.json; without it the vectors would be others: choose one of {OTHERS}, "
        "or another model"
    )


def _read_modules(files: _Files, modules: list[tuple[str, str]]) -> Method:
    kinds = [kind for kind, _ in modules]
    for kind in kinds:
        if kind not in ("Transformer", "WeightedLayerPooling", "Pooling", "Dense", "Normalize"):
            raise _refused(files, kind)
    start = [kind for kind in kinds if kind not in ("Dense", "Normalize")]
    if start not in (["Transformer", "Pooling"], ["Transformer", "WeightedLayerPooling", "Pooling"]) or (
        kinds[: len(start)] != start
    ):
        raise _refused(files, ", ".join(kinds))
    if modules[0][1] != "":
        raise _refused(files, f"its transformer in the folder {modules[0][1]}")
    transformer = _transformer(files)
    weights = _layer_weights(files, modules[1][1]) if "WeightedLayerPooling" in kinds else ()
    pooling = _pooling(files, modules[len(start) - 1][1])
    stages, names, width = [], [], None
    for kind, path in modules[len(start) :]:
        if kind == "Dense":
            stage, width = _dense(files, path)
            names.append(f"{path} {_digest(stage)}")
        else:
            stage = _Normalize()
            names.append("Normalize")
        stages.append(stage)
    prompts = files.settings("config_sentence_transformers.json")
    default = prompts.get("default_prompt_name")
    prompt = str((prompts.get("prompts") or {}).get(default, "")) if default else ""
    if prompt and not files.settings(f"{modules[len(start) - 1][1]}/config.json").get("include_prompt", True):
        raise _refused(files, "a prompt that is left out of the mean")
    about = [
        pooling,
        *(["of hidden states weighted " + " ".join(f"{weight:g}" for weight in weights)] if weights else []),
        *names,
        *(f"{key} {value}" for key, value in transformer.items() if value),
        *([f"prompt {prompt!r}"] if prompt else []),
    ]
    after = nn.Sequential(*stages) if stages else None
    return Method(
        pooling,
        layer_weights=weights,
        after=None if after is None else after.requires_grad_(False),
        width=width,
        prompt=prompt,
        about=", ".join(about),
        **transformer,
    )


def _transformer(files: _Files) -> dict[str, Any]:
    settings = next((found for file in TRANSFORMER_FILES if (found := files.settings(file))), {})
    task, output = settings.get("transformer_task", "feature-extraction"), settings.get("module_output_name")
    if task != "feature-extraction" or output not in (None, "token_embeddings"):
        raise _refused(files, f"a transformer for {task} that gives {output}")
    return {"max_length": settings.get("max_seq_length"), "lower_case": bool(settings.get("do_lower_case"))}


def _layer_weights(files: _Files, path: str) -> tuple[float, ...]:
    settings, weights = files.settings(f"{path}/config.json"), files.weights(path).get("layer_weights")
    if weights is None or weights.dim() != 1 or not weights.isfinite().all() or not float(weights.sum()):
        raise ValueError(f"expected layer_weights with a sum in {path} of {files.name!r}, got none; fetch it again")
    return (0.0,) * int(settings.get("layer_start", 4)) + tuple(weights.tolist())


def _pooling(files: _Files, path: str) -> str:
    settings = files.settings(f"{path}/config.json")
    chosen = [key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True and "mode" in key]
    pooling = settings.get("pooling_mode", "+".join(chosen))
    pooling = "+".join(pooling) if isinstance(pooling, list) else str(pooling)
    return _known(files.name, {"mean_tokens": "mean", "cls_token": "cls"}.get(pooling, pooling))


class _Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=1)


def _dense(files: _Files, path: str) -> tuple[nn.Module, int]:
    settings = files.settings(f"{path}/config.json")
    read, written = (settings.get(f"module_{way}_name") or "sentence_embedding" for way in ("input", "output"))
    if settings.get("use_residual") or {read, written} != {"sentence_embedding"}:
        raise _refused(files, f"{path} with a residual connection or for something other than the sentence's vector")
    weights = files.weights(path)
    weight, bias = weights.get("linear.weight"), weights.get("linear.bias")
    there = {"linear.weight"} | ({"linear.bias"} if settings.get("bias", True) else set())
    shape = (settings.get("out_features"), settings.get("in_features"))
    if weights.keys() != there or weight is None or tuple(weight.shape) != shape:
        raise ValueError(
            f"expected {', '.join(sorted(there))} of shape {shape} in {path} of {files.name!r}, got "
            f"{ {name: tuple(value.shape) for name, value in weights.items()} }; fetch the model again"
        )
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in weights.items()})
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError(f"expected finite weights, got NaN or infinity in {path} of {files.name!r}; fetch it again")
    return nn.Sequential(linear, _activation(files, path, settings)), weight.shape[0]


def _activation(files: _Files, path: str, settings: Mapping[str, Any]) -> nn.Module:
    name = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    place, _, kind = name.rpartition(".")
    if place == "torch.nn.modules.activation" or name == "torch.nn.modules.linear.Identity":
        try:
            return getattr(nn, kind)()  # type: ignore[no-any-return]
        except (AttributeError, TypeError):
            pass
    raise _refused(files, f"{path} with the activation {name}")


def _digest(module: nn.Module) -> str:
    total = hashlib.sha256(str(module).encode())
    for value in module.state_dict().values():
        total.update(value.contiguous().numpy().tobytes())
    return total.hexdigest()[:12]
