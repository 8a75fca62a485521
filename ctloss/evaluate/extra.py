"""Refuses to be imported where packages of the extra ``evaluate`` are missing; imported before all that needs them."""

from importlib.util import find_spec

PACKAGES = (
    *("accelerate", "datasets", "faiss", "matplotlib", "numpy", "safetensors", "seqeval", "sklearn", "tqdm"),
    "transformers",
)

missing = [name for name in PACKAGES if find_spec(name) is None]
if missing:
    raise ModuleNotFoundError(
        f"ctloss.evaluate: expected the packages of its extra, got none named {', '.join(missing)}; "
        "pip install 'ctloss[evaluate]'",
        name=missing[0],
    )
