"""Wheel, source archive, plain and editable installs hold and expose the whole package; nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ctloss

ROOT = Path(__file__).resolve().parents[2]
# Seconds after which a command hangs: many times what the longest takes, for machines that are busy with other work.
HANGS = 1800
DATA = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "ctloss").rglob("*.*")
    if path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
)
NATIVE = "ctloss/kernels/native"
LIBRARY = f"{NATIVE}/_kernels.abi3.so"
IMPORT_ALL = (
    "import ctloss, ctloss.kernels.problem, ctloss.kernels.torch_path.engine, ctloss.kernels.triton_path.engine;"
    "import ctloss.kernels.native.engine, ctloss.reference, torch;"
    "print(ctloss.__file__);"
    "print(ctloss.explain(torch.eye(2), torch.eye(2)).path)"
)
# Which path takes a small batch, and why, after it did so.
EXPLAIN = """
import torch, ctloss
x = torch.randn(4, 8, requires_grad=True)
ctloss.cz_nce(x, torch.randn(4, 8)).backward()
assert x.grad.isfinite().all()
print(ctloss.explain(x, x))
"""
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
NO_KERNELS = {"CTLOSS_NATIVE": "0"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The standard output of a command, which must succeed, in an environment that leads to no other ctloss."""
    done = attempt(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def attempt(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same for a command that may fail."""
    ours = ("PYTHONPATH", "PYTHONHOME", "CTLOSS_NATIVE", "CTLOSS_SANITIZE")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


def expected_modules() -> list[str]:
    """Every module of the package, as a path in an archive."""
    found = {path.relative_to(ROOT) for path in (ROOT / "ctloss").rglob("*.py")}
    for name in ("kernels", "reference"):
        found |= {Path("ctloss") / path.relative_to(ROOT) for path in (ROOT / name).rglob("*.py")}
    return sorted(path.as_posix() for path in found)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked part of the tree, links kept as links, so that builds leave nothing behind here."""
    copy = tmp_path_factory.mktemp("checkout") / "ctloss"
    copy.mkdir()
    for name in (
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "MANIFEST.in",
        "SECURITY.md",
        "constraints.txt",
    ):
        shutil.copy(ROOT / name, copy)
    for name in ("ctloss", "kernels", "reference"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return copy


@pytest.fixture(scope="module")
def archives(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source archive and, built from it with its compiled kernels, the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=checkout)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """The python of a new virtual environment that sees this one's libraries but not its ctloss."""
    folder = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=tmp_path)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # Plain path lines: unlike site.addsitedir they do not run the other environment's own .pth files,
    # among which an editable install of ctloss may be.
    (site / "borrowed.pth").write_text(
        "".join(f"{path}\n" for path in dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib"))))
    )
    yield python
    shutil.rmtree(folder)


def install(python: Path, *what: str | Path, cwd: Path, **environment: str) -> None:
    """pip install without dependencies or build isolation: setuptools and torch are borrowed."""
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--force-reinstall", "--ignore-installed", "-q")
    run(python, "-m", "pip", "install", *flags, *what, cwd=cwd, **environment)


def test_wheel_holds_real_files(archives: Path, compiler: str | None) -> None:
    (wheel,) = archives.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        members = {info.filename: info for info in archive.infolist()}
    inside = [name for name in members if ".dist-info/" not in name]
    assert "ctloss/py.typed" in DATA
    compiled = [LIBRARY] if compiler is not None else []
    assert sorted(inside) == sorted([*expected_modules(), *DATA, f"{NATIVE}/_kernels.pyi", *compiled])
    links = [name for name, info in members.items() if (info.external_attr >> 16) & 0o170000 == 0o120000]
    assert links == []


def test_wheel_metadata(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
        scripts = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert scripts.split() == ["[console_scripts]", "ctloss", "=", "ctloss.command.entry:run"]
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert required == ["Requires-Dist: torch>=2.6"]
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "Author: The ctloss authors" in metadata
    assert metadata.count("Project-URL: ") == 4
    assert f"Version: {ctloss.__version__}\n" in metadata


def test_source_archive_holds_real_files(archives: Path) -> None:
    (source,) = archives.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        members = archive.getmembers()
    assert not any(member.issym() or member.islnk() for member in members)
    inside = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert set(expected_modules() + DATA) <= inside
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py", "constraints.txt"} <= inside
    assert {"CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"} <= inside
    of_kernels = {f"{NATIVE}/src/{path.name}" for path in (ROOT / "kernels/native/src").iterdir()}
    assert {f"{NATIVE}/src/{name}" for name in ("isa.cpp", "module.cpp", "simd.h")} <= of_kernels <= inside
    assert LIBRARY not in inside


def test_wheel_without_kernels_is_for_every_platform(checkout: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, checkout)
    run(*command, cwd=checkout, **NO_KERNELS)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY not in archive.namelist()


def test_install_without_a_compiler(checkout: Path, environment: Path, tmp_path: Path) -> None:
    """It succeeds, removes what an earlier build left, and says why another path runs, unless kernels are demanded."""
    library = checkout / LIBRARY
    library.write_bytes(b"of an earlier build")
    install(environment, "-e", checkout, cwd=tmp_path, **NO_COMPILER)
    assert not library.exists()
    reason, *_ = run(environment, "-c", EXPLAIN, cwd=tmp_path).splitlines()
    assert reason.startswith(
        "torch: the embeddings are on the CPU; the compiled kernels are missing: this installation"
    )
    command = (
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        tmp_path / "lib",
        "--build-temp",
        tmp_path / "temp",
    )
    assert attempt(*command, cwd=checkout, **NO_COMPILER).returncode == 0
    assert attempt(*command, cwd=checkout, **NO_COMPILER, CTLOSS_NATIVE="1").returncode != 0


@pytest.mark.parametrize("kind", ["wheel", "source archive", "plain", "editable", "editable strict"])
def test_install(
    kind: str, archives: Path, checkout: Path, environment: Path, tmp_path: Path, compiler: str | None
) -> None:
    """Everything imports, from a foreign folder and from the repository root, whichever way it was installed.

    The wheel has compiled kernels, as has the editable install that runs the tests; the others leave them out to save
    the time.
    """
    what: dict[str, tuple[str | Path, ...]] = {
        "wheel": tuple(archives.glob("*.whl")),
        "source archive": tuple(archives.glob("*.tar.gz")),
        "plain": (checkout,),
        "editable": ("-e", checkout),
        "editable strict": ("--config-settings", "editable_mode=strict", "-e", checkout),
    }
    with_kernels = kind == "wheel"
    install(environment, *what[kind], cwd=tmp_path, **({} if with_kernels else NO_KERNELS))

    file, path = run(environment, "-c", IMPORT_ALL, cwd=tmp_path).splitlines()
    assert path == ("native" if with_kernels and compiler is not None else "torch")
    outside = Path(file)
    assert outside.is_relative_to(checkout) == kind.startswith("editable")
    assert (outside.parent / "py.typed").exists()
    # python -c puts the current folder first: in the root it is the checkout's ctloss that is imported.
    inside = Path(run(environment, "-c", IMPORT_ALL, cwd=checkout).splitlines()[0])
    assert inside.is_relative_to(checkout)
    if kind == "wheel":
        assert "ctloss doctor" in run(environment.with_name("ctloss"), "--help", cwd=tmp_path)
        told = run(environment, "-m", "ctloss", "explain", "4", "8", "--loss", "info_nce", cwd=tmp_path)
        assert told.startswith(f"{path}: the embeddings are on the CPU")


def test_type_checker_sees_everything_under_an_editable_install(
    checkout: Path, environment: Path, tmp_path: Path
) -> None:
    install(environment, "-e", checkout, cwd=tmp_path, **NO_KERNELS)
    (tmp_path / "user.py").write_text(
        "import torch\n"
        "import ctloss\n"
        "from ctloss.kernels.problem import Problem\n"
        "def loss(x: torch.Tensor) -> torch.Tensor:\n"
        "    return ctloss.cz_nce(x, x)\n"
        "reveal_type(Problem)\n"
        "ctloss.cz_nce('not', 'tensors')\n"
    )
    options = ["--python-executable", str(environment), "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *options, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS, check=False)
    assert "ctloss.kernels.problem.Problem" in done.stdout, done.stdout
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert errors, done.stdout
    assert all("[arg-type]" in line and line.startswith("user.py:7:") for line in errors), done.stdout


def modules_after(statement: str, cwd: Path) -> set[str]:
    """Top-level names of the modules a fresh process holds after a statement."""
    program = (
        f"import sys\n{statement}\nimport json\nprint(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    )
    return set(json.loads(run(sys.executable, "-c", program, cwd=cwd)))


SHARED = [f"ctloss.shared.{path.stem}" for path in (ROOT / "ctloss" / "shared").glob("[!_]*.py")]


@pytest.mark.parametrize("modules", [["ctloss"], SHARED], ids=["core", "shared"])
def test_import_needs_only_torch(modules: list[str]) -> None:
    """Nothing but ctloss and the standard library comes on top of what ``import torch`` brings by itself."""
    added = modules_after(f"import torch, {', '.join(modules)}", ROOT) - modules_after("import torch", ROOT)
    assert {name for name in added if name not in sys.stdlib_module_names} == {"ctloss"}


def test_import_loads_only_what_losses_need() -> None:
    """What every start pays for: no command, no extra's part, none of the kernels that Triton must be loaded for."""
    program = (
        "import json, sys, torch\nbefore = set(sys.modules)\nimport ctloss\n"
        "print(json.dumps(sorted({*sys.modules} - before)))"
    )
    added = json.loads(run(sys.executable, "-c", program, cwd=ROOT))
    rooms = {".".join(name.split(".")[:2]) for name in added if name.startswith("ctloss.")}
    of_losses = {"core", "gradient_cache", "kernels", "objectives", "ranks", "reference"}
    assert rooms == {f"ctloss.{room}" for room in of_losses | {"contrast", "losses", "modules", "sig_lip", "sup_con"}}
    assert "ctloss.kernels.triton_path.tiles" not in added
    assert "ctloss.kernels.triton_path.plan.config" in added
    # The definition of the sigmoid loss, in 60 digits.
    assert {name for name in added if not name.startswith("ctloss")} <= {"decimal", "_decimal"}


def test_import_works_where_nothing_else_is_installed() -> None:
    """The import and a first loss, with every optional library hidden from the process."""
    program = """
import importlib.abc, sys
hidden = set("numpy triton transformers datasets sklearn matplotlib tensorboard pyarrow tokenizers tqdm".split())
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import torch, ctloss
x = torch.randn(4, 8, requires_grad=True)
ctloss.cz_nce(x, torch.randn(4, 8)).backward()
print(bool(x.grad.isfinite().all()))
"""
    assert run(sys.executable, "-c", program, cwd=ROOT).strip() == "True"


FAKE_KERNELS = """
class _Anything:
    def __init__(self, *args, **kwargs): pass
    def __call__(self, value=None, *args, **kwargs): return value
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name[0].isupper():
        return type(name, (_Anything,), {})
    return lambda *args, **kwargs: (lambda value: value)
"""


def test_transformers_finds_the_distribution_named_kernels(tmp_path: Path) -> None:
    """With the repository root on sys.path, ``import kernels`` means the installed distribution, not our folder."""
    import transformers.utils.import_utils as wanted

    site = tmp_path / "site"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text(FAKE_KERNELS)
    information = site / f"kernels-{wanted.KERNELS_MIN_VERSION}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {wanted.KERNELS_MIN_VERSION}\n"
    )
    (information / "RECORD").write_text("kernels/__init__.py,,\n")
    program = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import kernels\n"
        "from transformers import BertModel, Trainer\n"
        "from transformers.utils import is_kernels_available\n"
        "import ctloss.kernels.problem\n"
        "print(kernels.__file__, is_kernels_available(), BertModel.__name__, Trainer.__name__)"
    )
    out = run(sys.executable, "-c", program, site, cwd=ROOT).split()
    assert out == [str(site / "kernels" / "__init__.py"), "True", "BertModel", "Trainer"]
