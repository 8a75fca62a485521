"""What the README tells a newcomer to type is what continuous integration runs, and its examples and links hold."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = PROJECT["urls"]["Homepage"]


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


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def place_of(target: str, page: Path) -> tuple[Path, str] | None:
    """The file in the repository that a link of a page leads to, and its anchor; none if it leads elsewhere."""
    address, _, anchor = target.partition("#")
    for inside in (f"{HOME}/blob/main/", f"{HOME.replace('//github', '//raw.githubusercontent')}/main/"):
        if address.startswith(inside):
            return ROOT / address.removeprefix(inside), anchor
    return (
        None
        if "://" in address or address.startswith("mailto:")
        else (page.parent / address if address else page, anchor)
    )


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for target in links(page):
        place = place_of(target, page)
        if place is not None:
            file, anchor = place
            found = file.exists() and (not anchor or file.suffix != ".md" or anchor in anchors(file))
            missing += [] if found else [target]
    assert missing == []


def test_the_package_page_has_links_that_work_there() -> None:
    """A package index shows the README alone, so its links name the repository; all with the address of the project."""
    targets = links(ROOT / "README.md")
    assert [target for target in targets if "://" not in target] == []
    ours = [target for target in targets if "/ctloss/" in target]
    assert len(ours) > 20
    assert [target for target in ours if place_of(target, ROOT / "README.md") is None] == []
    assert all(address.startswith(HOME) for address in PROJECT["urls"].values())
    assert HOME in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for address in PROJECT["urls"].values():
        place = place_of(address, ROOT / "README.md")
        assert place is None or place[0].exists()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1500


@pytest.mark.parametrize(
    "line", re.findall(r"^[+](from ctloss.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
)
def test_the_one_import_that_changes_is_there(line: str) -> None:
    try:
        exec(line, {})
    except ModuleNotFoundError as error:
        if (error.name or "ctloss").startswith("ctloss"):
            raise
        pytest.skip(f"needs {error.name}")


def test_pins_cover_every_direct_dependency() -> None:
    wanted = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
    pinned = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]

    def names(requirements: list[str]) -> set[str]:
        return {re.split("[^A-Za-z0-9_-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}

    assert names(wanted) - {"ctloss"} <= names(pinned)
