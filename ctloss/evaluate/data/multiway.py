"""Readers of sentences in many languages, line i of each the same: FLORES-200 and NTREX-128, as they are published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...shared.languages import find_code, primary
from ...shared.text import DataError, read_lines, require_equal_counts, text_files


@dataclass(frozen=True)
class Layout:
    """How a data set names its files.

    Args:
        name: of the data set.
        folder: where the files of a split lie in its folder; ``{split}`` is the split.
        pattern: of the files' names, with the language's code as its group; ``{split}`` as above.
        splits: the splits that it has, the one that published figures use first; none if it has only one.
        english: the code of English.
        file: the name of the German one.
    """

    name: str
    folder: str
    pattern: str
    splits: tuple[str, ...]
    english: str
    file: str

    def example(self, split: str = "") -> str:
        """Returns the path of a German file, for errors."""
        split = split or next(iter(self.splits), "")
        return f"{self.folder}/{self.file}".format(split=split)


FLORES = Layout(
    "FLORES-200",
    "{split}",
    r"([a-z]{{3}}_[A-Z][a-z]{{3}})\.{split}",
    ("devtest", "dev"),
    "eng_Latn",
    "deu_Latn.{split}",
)
# The second Spanish reference, newstest2019-ref-2.spa.txt, is left out, as in published figures.
NTREX = Layout(
    "NTREX-128",
    "NTREX-128",
    r"newstest2019-(?:src|ref)\.([a-z]{{3}}(?:-[A-Za-z]+)?)\.txt",
    (),
    "eng",
    "newstest2019-ref.deu.txt",
)


def files_of_layout(place: Path, layout: Layout, split: str = "") -> dict[str, Path]:
    """Finds the files of a split by language, in a data set's folder or in the folder of its files itself.

    Codes are the files' own with an underscore before script or region: ``deu_Latn``, ``eng``, ``zho_TW``.
    """
    for folder in (place / layout.folder.format(split=split), place):
        pattern = re.compile(layout.pattern.format(split=split))
        found = {
            match[1].replace("-", "_"): path
            for name, path in text_files(folder).items()
            if (match := pattern.fullmatch(name))
        }
        if found:
            return dict(sorted(found.items()))
    return {}


def read_multiway(
    place: Path, layout: Layout, languages: Sequence[str] | None = None, split: str = ""
) -> dict[str, tuple[Path, list[str]]]:
    """Reads a split of a data set: by language, its file and its sentences.

    Args:
        languages: codes as in the files' names, or others that mean the same (``de`` for deu_Latn); by default all.

    Raises:
        DataError: a language is missing or could be several, there are fewer than two, the numbers of lines differ, or
            a file is malformed.
    """
    there = files_of_layout(place, layout, split)
    wanted = there if languages is None else dict.fromkeys(_spelled(code, there, place, layout) for code in languages)
    if len(wanted) < 2:
        raise DataError(
            f"{place}: expected at least two languages of {layout.name}, files such as {layout.example(split)}, got "
            f"{', '.join(wanted) or 'none'}; give the folder as it was unpacked, or more languages"
        )
    texts = {code: (there[code], read_lines(there[code])) for code in wanted}
    require_equal_counts({path: len(lines) for path, lines in texts.values()})
    return texts


def _spelled(code: str, there: dict[str, Path], place: Path, layout: Layout) -> str:
    found = find_code(code, there)
    if found is not None:
        return found
    # Files name a script that people leave out; where there are several, nobody can tell which is meant.
    alike = [other for other in there if primary(other) == primary(code)] if not re.search("[-_]", code) else []
    if len(alike) == 1:
        return alike[0]
    got = f"several: {', '.join(alike)}; name one" if alike else "no such file; check the code"
    names = ", ".join(there)
    raise DataError(
        f"{place}: expected a file of {layout.name} in {code!r}, got {got} (there are {len(there)} languages: "
        f"{names[:200]}{'…' if len(names) > 200 else ''})"
    )
