"""Imports point one way: reference and kernels know torch alone, ctloss joins them, training uses what is public."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import ctloss
import ctloss.evaluate

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULE_OF = {"scikit-learn": "sklearn", "faiss-cpu": "faiss"}


def libraries(extra: str) -> frozenset[str]:
    """What an extra installs is what its layer may import, so neither can lack anything of the other."""
    names = (re.split("[^a-z0-9_-]", wanted)[0] for wanted in PROJECT["optional-dependencies"][extra])
    return frozenset(MODULE_OF.get(name, name) for name in names) | {"torch"}


TRAINING_LIBRARIES, EVALUATION_LIBRARIES = libraries("train"), libraries("evaluate")


@dataclass(frozen=True)
class Layer:
    """Modules below ``name`` import the standard library, ``libraries``, ours below ``ours``, public names if so."""

    name: str
    libraries: frozenset[str]
    ours: tuple[str, ...]
    public: bool = False


SHARED_BY_PATHS = ("ctloss.kernels.problem", "ctloss.kernels.sigmoid")
# The first layer whose name holds the module is the one that counts: the narrow ones come first.
LAYERS = (
    Layer("ctloss.reference", frozenset({"torch"}), ("ctloss.reference",)),
    Layer("ctloss.kernels.torch_path", frozenset({"torch"}), ("ctloss.kernels.torch_path", *SHARED_BY_PATHS)),
    Layer(
        "ctloss.kernels.triton_path",
        frozenset({"torch", "triton"}),
        ("ctloss.kernels.triton_path", *SHARED_BY_PATHS),
    ),
    Layer("ctloss.kernels", frozenset({"torch"}), ("ctloss.kernels",)),
    Layer("ctloss.train", TRAINING_LIBRARIES, ("ctloss.train", "ctloss.command"), public=True),
    Layer("ctloss.evaluate", EVALUATION_LIBRARIES, ("ctloss.evaluate", "ctloss.command"), public=True),
    # typing_extensions comes with torch, and is imported for type checkers only.
    Layer("ctloss", frozenset({"torch", "typing_extensions"}), ("ctloss",)),
)
ABOVE_THE_CORE = ("ctloss.train", "ctloss.evaluate")


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> Layer:
    return next(layer for layer in LAYERS if below(module, layer.name))


def module_name(path: Path) -> tuple[str, bool]:
    """The dotted name a file is imported by, and whether it is a package."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("kernels", "reference"):
        parts.insert(0, "ctloss")
    package = parts[-1] == "__init__"
    return ".".join(parts[:-1] if package else parts), package


def imported(source: str, module: str, package: bool) -> list[str]:
    """Every dotted name the source imports, at any depth; ``from a import b`` counts as ``a.b``."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                kept = here[: len(here) - node.level + package]
                base = ".".join([*kept, base] if base else kept)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def forbidden(source: str, module: str, package: bool = False) -> list[str]:
    """The names the source imports although its layer may not."""
    layer = layer_of(module)
    found = []
    for name in imported(source, module, package):
        root = name.partition(".")[0]
        if root == "ctloss":
            allowed = any(below(name, ours) for ours in layer.ours)
            if layer.public:
                allowed |= name == "ctloss" or name.removeprefix("ctloss.") in ctloss.__all__
            if layer.name == "ctloss":
                allowed &= not any(below(name, above) for above in ABOVE_THE_CORE)
        else:
            allowed = root in sys.stdlib_module_names or root in layer.libraries
        if not allowed:
            found.append(name)
    return found


def sources() -> list[Path]:
    folders = [ROOT / "ctloss", ROOT / "kernels", ROOT / "reference"]
    files = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    return sorted(files)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    module, package = module_name(path)
    assert forbidden(path.read_text(encoding="utf-8"), module, package) == []


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("ctloss.reference.eager", "import numpy", ["numpy"]),
        ("ctloss.reference.eager", "from ..kernels.problem import Problem", ["ctloss.kernels.problem.Problem"]),
        ("ctloss.reference.eager", "import torch\nfrom .loops import log_ratios", []),
        ("ctloss.kernels.torch_path.engine", "def run():\n    import triton", ["triton"]),
        ("ctloss.kernels.torch_path.engine", "from ..triton_path import engine", ["ctloss.kernels.triton_path.engine"]),
        ("ctloss.kernels.triton_path.engine", "from ..problem import Problem\nimport triton.language as tl", []),
        ("ctloss.kernels.triton_path.engine", "from ctloss import checks", ["ctloss.checks"]),
        ("ctloss.losses", "from ctloss.train import recipe", ["ctloss.train.recipe"]),
        ("ctloss.losses", "import kernels.problem", ["kernels.problem"]),
        ("ctloss.losses", "from .kernels.torch_path import engine\nfrom . import checks", []),
        ("ctloss.train.objective", "from ctloss import cz_nce\nimport transformers", []),
        ("ctloss.train.objective", "from ctloss.dispatch import choose", ["ctloss.dispatch.choose"]),
        ("ctloss.train.objective", "from .. import ops", ["ctloss.ops"]),
        ("ctloss.evaluate.mining", "import faiss\nfrom .score import Score\nfrom ctloss import cz_nce", []),
        ("ctloss.evaluate.mining", "from ctloss.train import Recipe", ["ctloss.train.Recipe"]),
        ("ctloss.train.probe", "import faiss", ["faiss"]),
    ],
)
def test_the_rule_itself(module: str, source: str, caught: list[str]) -> None:
    assert forbidden(source, module) == caught


@pytest.mark.parametrize(
    # Trainer itself needs accelerate, and its TensorBoard callback tensorboard.
    ("part", "wanted", "others_need"),
    [
        ("train", TRAINING_LIBRARIES, {"accelerate", "tensorboard"}),
        ("evaluate", EVALUATION_LIBRARIES, {"accelerate"}),
    ],
    ids=["train", "evaluate"],
)
def test_extra_is_used(part: str, wanted: frozenset[str], others_need: set[str]) -> None:
    files = [path for path in sources() if path.is_relative_to(ROOT / "ctloss" / part)]
    used = {name.partition(".")[0] for path in files for name in imported(path.read_text(encoding="utf-8"), "", False)}
    assert wanted - used <= others_need


def test_benchmarks_use_public_names() -> None:
    """Benchmarks time what users call and measure errors against the float64 definitions.

    Only the ahead-of-time compilation, the count of flash, which are about the kernels themselves, and the race of the
    kernels' choices, which has to patch them, look inside.
    """
    inside = {ROOT / "benchmarks" / name for name in ("aot.py", "aot_calls.py", "flash.py", "gpu_choices.py")}
    for path in sorted(set((ROOT / "benchmarks").rglob("*.py")) - inside):
        module, package = module_name(path)
        ours = [name for name in imported(path.read_text(encoding="utf-8"), module, package) if below(name, "ctloss")]
        hidden = [
            name
            for name in ours
            if name != "ctloss"
            and name.removeprefix("ctloss.") not in ctloss.__all__
            and not below(name, "ctloss.reference")
            and not below(name, "ctloss.train")
            and name.removeprefix("ctloss.evaluate.") not in {"ctloss.evaluate", *ctloss.evaluate.__all__}
        ]
        assert hidden == [], path


def test_kernels_stays_a_namespace_folder() -> None:
    """An ``__init__.py`` there would shadow the distribution named ``kernels`` that transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
