"""Set before anything imports triton: without a GPU its kernels run under the interpreter."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=10_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every tensor that ``torch.empty`` and its kin hand out with NaN, so that reading one unwritten shows."""

    def poison(name: str, owner: object) -> None:
        original = getattr(owner, name)

        def filled(*args: object, **kwargs: object) -> torch.Tensor:
            tensor: torch.Tensor = original(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            return tensor

        monkeypatch.setattr(owner, name, filled)

    for name in ("empty", "empty_like", "empty_strided"):
        poison(name, torch)
    poison("new_empty", torch.Tensor)
