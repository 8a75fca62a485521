"""The oldest and newest supported libraries, tried by ``pipx run nox``; docs/reference/versions.md has what came of it.

    nox -s losses            # PyTorch 2.6 and the newest, the losses' tests
    nox -s encoders          # transformers 5.6.2 and the newest, training and evaluation
    nox -s integrations      # sentence-transformers 5.0 and the newest
    nox -s pythons           # the losses' tests on every Python that is found
    nox -s archives          # source archive and wheel, checked for the package index

PyPI's builds of PyTorch for Linux carry gigabytes of CUDA. CTLOSS_TORCH_INDEX is where others come from instead, such
as https://download.pytorch.org/whl/cpu.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import nox

PROJECT = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
OLDEST, NEWEST = "oldest", "newest"
EITHER = nox.parametrize("age", [OLDEST, NEWEST], ids=[OLDEST, NEWEST])
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
# What runs the losses and needs neither transformers nor the peers.
OF_LOSSES = ["tests/core/test_options.py", "tests/core/test_objectives.py", "tests/paths/test_torch_path.py"]
OF_LOSSES += ["tests/core/test_sup_con.py", "tests/core/test_sig_lip.py", "tests/native/test_native_path.py"]
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HYPOTHESIS_PROFILE": "short"}

nox.options.sessions = ["losses", "encoders", "integrations"]


def requirement(name: str, age: str, extra: str | None = None) -> str:
    """What pip installs: the oldest version that pyproject.toml allows, or the newest there is."""
    if age == NEWEST:
        return name
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    (wanted,) = (each for each in listed if each.partition(">=")[0] == name)
    return wanted.replace(">=", "==")


def install_torch(session: nox.Session, age: str) -> None:
    """Installs PyTorch first, so that nothing else chooses its build."""
    index = os.environ.get("CTLOSS_TORCH_INDEX")
    session.install(requirement("torch", age), *(["--index-url", index] if index else []))


def run_tests(session: nox.Session, *where: str) -> None:
    """Prints the versions that are tried, and runs tests."""
    session.run("ctloss", "doctor", env=QUIET)
    session.run("python", "-m", "pytest", "-q", *(session.posargs or where), env=QUIET)


@nox.session(python="3.11")
@EITHER
def losses(session: nox.Session, age: str) -> None:
    """The losses with the oldest and the newest PyTorch."""
    install_torch(session, age)
    session.install("-e", ".", "pytest", "hypothesis", "numpy")
    run_tests(session, *OF_LOSSES)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The losses on every Python."""
    install_torch(session, NEWEST)
    session.install("-e", ".", "pytest", "hypothesis", "numpy")
    run_tests(session, *OF_LOSSES)


@nox.session(python="3.11")
@EITHER
def encoders(session: nox.Session, age: str) -> None:
    """Training and evaluation with the oldest and the newest transformers."""
    install_torch(session, NEWEST)
    session.install("-e", ".[test]", requirement("transformers", age, "train"))
    run_tests(session, "tests/train", "tests/evaluate")


@nox.session(python="3.11")
@EITHER
def integrations(session: nox.Session, age: str) -> None:
    """The losses for sentence-transformers with its oldest and newest version."""
    install_torch(session, NEWEST)
    session.install("-e", ".[test]")
    session.install("--no-deps", "-r", "tests/peers.txt")
    session.install("--no-deps", "sentence-transformers==5.0.0" if age == OLDEST else "sentence-transformers")
    run_tests(session, "tests/integrations")


@nox.session(python="3.11")
def archives(session: nox.Session) -> None:
    """Source archive and wheel as they are published."""
    session.install("build", "twine")
    folder = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("python", "-m", "twine", "check", "--strict", *(str(path) for path in Path(folder).iterdir()))
