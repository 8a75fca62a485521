"""Imports point one way, without circles: reference and kernels, ctloss, ctloss.shared, train and evaluate, command."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ctloss
import ctloss.evaluate

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULE_OF = {"scikit-learn": "sklearn"}


def libraries(extra: str) -> frozenset[str]:
    """What an extra installs, which is what its layer may import; the shared layer, what both of them install."""
    names = (re.split("[^a-z0-9_-]", wanted)[0] for wanted in PROJECT["optional-dependencies"][extra])
    return frozenset(MODULE_OF.get(name, name) for name in names) | {"torch"}


TRAINING_LIBRARIES, EVALUATION_LIBRARIES = libraries("train"), libraries("evaluate")
SHARED_LIBRARIES = TRAINING_LIBRARIES & EVALUATION_LIBRARIES


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
        "ctloss.kernels.native",
        frozenset({"torch"}),
        ("ctloss.kernels.native", "ctloss.kernels.torch_path", *SHARED_BY_PATHS),
    ),
    Layer(
        "ctloss.kernels.triton_path.plan",
        frozenset({"torch"}),
        ("ctloss.kernels.triton_path.plan", "ctloss.kernels.triton_path.hopper", *SHARED_BY_PATHS),
    ),
    Layer(
        "ctloss.kernels.triton_path", frozenset({"torch", "triton"}), ("ctloss.kernels.triton_path", *SHARED_BY_PATHS)
    ),
    Layer("ctloss.kernels", frozenset({"torch"}), ("ctloss.kernels",)),
    Layer("ctloss.shared", SHARED_LIBRARIES, ("ctloss.shared",)),
    Layer("ctloss.train", TRAINING_LIBRARIES, ("ctloss.train", "ctloss.shared"), public=True),
    Layer(
        "ctloss.evaluate.__main__",
        EVALUATION_LIBRARIES,
        ("ctloss.evaluate", "ctloss.shared", "ctloss.integrations.mteb"),
        public=True,
    ),
    Layer("ctloss.evaluate", EVALUATION_LIBRARIES, ("ctloss.evaluate", "ctloss.shared"), public=True),
    # What other libraries take; each module imports the one that it is for.
    Layer(
        "ctloss.integrations.mteb",
        EVALUATION_LIBRARIES | {"mteb"},
        ("ctloss.evaluate.data", "ctloss.evaluate.models", "ctloss.shared"),
    ),
    Layer(
        "ctloss.integrations",
        frozenset(
            {"torch", "sentence_transformers", "numpy", "tqdm", "pytorch_metric_learning", "transformers", "datasets"}
        ),
        (
            "ctloss.integrations",
            "ctloss.core",
            "ctloss.contrast",
            "ctloss.losses",
            "ctloss.objectives",
            "ctloss.gradient_cache",
            "ctloss.sup_con",
            "ctloss.sig_lip",
        ),
        public=True,
    ),
    Layer(
        "ctloss.command",
        frozenset({"torch"}),
        ("ctloss.command", "ctloss.shared", "ctloss.train.__main__", "ctloss.evaluate.__main__"),
        public=True,
    ),
    Layer("ctloss.__main__", frozenset(), ("ctloss.command",)),
    # typing_extensions comes with torch, and is imported for type checkers only.
    Layer("ctloss", frozenset({"torch", "typing_extensions"}), ("ctloss",)),
)
ABOVE_THE_CORE = ("ctloss.shared", "ctloss.train", "ctloss.evaluate", "ctloss.integrations", "ctloss.command")


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


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
    layer = next(layer for layer in LAYERS if below(module, layer.name))
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


def is_public(name: str) -> bool:
    """Whether an imported name is one that users import."""
    package = "ctloss.evaluate" if below(name, "ctloss.evaluate") else "ctloss"
    return name == package or name.removeprefix(package + ".") in sys.modules[package].__all__


def sources(*folders: str) -> list[Path]:
    return sorted({path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")})


PACKAGE = sources("ctloss", "kernels", "reference")


def arrows(modules: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which of the modules each imports by name, at any depth; of a package by itself, its ``__init__``.

    Args:
        modules: source of each module, and whether it is a package.
    """
    found: dict[str, set[str]] = {}
    for module, (source, package) in modules.items():
        names = set(imported(source, module, package))
        found[module] = {target for name in names if (target := longest(name, modules)) is not None} - {module}
    return found


