"""Hugging Face encoders and their tokenizers, from a folder or by name; those that would compute nonsense are refused.

Nothing is unpickled: weights are read from safetensors only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .text import home_path

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Model types that number positions from after the padding token's id, as RoBERTa does, besides those named after it.
AS_ROBERTA = (
    *("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "xmod"),
)


def read_config(name: str | Path) -> PreTrainedConfig:
    """Returns the configuration of an encoder, by name or folder.

    Raises:
        ValueError: there is no such model, or it is no encoder.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(home_path(name)))
    except Exception as error:  # Checks of a configuration's values raise classes of their own.
        raise ValueError(
            f"expected the name or folder of a Hugging Face encoder, got {str(name)!r} ({_first_line(error)}); "
            "check it, and the connection if it is a name"
        ) from error
    both = _is_encoder_decoder(config)
    if both or not hasattr(config, "hidden_size"):
        raise ValueError(
            f"expected a transformer encoder, got {str(name)!r} ({config.model_type}), which is "
            f"{'an encoder-decoder or half of one' if both else 'none'}; choose another model"
        )
    return config


def positions(config: PreTrainedConfig) -> int | None:
    """Returns how many wordpieces, special tokens included, an encoder takes at most; None if it takes any number."""
    most = getattr(config, "max_position_embeddings", None)
    # A configuration without a limit has no such entry, or -1.
    if not most or most < 0:
        return None
    if "roberta" in config.model_type or config.model_type in AS_ROBERTA:
        most -= (config.pad_token_id or 0) + 1
    return most


def usual_length(config: PreTrainedConfig) -> int:
    """Returns the wordpieces at which sentences are cut where nobody says otherwise: what the encoder takes, or 512."""
    return min(positions(config) or 512, 512)


def load_tokenizer(name: str | Path, *, needs: Sequence[str] = (), **options: Any) -> PreTrainedTokenizerBase:
    """Returns the fast tokenizer of a model, by the model's name or folder.

    Args:
        needs: the special tokens that it must have, of ``"pad"``, ``"mask"``, ``"cls"``, ``"sep"`` and ``"unk"``.
        options: of ``AutoTokenizer.from_pretrained``.

    Raises:
        ValueError: there is no tokenizer, or it is not a fast one, or it has no vocabulary or not the tokens needed.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(home_path(name)), **options)
    except Exception as error:  # The tokenizers library raises no other class.
        raise ValueError(
            f"expected a tokenizer with the model, got {str(name)!r} without one ({_first_line(error)}); "
            "save the model's own tokenizer there"
        ) from error
    check_fast(tokenizer)
    # Without its files transformers makes up a tokenizer that knows only special tokens.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ValueError(
            f"expected a tokenizer with the model, got {str(name)!r} without a vocabulary; "
            "save the model's own tokenizer there"
        )
    lacking = [token for token in needs if getattr(tokenizer, f"{token}_token_id") is None]
    if lacking:
        raise ValueError(
            f"expected a tokenizer with the special tokens {', '.join(needs)}, got that of {str(name)!r} without "
            f"{', '.join(lacking)}; choose a masked language model, or add the token to tokenizer and model"
        )
    return tokenizer


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that does not tell which word a wordpiece belongs to.

    Raises:
        ValueError: it is not one of the tokenizers library.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"expected a fast tokenizer, which tells where words are, got {type(tokenizer).__name__}; load it with "
            "AutoTokenizer, or choose another encoder"
        )


def check_inputs(
    name: str | Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Refuses a tokenizer of more tokens than an encoder has embeddings, and inputs longer than it has positions for.

    Raises:
        ValueError: with the most that the encoder takes.
    """
    rows = getattr(config, "vocab_size", None)
    if rows and len(tokenizer) > rows:
        raise ValueError(
            f"expected a tokenizer of at most {rows} tokens, as many as {str(name)!r} has embeddings, got one of "
            f"{len(tokenizer)}; save the model's own tokenizer there"
        )
    most = positions(config)
    if most and max_length > most:
        raise ValueError(
            f"expected max_length at most {most}, the wordpieces that {str(name)!r} takes, got {max_length}; lower it"
        )


