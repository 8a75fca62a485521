"""The trained encoder's folder as others read it: sentence-transformers' files beside Hugging Face's, and the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ...shared.files import write_atomically, writing_file
from ...shared.models import read_config, share_as_umask, usual_length
from ...shared.pictures import both

# Names that every version of sentence-transformers since 2 knows, and reads without a warning.
TYPES = "sentence_transformers.models."
# What a model consists of, whatever else the folder holds.
MODEL = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("cce.json", "cce_head.safetensors", "modules.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "[1-9]_*/config.json", "[1-9]_*/model.safetensors"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "spiece.model"),
    "sentencepiece*.model",
)
# What goes to the hub: no samples, checkpoints or logs.
PUBLIC = ("README.md", "results.json", *both("words.png"), *MODEL)


def export(folder: Path) -> None:
    """Adds to an encoder's folder what makes ``SentenceTransformer(folder)`` give the vectors of this package.

    The folder holds the encoder and its tokenizer as Hugging Face writes them. The vector of a sentence is

        mean_t h_1[t] + mean_t h_L[t] = 2 · mean_t (0·h_0[t] + 1·h_1[t] + 0·h_2[t] + … + 1·h_L[t]) / (1 + 1),

    a WeightedLayerPooling, which divides by the sum of its weights, a mean pooling, and a Dense layer that multiplies
    by 2. Cosines do not depend on the last. Files that only their owner could read get the usual mode.

    Raises:
        ValueError: the folder holds no encoder.
    """
    config = read_config(folder)
    width, layers = config.hidden_size, config.num_hidden_layers
    weights = torch.zeros(layers + 1)
    weights[1] = weights[layers] = 1
    transformer: dict[str, Any] = {
        "max_seq_length": usual_length(config),
        "do_lower_case": False,  # The tokenizer does it where the recipe says so.
        "config_args": {"output_hidden_states": True},
    }
    _write(folder / "sentence_bert_config.json", transformer)
    stages = [
        _stage(
            folder / "1_WeightedLayerPooling",
            {"word_embedding_dimension": width, "layer_start": 0, "num_hidden_layers": layers},
            {"layer_weights": weights},
        ),
        _stage(folder / "2_Pooling", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}),
        _stage(
            folder / "3_Dense",
            {
                "in_features": width,
                "out_features": width,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
            {"linear.weight": 2 * torch.eye(width)},
        ),
    ]
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}Transformer"}]
    for number, stage in enumerate(stages, start=1):
        kind = stage.partition("_")[2]
        modules.append({"idx": number, "name": str(number), "path": stage, "type": f"{TYPES}{kind}"})
    _write(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})
    # Written last: with it the folder counts as one of sentence-transformers.
    _write(folder / "modules.json", modules)
    share_as_umask(folder)


def push(
    folder: Path,
    repo_id: str,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
) -> str:
    """Uploads an exported folder to the Hugging Face hub: model, tokenizer, card and results, nothing else.

    Args:
        repo_id: ``"name"`` or ``"organisation/name"``; made if it does not exist.
        private: whether a repository that is made is private.
        revision: branch to upload to; None for the main one.
        token: of the hub; None for the one that ``hf auth login`` keeps or HF_TOKEN holds.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder holds no exported encoder, the name is none, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if not (folder / "modules.json").is_file():
        raise ValueError(f"expected the folder of a finished run, got {folder} without modules.json; finish the run")
    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model").repo_id
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(PUBLIC),
            revision=revision,
            commit_message="Encoder pretrained with ctloss",
        )
    except HFValidationError as error:
        raise ValueError(
            f"expected a name such as 'name' or 'organisation/name' on the hub, got {repo_id!r}; choose one"
        ) from error
    except Exception as error:  # The errors of connections are those of the library that the hub's is built on.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"expected to upload to {repo_id!r} on the Hugging Face hub, got {reason}; check the connection, the name "
            f"and the token ('hf auth login'). The model is whole in {folder}"
        ) from error
    return str(done)


def _stage(folder: Path, settings: dict[str, Any], weights: dict[str, torch.Tensor] | None = None) -> str:
    from safetensors.torch import save_file

    _write(folder / "config.json", settings)
    if weights is not None:
        with writing_file(folder / "model.safetensors") as partial:
            save_file(weights, partial, metadata={"format": "pt"})
    return folder.name


def _write(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")