def longest(name: str, modules: Collection[str]) -> str | None:
    """The module that an imported name is, or is in."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, the first of them again at its end; none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
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
        ("ctloss.kernels.triton_path.engine", "from ctloss.core import checks", ["ctloss.core.checks"]),
        ("ctloss.kernels.triton_path.plan.layout", "from . import config\nimport triton", ["triton"]),
        ("ctloss.kernels.triton_path.plan.layout", "from ..tiles import x", ["ctloss.kernels.triton_path.tiles.x"]),
        ("ctloss.losses", "from ctloss.train import recipe", ["ctloss.train.recipe"]),
        ("ctloss.losses", "from .shared.files import locked", ["ctloss.shared.files.locked"]),
        ("ctloss.losses", "import kernels.problem", ["kernels.problem"]),
        ("ctloss.losses", "from .kernels.torch_path import engine\nfrom .core import checks", []),
        ("ctloss.train.model.objective", "from ctloss import cz_nce\nimport transformers", []),
        ("ctloss.train.model.objective", "from ctloss.core.plan import plan", ["ctloss.core.plan.plan"]),
        ("ctloss.train.model.objective", "from ...core import ops", ["ctloss.core.ops"]),
        ("ctloss.train.model.objective", "from ...shared.files import locked", []),
        (
            "ctloss.command.entry",
            "from ..train.__main__ import main\nfrom ..train.run import x",
            ["ctloss.train.run.x"],
        ),
        ("ctloss.command.bench", "from ctloss import cz_nce\nimport transformers", ["transformers"]),
        ("ctloss.evaluate.data.hub", "import datasets\nfrom .parallel import Corpora\nfrom ctloss import cz_nce", []),
        ("ctloss.evaluate.data.hub", "from ...train import Recipe", ["ctloss.train.Recipe"]),
        ("ctloss.evaluate.data.hub", "from ...shared.text import nfc", []),
        ("ctloss.train.text.words", "import seqeval", ["seqeval"]),
        ("ctloss.shared.vectors", "import numpy, seqeval, tensorboard", ["seqeval", "tensorboard"]),
        ("ctloss.shared.vectors", "from ..train import Recipe", ["ctloss.train.Recipe"]),
        ("ctloss.shared.vectors", "from ctloss import cz_nce", ["ctloss.cz_nce"]),
    ],
)
def test_the_rule_itself(module: str, source: str, caught: list[str]) -> None:
    assert forbidden(source, module) == caught


def read(paths: list[Path]) -> dict[str, tuple[str, bool]]:
    """Source of each module, and whether it is a package."""
    named = {path: module_name(path) for path in paths}
    return {module: (path.read_text(encoding="utf-8"), package) for path, (module, package) in named.items()}


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circle(arrows(read([*PACKAGE, *sources("benchmarks")]))) == []


def test_evaluation_can_be_surveyed() -> None:
    """Few files, few arrows between them, and few floors: a file stands one above the highest that it imports."""
    files = [path for path in sources("ctloss/evaluate") if path.name != "__init__.py"]
    graph = arrows(read(files))
    floor: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():
        floor[module] = 1 + max((floor[other] for other in graph[module]), default=0)
    assert len(graph) <= 26
    assert sum(map(len, graph.values())) <= 80
    assert max(floor.values()) <= 9


def test_circles_are_found() -> None:
    chain = {"p": ("from .a import x", True), "p.a": ("from . import b", False), "p.b": ("import os", False)}
    # ``from . import b`` is b; ``from . import x`` is the package, whose __init__ imports a.
    assert arrows(chain) == {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": set()}
    assert circle(arrows(chain)) == []
    assert set(circle(arrows(chain | {"p.b": ("def f():\n    from .a import y", False)}))) == {"p.a", "p.b"}
    assert set(circle(arrows(chain | {"p.b": ("from . import x", False)}))) == {"p", "p.a", "p.b"}


@pytest.mark.parametrize(
    # Trainer itself needs accelerate, and its TensorBoard callback tensorboard.
    ("part", "wanted", "others_need"),
    [("train", TRAINING_LIBRARIES, {"accelerate", "tensorboard"}), ("evaluate", EVALUATION_LIBRARIES, {"accelerate"})],
    ids=["train", "evaluate"],
)
def test_extra_is_used(part: str, wanted: frozenset[str], others_need: set[str]) -> None:
    files = sources(f"ctloss/{part}", "ctloss/shared")
    used = {name.partition(".")[0] for path in files for name in imported(path.read_text(encoding="utf-8"), "", False)}
    assert wanted - used <= others_need


def test_benchmarks_use_public_names() -> None:
    """Benchmarks time what users call and measure errors against the float64 definitions.

    Only the ahead-of-time compilation and the GPU run, which compile the kernels and race them against each other, look
    inside; the ranks, whose rows are sent on a way of the benchmark's choice, and whose blocks are timed alone; and the
    picture of the ring, which shows its schedule. The usual forms that they race are those of ``ctloss bench``.
    """
    open_rooms = ("ctloss.command", "ctloss.reference", "ctloss.shared", "ctloss.train")
    inside = {path for name in ("aot", "diagrams", "gpu", "ranks") for path in sources(f"benchmarks/{name}")}
    for path in sorted(set(sources("benchmarks")) - inside):
        module, package = module_name(path)
        ours = [name for name in imported(path.read_text(encoding="utf-8"), module, package) if below(name, "ctloss")]
        hidden = [name for name in ours if not (is_public(name) or any(below(name, room) for room in open_rooms))]
        assert hidden == [], path


def test_kernels_stays_a_namespace_folder() -> None:
    """An ``__init__.py`` there would shadow the distribution named ``kernels`` that transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


