"""What MkDocs is told beyond mkdocs.yml: pages from outside docs/, notebooks as pages, links that hold on the site.

The documents are written for a code host, where links lead to files. On the site some of those files are pages, others
are not there.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
# Files of the repository that are pages of the site, by where they stand there.
OUTSIDE = {
    "project/readme.md": "README.md",
    "project/architecture.md": "ARCHITECTURE.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
    **{f"notebooks/{path.stem}.md": f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
}
OUTSIDE = {page: source for page, source in OUTSIDE.items() if (ROOT / source).is_file()}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img alt="(?P<alt>[^"]*)" src="(?P<light>[^"]+)">\s*</picture>'
)

# The list of a page's headings below its title: the theme has its own.
CONTENTS = re.compile(r"\n(?:- \[[^\]]+\]\(#[^)]+\)\n){3,}")


def repository() -> str:
    """Where the code lies, by ``[project.urls]`` of pyproject.toml; empty if it is not said."""
    found = re.search(
        r'^"?(?:Repository|Source|Homepage)"? = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    return found[1].rstrip("/") if found else ""


REPOSITORY = repository()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the folders of the navigation."""
    docs = Path(config.docs_dir)
    there = [path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*.md"))] + list(OUTSIDE)
    named = set(_named(config.nav))
    rest = [page for page in there if page not in named]
    config.nav = _filled(config.nav, there, rest)
    return config


def _named(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [name for part in (entry.values() if isinstance(entry, dict) else entry) for name in _named(part)]


def _filled(entries: list[Any], there: list[str], rest: list[str]) -> list[Any]:
    """The entries with every ``FOLDER/*`` replaced by pages, without those that are not there."""
    filled: list[Any] = []
    for entry in entries:
        title, inside = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(inside, list):
            filled.append({title: _filled(inside, there, rest)})
        elif not inside.endswith("*"):
            if inside in there:
                filled.append(entry)
        else:
            folder = PurePosixPath(inside).parent
            pages = [page for page in rest if PurePosixPath(page).parent == folder]
            pages.sort(key=lambda page: (not page.endswith(("README.md", "index.md")), page))
            if title is None:
                filled += pages
            elif pages:
                filled.append({title: pages})
    return filled


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, notebooks with their pictures."""
    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text, pictures = notebook(json.loads(text), PurePosixPath(page).stem)
            for name, data in pictures.items():
                files.append(File.generated(config, str(PurePosixPath(page).parent / name), content=data))
        files.append(File.generated(config, page, content=text))
    return files


def notebook(document: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    import base64

    parts, pictures = [], {}
    for cell in document["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make pictures follow the site's palette, and links lead where the site has their target."""
    here = page.file.src_uri
    source = OUTSIDE.get(here, DOCS + here)
    parts = re.split(r"(^```.*?^```$)", CONTENTS.sub("\n", markdown), flags=re.M | re.S)
    return "".join(part if part.startswith("```") else _prose(part, here, source) for part in parts)


def _prose(text: str, here: str, source: str) -> str:
    def both(found: re.Match[str]) -> str:
        return "".join(f"![{found['alt']}]({found[which]}#only-{which})" for which in ("light", "dark"))

    return LINK.sub(lambda found: _link(found, here, source), PICTURE.sub(both, text))


def _link(found: re.Match[str], here: str, source: str) -> str:
    """A link to a file of the repository, as the site has it."""
    target, anchor = found["target"], found["anchor"] or ""
    inside = REPOSITORY and re.fullmatch(
        rf"(?:{re.escape(REPOSITORY)}/(?:blob|raw)|https://raw\.githubusercontent\.com/[^/]+/[^/]+)/[^/]+/(.+)", target
    )
    if inside:
        path = inside[1]
    elif "://" in target:
        return found[0]
    else:
        path = os.path.normpath(PurePosixPath(source).parent / target)
    if not (ROOT / path).exists():
        return found[0]
    pages = {file: page for page, file in OUTSIDE.items()}
    place = path.removeprefix(DOCS) if path.startswith(DOCS) else pages.get(path)
    if place is not None:
        moved = os.path.relpath(place, PurePosixPath(here).parent)
    elif REPOSITORY:
        moved = f"{REPOSITORY}/blob/main/{path}"
    else:
        return found["text"]
    return f"{found['image']}[{found['text']}]({moved}{anchor})"
