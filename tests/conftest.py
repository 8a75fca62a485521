"""Settings of the test processes, made before anything reads them, and a fixture that many tests use."""

import os
import shlex
import subprocess
import sysconfig

# libgomp reads this while torch is loaded. Threads that spin while they wait slow down everything else on the machine:
# other test processes, and the commands that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Triton reads this: without a GPU its kernels run under the interpreter.
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
# For repeats with the arithmetic of other processors.
settings.register_profile(
    "short",
    deadline=None,
    derandomize=True,
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=10_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# GCC before 12 does not have it.
PROBE = """
typedef float Floats __attribute__((vector_size(16)));
Floats turned(Floats v) { return __builtin_shufflevector(v, v, 1, 2, 3, 0); }
"""


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """The C++ compiler of an installation, if it knows the vectors that the compiled kernels are written in."""
    command = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
    program = tmp_path_factory.mktemp("probe") / "probe.cpp"
    program.write_text(PROBE)
    try:
        done = subprocess.run([command, "-c", program, "-o", os.devnull], capture_output=True, check=False)
    except OSError:
        return None
    return command if done.returncode == 0 else None


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every tensor from ``torch.empty`` and its relatives with NaN, so that reading unwritten memory shows."""

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