PLACES = dict(map(module_name, [*PACKAGE, *sources("benchmarks")]))
ON_TOP = ("ctloss.train", "ctloss.evaluate", "benchmarks")


def room_of(module: str) -> str:
    """What the page draws for a file: the folder that it stands in; on top of training, say, the file itself."""
    folder = module if PLACES[module] else module.rpartition(".")[0]
    return module if folder in ON_TOP else folder


def drawing() -> str:
    """The house, a line a room: what it imports of other rooms. In each part, a room stands above those it imports.

    The faces of packages hand names on for others; their arrows are left out, as is ``python -m ctloss``'s.
    """
    everything = [path for path in [*PACKAGE, *sources("benchmarks")] if path != ROOT / "ctloss/__main__.py"]
    files = read([path for path in everything if path.name != "__init__.py"])
    graph: dict[str, set[str]] = {}
    for module, (source, package) in files.items():
        room = room_of(module)
        found = (longest(name, PLACES) for name in imported(source, module, package))
        graph.setdefault(room, set()).update({room_of(target) for target in found if target is not None} - {room})
    floors = TopologicalSorter({room: sorted(graph[room]) for room in sorted(graph)}).static_order()
    rooms = [room for room in reversed(list(floors)) if room in graph]
    parts = [[room for room in rooms if below(room, part)] for part in reversed(ON_TOP)]
    parts.append([room for room in rooms if not any(below(room, part) for part in ON_TOP)])
    width = max(len(room.removeprefix("ctloss.")) for room in rooms) + 3

    def line(room: str) -> str:
        named = (other.removeprefix("ctloss.") for other in sorted(graph[room]))
        return f"{room.removeprefix('ctloss.'):{width}}{'  '.join(named)}".rstrip()

    return "\n\n".join("\n".join(map(line, part)) for part in parts)


def drawn(page: str) -> list[str]:
    """The blocks of a page between fences that name what a room imports, whatever else stands beside them."""
    return [
        block for block in re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "train.run  " in block
    ]


def test_the_page_draws_the_imports_as_they_are() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert drawn(page) == [drawing() + "\n"], f"the house is now\n\n{drawing()}"


def test_a_line_that_stands_twice_is_another_drawing() -> None:
    first, rest = drawing().split("\n", 1)
    assert drawn(f"text\n```\nan example\n```\n```\n{first}\n{rest}\n```\n") == [drawing() + "\n"]
    assert drawn(f"```\n{first}\n{first}\n{rest}\n```\n") != [drawing() + "\n"]
