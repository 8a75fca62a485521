"""What the README tells a newcomer to type is what continuous integration runs, and its examples and links hold."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def command_with(phrase: str) -> str:
    (line,) = (line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines() if phrase in line)
    return line


def test_continuous_integration_runs_the_readme_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (extraction,) = (line for line in script.splitlines() if line.startswith("command="))
    shown = subprocess.run(
        ["bash", "-c", f'{extraction}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout == command_with("python -m pytest")
    assert 'eval "$command"' in script


def test_continuous_integration_repeats_the_numeric_tests() -> None:
    """In the arithmetic of a processor without AVX-512 and of one without AVX2, whatever it runs on."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    repeats = [line for line in script.splitlines() if line.startswith("repeat ")]
    assert [dict(re.findall(r"(\w+)=(\w+)", line)) for line in repeats] == [
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
        {"ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Sandybridge"},
    ]


@pytest.mark.parametrize("module", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_what_rests_on_the_bounds_is_repeated(module: Path) -> None:
    source = module.read_text(encoding="utf-8")
    if re.search(r"^from support\.acceptance import", source, flags=re.M):
        assert re.search(r"^pytestmark = .*pytest\.mark\.numeric", source, flags=re.M)


TWO_COMMANDS = pytest.mark.parametrize("phrase", ["[train]' && ", "python -m pytest"])


@TWO_COMMANDS
def test_commands_keep_threads_from_spinning(phrase: str) -> None:
    last = command_with(phrase).split(" && ")[-1]
    assert "OMP_WAIT_POLICY=passive " in last.partition("python")[0]


@TWO_COMMANDS
def test_commands_pin_what_they_install(phrase: str) -> None:
    command = command_with(phrase)
    installs = [step for step in command.split(" && ") if "pip install" in step]
    assert "-c constraints.txt torch -e" in installs[0]
    assert all("-c constraints.txt" in step or "--no-deps -r tests/peers.txt" in step for step in installs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_examples_run(page: Path) -> None:
    """The blocks of a page run in order and share their names, as a reader would type them."""
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def test_readme_shows_the_losses_at_work() -> None:
    shown = "".join(blocks(ROOT / "README.md", "python"))
    assert "cz_nce" in shown
    assert ".backward()" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_pins_cover_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    pinned = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]

    def names(requirements: list[str]) -> set[str]:
        return {re.split("[^A-Za-z0-9_-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}

    assert names(wanted) - {"ctloss"} <= names(pinned)