def load_encoder(name: str | Path, *, mlm: bool = False, pooler: bool = False) -> PreTrainedModel:
    """Returns a Hugging Face encoder in float32, without heads or with the one for masked language modelling.

    An MLM head that its files lack is drawn from torch's generator, with a warning. ``mlm`` and ``pooler`` ask for that
    part of the model; they exclude each other.

    Raises:
        ValueError: as :func:`load_with_head`, or the weights of a pooler that is wanted are missing, or the model's MLM
            head is of no known kind.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModel, AutoModelForMaskedLM

    config = read_config(name)
    if mlm:
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise _no_mlm_head(config.model_type)
        model, missing = _read(name, AutoModelForMaskedLM)
        mlm_head(model)
        own = _below_head(model, missing)
        if set(missing) - set(own):
            warnings.warn(f"{str(name)!r} has no MLM head: it starts from random numbers", stacklevel=2)
        missing = own
    else:
        try:
            model, missing = _read(name, AutoModel, add_pooling_layer=pooler)
        except TypeError:  # The model's class knows no such option.
            model, missing = _read(name, AutoModel)
        missing = [part for part in missing if pooler or not _is_of_pooler(part)]
    return _checked(name, model, missing, "choose another pooling" if pooler else "choose another model")


def load_with_head(name: str | Path, model_class: Any, **options: Any) -> PreTrainedModel:
    """Returns an encoder with a head, in float32; a head or pooler that its files lack is drawn from torch's generator.

    Args:
        name: name or folder.
        model_class: the class of transformers that puts such a head on an encoder.
        options: of its ``from_pretrained``.

    Raises:
        ValueError: it is no encoder, has no weights as safetensors, or some that are missing, not finite, or of other
            shapes than the configuration's.
    """
    read_config(name)
    model, missing = _read(name, model_class, **options)
    return _checked(name, model, _below_head(model, missing), "choose another model, or save it whole")


def mlm_head(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what turns a model's last hidden states (k, H) into logits over the vocabulary (k, vocabulary).

    Raises:
        ValueError: its MLM head is of no known kind.
    """
    for name in ("cls", "lm_head", "predictions"):
        if hasattr(model, name):
            return getattr(model, name)  # type: ignore[no-any-return]
    if hasattr(model, "vocab_projector"):
        return lambda h: model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(h))))
    if hasattr(model, "head") and hasattr(model, "decoder"):
        return lambda h: model.decoder(model.head(h))
    raise _no_mlm_head(type(model).__name__)


def random_like(model: PreTrainedModel) -> PreTrainedModel:
    """Returns an encoder of the same kind and size with random weights, drawn from torch's generator."""
    try:
        return type(model)(model.config, add_pooling_layer=False)
    except TypeError:
        return type(model)(model.config)


def share_as_umask(folder: Path) -> None:
    """Gives the files in a folder that only their owner may read the mode that other new files get.

    The libraries that write weights make them as temporary files, which are private, and then rename them.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode & 0o777
        if path.is_file() and not path.is_symlink() and mode == 0o600:
            path.chmod(0o666 & ~umask)


@contextmanager
def quietly() -> Iterator[None]:
    """Silences transformers' progress bars for files, and its reports of weights left out or newly initialised."""
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


def _is_encoder_decoder(config: PreTrainedConfig) -> bool:
    # The encoder half of one, such as T5EncoderModel, says that it is not one, but AutoModel builds both halves.
    try:
        usual: Any = type(config)()
    except Exception:
        usual = config
    return any(getattr(one, "is_encoder_decoder", False) for one in (config, usual))


def _read(name: str | Path, model_class: Any, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """Returns a model and the names of its weights that the files lack."""
    from safetensors import SafetensorError

    try:
        with quietly():
            model, information = model_class.from_pretrained(
                str(home_path(name)), dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected an encoder with its weights as safetensors, got {str(name)!r} without "
            f"({_first_line(error)}); convert them: "
            "load the model where you trust its pickled weights, and write it with save_pretrained"
        ) from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"expected whole weights that fit the configuration, got {str(name)!r} with others "
            f"({_first_line(error)}); save the model again, without a head of other labels if it has one "
            "(load it with AutoModel, write it with save_pretrained)"
        ) from error
    return model, sorted(information["missing_keys"])


def _checked(name: str | Path, model: PreTrainedModel, missing: Sequence[str], advice: str) -> PreTrainedModel:
    if missing:
        raise ValueError(
            f"expected all weights of {type(model).__name__}, got {str(name)!r} without {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}, which would be random numbers; {advice}"
        )
    broken = next((part for part, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if broken is not None:
        raise ValueError(
            f"expected finite weights, got NaN or infinity in {broken} of {str(name)!r}; its training diverged: "
            "take an earlier checkpoint"
        )
    if getattr(model.config, "pad_token_id", None) is None:
        # Padding is masked, so any token will do.
        model.config.pad_token_id = 0
    return model


def _below_head(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """Returns which missing weights are the encoder's own: not those of the head on it, nor of a pooler."""
    return [part for part in missing if part.startswith(f"{model.base_model_prefix}.") and not _is_of_pooler(part)]


def _is_of_pooler(part: str) -> bool:
    return "pooler" in part.split(".")


def _no_mlm_head(kind: str) -> ValueError:
    return ValueError(
        f"expected an MLM head as in BERT, RoBERTa, ALBERT, DistilBERT or ModernBERT, got {kind}; set alpha to 0 to "
        "train without masked language modelling"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
