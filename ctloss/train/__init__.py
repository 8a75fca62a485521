# ruff: noqa: E402
"""Pretraining with ctloss: parallel text in, an aligned multilingual encoder out.

``python -m ctloss.train`` runs it from the command line, :func:`pretrain` from Python:

    from ctloss.train import pretrain, tiny

    pretrain(tiny().override(batch_size=32), "runs/tiny")
"""

from ..shared.extra import require_extra

require_extra(
    "train",
    [
        *("accelerate", "datasets", "huggingface_hub", "langcodes", "matplotlib", "numpy", "pyarrow", "safetensors"),
        *("sklearn", "stopwordsiso", "tensorboard", "tokenizers", "tqdm", "transformers"),
    ],
)

from ..shared.command import Stopped
from .model.encoder import CCEEncoder
from .prepared.build import prepare
from .prepared.folder import Prepared, open_prepared
from .recipe import Recipe, RecipeError, paper, tiny
from .run import Results, pretrain
from .stops import DivergedError, SavingError

__all__ = [
    "CCEEncoder",
    "DivergedError",
    "Prepared",
    "Recipe",
    "RecipeError",
    "Results",
    "SavingError",
    "Stopped",
    "open_prepared",
    "paper",
    "prepare",
    "pretrain",
    "tiny",
]
