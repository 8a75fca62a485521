"""What is trained on, read from a folder of corpora: the base's sentences, the rows' pairs and word translations."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ctloss.evaluate import held_out_lines
from ctloss.shared.files import write_atomically
from ctloss.shared.text import require_equal_counts

# The base reads every language of line-aligned files LANGUAGE by LANGUAGE, and both sides of pairs.
LINES = ("bible/bible.*", "news/news*.*", "tico19/all.*")
PAIRS = "tatoeba-train/en-*.tsv"
FEWEST_CHARACTERS = 8
# The languages of the lexicon: Chen et al. 2022 train on the same six.
ENGLISH, OTHERS = "en", ("ar", "es", "fr", "ru", "zh")
LINE_ALIGNED = ("news/newstest2008-2011", "news/newstest2012-2013", "tico19/all", "bible/bible")
HELD_OUT, SEED = 0.1, 0


def lines_of(path: Path) -> list[str]:
    """The lines of a file, which end with LF: other separators occur inside sentences."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\r\n") for line in file]


def sentences(data: Path) -> list[str]:
    """Every distinct sentence of the corpora bible, news, tico19 and tatoeba-train, in the order of their files.

    Sentences of fewer than eight characters, of which masking leaves nothing, are left out.

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


def prepare(data: Path, folder: Path, per_source: int) -> Path:
    """Write en-XX.tsv of every language, ``lexicon`` to train with, and ``words``, the translations held out of it.

    Of a language and corpus at most ``per_source`` sentence pairs are drawn, by a hash.

    Returns:
        The folder made in ``folder``, whose name changes with its content.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming line-aligned files of different lengths.
    """
    pairs = {other: list(_pairs(data, other, per_source)) for other in OTHERS}
    lists = _word_lists(data / "lexicon")
    kept, held = split_lexicon(lists)
    content = json.dumps([pairs, kept, held], ensure_ascii=False)
    made = folder / hashlib.sha256(content.encode()).hexdigest()[:8]
    if not (made / "done").is_file():
        for other, rows in pairs.items():
            write_atomically(made / f"{ENGLISH}-{other}.tsv", "".join(f"{a}\t{b}\n" for a, b in rows))
        for name, part in (("lexicon", kept), ("words", held)):
            for language, lines in part.items():
                write_atomically(made / name / f"{language}.txt", "".join(f"{line}\n" for line in lines))
        write_atomically(made / "done", "")
    return made


def split_lexicon(lists: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split line-aligned word lists into two that share no translation with English.

    Returns:
        The lines to train with, and those to ask for. Each has empty lines in place of the other's; a line whose
        translation is in both is in neither.
    """
    count = len(lists[ENGLISH])
    asked = held_out_lines(count, HELD_OUT, SEED)
    known = {pair for line in asked for pair in _translations(lists, line)}
    kept = {line for line in range(count) if line not in asked and known.isdisjoint(_translations(lists, line))}

    def part(lines: Iterable[int]) -> dict[str, list[str]]:
        chosen = set(lines)
        return {
            language: [text if line in chosen else "" for line, text in enumerate(texts)]
            for language, texts in lists.items()
        }

    return part(kept), part(asked)


def _translations(lists: dict[str, list[str]], line: int) -> set[tuple[str, str, str]]:
    def variants(language: str) -> list[str]:
        return [word.strip().casefold() for word in re.split("[,，]", lists[language][line]) if word.strip()]

    return {
        (language, a, b)
        for language in lists
        if language != ENGLISH
        for a in variants(ENGLISH)
        for b in variants(language)
    }


def _pairs(data: Path, other: str, most: int) -> Iterable[tuple[str, str]]:
    tsv = lines_of(_there(data / "tatoeba-train" / f"{ENGLISH}-{other}.tsv"))
    yield from _drawn([(a, b) for a, _, b in (line.partition("\t") for line in tsv)], most)
    for prefix in LINE_ALIGNED:
        sides = [data / f"{prefix}.{language}" for language in (ENGLISH, other)]
        _there(sides[0])
        if sides[1].is_file():
            first, second = map(lines_of, sides)
            require_equal_counts({sides[0]: len(first), sides[1]: len(second)})
            yield from _drawn(list(zip(first, second, strict=True)), most)


def _word_lists(folder: Path) -> dict[str, list[str]]:
    files = {language: _there(folder / f"{language}_uni.txt") for language in (ENGLISH, *OTHERS)}
    lists = {language: lines_of(path) for language, path in sorted(files.items())}
    require_equal_counts({files[language]: len(lines) for language, lines in lists.items()})
    return lists


def _drawn(pairs: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    full = [pair for pair in dict.fromkeys(pairs) if all(side.strip() and "\t" not in side for side in pair)]
    order = sorted(full, key=lambda pair: hashlib.sha256("\t".join(pair).encode()).digest())
    chosen = set(order[:most])
    return [pair for pair in full if pair in chosen]


def _there(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"expected {path}, got no such file; give the folder of the corpora with --data")
    return path
