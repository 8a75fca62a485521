"""Parallel text of a language pair from a folder of corpora, to count co-occurrences in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ctloss.shared.text import read_lines, text_file, text_files
from ctloss.train.text.sentences import ParallelSentence

PIVOT = "en"
LINE_ALIGNED = ("news", "multi30k")


def corpora(folder: Path, languages: tuple[str, str]) -> dict[str, list[ParallelSentence]]:
    """The corpora of English and another language, by name; empty for other pairs and where there are none.

    They are tatoeba-train/en-XX.tsv, and the line-aligned NAME.en and NAME.XX in news and multi30k.
    """
    if PIVOT not in languages:
        return {}
    source, target = languages
    other = target if source == PIVOT else source
    found = {"tatoeba-train": list(_two_columns(folder / "tatoeba-train" / f"{PIVOT}-{other}.tsv"))}
    for name in LINE_ALIGNED:
        stems = [file.removesuffix(f".{other}") for file in text_files(folder / name, f"*.{other}")]
        found[name] = [pair for stem in stems for pair in _aligned(folder / name, stem, other)]
    return {
        name: [ParallelSentence(*(pair if source == PIVOT else pair[::-1]), source, target) for pair in pairs]
        for name, pairs in found.items()
        if pairs
    }


def _two_columns(path: Path) -> Iterator[tuple[str, str]]:
    there = text_file(path)
    for line in read_lines(there) if there else ():
        first, _, second = line.partition("\t")
        yield first, second


def _aligned(folder: Path, stem: str, other: str) -> Iterator[tuple[str, str]]:
    files = [text_file(folder / f"{stem}.{language}") for language in (PIVOT, other)]
    texts = [read_lines(path, empty=True) for path in files if path]
    if len(texts) == 2:
        yield from zip(*texts, strict=True)
