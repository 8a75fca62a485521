"""Refuses to be imported where packages of the extra ``train`` are missing; imported before all that needs them."""

from importlib.util import find_spec

PACKAGES = (
    *("accelerate", "matplotlib", "numpy", "pyarrow", "safetensors", "sklearn", "stopwordsiso", "tensorboard"),
    *("tokenizers", "tqdm", "transformers"),
)

missing = [name for name in PACKAGES if find_spec(name) is None]
if missing:
    raise ModuleNotFoundError(
        f"ctloss.train: expected the packages of its extra, got none named {', '.join(missing)}; "
        "pip install 'ctloss[train]'",
        name=missing[0],
    )
