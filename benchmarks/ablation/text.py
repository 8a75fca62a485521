"""The text that the base model is trained on, read from a folder of parallel corpora."""

from __future__ import annotations

from pathlib import Path

# Line-aligned files LANGUAGE by LANGUAGE, of all of which each language is read by itself.
LINES = ("bible/bible.*", "news/news*.*", "tico19/all.*")
PAIRS = "tatoeba-train/en-*.tsv"
FEWEST_CHARACTERS = 8


def lines_of(path: Path) -> list[str]:
    """The lines of a file, ended by LF alone: other separators stand inside sentences."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\r\n") for line in file]


def sentences(data: Path) -> list[str]:
    """Every distinct sentence of the corpora bible, news, tico19 and tatoeba-train, in the order of their files.

    Args:
        data: the folder that holds theirs.

    Returns:
        Sentences of all languages; those of fewer than eight characters, of which masking leaves nothing, are left out.

    Raises:
        FileNotFoundError: naming the pattern that matches no file.
    """
    found: dict[str, None] = {}
    for pattern in (*LINES, PAIRS):
        files = sorted(path for path in data.glob(pattern) if path.suffix not in (".ids", ".md"))
        if not files:
            raise FileNotFoundError(f"expected files {pattern} in {data}, found none; name the folder of the corpora")
        for path in files:
            for line in lines_of(path):
                for text in line.split("\t") if pattern == PAIRS else [line]:
                    if len(text) >= FEWEST_CHARACTERS:
                        found[text] = None
    return list(found)
