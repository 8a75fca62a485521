"""Hugging Face encoders and their tokenizers, read from a folder or by name; what would score nonsense is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def read_config(name: str) -> PreTrainedConfig:
    """Returns the configuration of an encoder.

    Args:
        name: name or folder.

    Raises:
        ValueError: there is no such model, or it is no encoder.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the name or folder of a Hugging Face encoder, got {name!r} ({str(error).splitlines()[0]}); "
            "check it, and the connection if it is a name"
        ) from error
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise ValueError(f"expected a transformer encoder, got {name!r} ({config.model_type}); choose another")
    return config


def positions(config: PreTrainedConfig) -> int | None:
    """Returns how many wordpieces, special tokens included, an encoder takes at most; None if unlimited."""
    most = getattr(config, "max_position_embeddings", None)
    if most and ("roberta" in config.model_type or config.model_type in ("camembert", "mpnet", "xmod")):
        # RoBERTa and what follows it number positions from after the padding token's id.
        most -= (config.pad_token_id or 0) + 1
    return most if most and most > 0 else None


def load_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """Returns the tokenizer beside a model.

    Args:
        name: name or folder of the model.
        options: of ``AutoTokenizer.from_pretrained``.

    Raises:
        ValueError: it has none, or none that is fast.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # The tokenizers library raises no other class.
        raise ValueError(
            f"expected a tokenizer beside the model, got {name!r} without ({(str(error).splitlines() or [''])[0]}); "
            "save the model's own tokenizer there"
        ) from error
    check_fast(tokenizer)
    # Without its files transformers makes one up that knows special tokens alone.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ValueError(
            f"expected a tokenizer beside the model, got {name!r} without a vocabulary; "
            "save the model's own tokenizer there"
        )
    return tokenizer


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that does not tell of which word a wordpiece is.

    Raises:
        ValueError: it is none of the tokenizers library.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"expected a fast tokenizer, got {type(tokenizer).__name__}; load it with AutoTokenizer")


def load(name: str, *, pooler: bool = False) -> PreTrainedModel:
    """Returns a Hugging Face encoder in float32, without heads; nothing is unpickled.

    Args:
        name: name or folder.
        pooler: whether its pooler is wanted.

    Raises:
        ValueError: it is no encoder, has no weights as safetensors, or lacks some of them.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    read_config(name)

    def read(**options: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return AutoModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )

    try:
        with quietly():
            try:
                model, information = read(add_pooling_layer=pooler)
            except TypeError:  # The model's class knows no such option.
                model, information = read()
    except OSError as error:
        raise ValueError(
            f"expected an encoder with its weights as safetensors, got {name!r} without "
            f"({str(error).splitlines()[0]}); convert them: "
            "load the model where you trust its pickled weights, and write it with save_pretrained"
        ) from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"expected whole weights that fit the configuration, got {name!r} ({str(error).splitlines()[0]}); "
            "fetch or save the model again"
        ) from error
    missing = [part for part in information["missing_keys"] if pooler or not _is_of_pooler(part)]
    refuse_missing(name, model, missing, "choose another pooling" if pooler else "choose another model")
    return model


def missing_below_head(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """Returns which missing weights are the encoder's own: not those of the head on it, nor of a pooler."""
    return [part for part in missing if part.startswith(f"{model.base_model_prefix}.") and not _is_of_pooler(part)]


def refuse_missing(name: str, model: PreTrainedModel, missing: Iterable[str], advice: str) -> None:
    """Refuses a model that was read without weights that it needs.

    Raises:
        ValueError: there are missing ones.
    """
    parts = sorted(missing)
    if parts:
        raise ValueError(
            f"expected all weights of {type(model).__name__}, got {name!r} without {', '.join(parts[:3])}"
            f"{' and others' if len(parts) > 3 else ''}, which would be random numbers; {advice}"
        )


def _is_of_pooler(part: str) -> bool:
    return "pooler" in part.split(".")


@contextmanager
def quietly() -> Iterator[None]:
    """Silences transformers' bars of every file, and its lists of heads left out; who reads a model checks it."""
    from transformers.utils import logging

    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
