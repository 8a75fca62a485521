"""The site of the documents builds without a warning, asks no other host for anything, and has what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ctloss
import ctloss.evaluate
import ctloss.objectives
import ctloss.train

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Attributes by which a browser fetches something by itself.
FETCHED = {
    "audio": ["src"],
    "iframe": ["src"],
    "img": ["src", "srcset"],
    "link": ["href"],
    "script": ["src"],
    "source": ["src", "srcset"],
    "video": ["src", "poster"],
}
# Public names without a docstring of their own: other names, PyTorch's own, a table of values.
WITHOUT_DOCSTRING = {"Explanation", "RecipeError", "XTREME_OPTIONS", "softplus"}
# Links that only name a page.
NAMING = {"canonical", "next", "prev"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = done.stdout + done.stderr
    # --strict makes every warning of MkDocs and its plugins an error. Python's own are not among them: those of our
    # files are faults, those of a dependency's are not.
    assert done.returncode == 0, told
    assert [line for line in told.splitlines() if str(DOCS) in line] == []
    return folder


class Fetches(HTMLParser):
    """What a browser would fetch from a page, and where its anchors are."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag != "link" or given.get("rel") not in NAMING:
            self.fetched += [given[name] for name in FETCHED.get(tag, []) if name in given]


def read(page: Path) -> Fetches:
    parser = Fetches()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_no_page_asks_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    found = {str(page.relative_to(site)): read(page).fetched for page in pages}
    assert all(found.values())
    assert {name: [url for url in urls if re.match(r"(https?:)?//", url)] for name, urls in found.items()} == {
        name: [] for name in found
    }
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\(['\"]?(https?:)?//|@import", styles)


@pytest.mark.parametrize(
    ("page", "package"),
    [
        ("losses", ctloss),
        ("objectives", ctloss.objectives),
        ("modules", ctloss),
        ("gradient-cache", ctloss),
        ("train", ctloss.train),
        ("evaluate", ctloss.evaluate),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_api_pages_have_every_public_name(site: Path, page: str, package: object) -> None:
    """Names of ctloss are on any of its pages; those of another package on its own."""
    own = ["losses", "modules", "gradient-cache"] if package is ctloss else [page]
    there = set().union(*(read(site / "api" / name / "index.html").ids for name in own))
    names = set(package.__all__) - {"objectives"} - WITHOUT_DOCSTRING  # type: ignore[attr-defined]
    prefix = re.escape(package.__name__)  # type: ignore[attr-defined]
    assert names - {found[1] for one in there if (found := re.fullmatch(rf"{prefix}\.(?:\w+\.)*(\w+)", one))} == set()


def test_options_and_equations_are_shown(site: Path) -> None:
    text = (site / "api" / "losses" / "index.html").read_text(encoding="utf-8")
    assert "shared_candidates" in text
    assert "<math" in text
    assert ".. math" not in text
    assert ":func:" not in text


def test_every_page_of_the_documents_is_on_the_site(site: Path) -> None:
    missing = []
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS)
        folder = place.parent if place.name in ("README.md", "index.md") else place.with_suffix("")
        if not (site / folder / "index.html").is_file():
            missing.append(str(place))
    assert missing == []


def test_links_to_files_outside_lead_to_their_pages(site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="project/architecture/"' in front
    assert ">ARCHITECTURE.md</a>" in front


def test_pictures_follow_the_palette(site: Path) -> None:
    front = read(site / "index.html").fetched
    assert {"figures/front.png#only-light", "figures/front-dark.png#only-dark"} <= set(front)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.stem)
def test_no_measured_table_is_missing(page: Path) -> None:
    """What a command writes between its two marks is there, and each mark has its other."""
    text = page.read_text(encoding="utf-8")
    tables = re.findall(r"^<!-- (python -m [^>]+) -->\n(.*?)^<!-- end of \1 -->$", text, flags=re.M | re.S)
    assert [command for command, table in tables if not table.strip()] == []
    assert len(tables) * 2 == len(re.findall(r"<!-- (?:end of )?python -m ", text))


@pytest.mark.parametrize("picture", sorted(path.name for path in (DOCS / "figures").glob("*.png")))
def test_figures_are_shown(picture: str) -> None:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    assert any(picture in page.read_text(encoding="utf-8") for page in pages)


def test_the_calls_of_the_table_run() -> None:
    """Each call of "which loss for what" gives a loss, with the names that the page sets."""
    text = (DOCS / "guide" / "which-loss.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S):
        exec(compile(block, "which-loss.md", "exec"), names)
    calls = re.findall(r"^\| [^|]+ \| `([^`]+\))` \| [^|]+ \|$", text, flags=re.M)
    assert len(calls) > 12
    for call in calls:
        loss = eval(call, names)
        assert (call, loss.ndim, bool(loss.isfinite())) == (call, 0, True)
        loss.backward()
