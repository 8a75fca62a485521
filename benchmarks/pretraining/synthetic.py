"""A parallel corpus of any size, made of invented words: lines, their translation, and a lexicon.

    python -m benchmarks.pretraining.synthetic FOLDER --pairs 1000000

Words follow Zipf's law over 60,000 forms; a sentence has 4 to 80 of them, 18 on average. A translation has each word's
own counterpart, a few neighbours exchanged and one word in twelve left out. The files are line-aligned and compressed:
FOLDER/synthetic.en.gz and synthetic.fr.gz, with lexicon.en-fr.tsv for an eighth of the words.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np

FORMS = 60_000
# Of every eighth form beyond the commonest, the lexicon has the translation: some one and a half words a sentence.
LISTED = slice(100, None, 8)
CHUNK = 20_000
ONSETS = [*"bcdfghjlmnprstvw", *("br", "cl", "dr", "fl", "gr", "pl", "sh", "st", "th", "tr")]
VOWELS = [*"aeiou", "ai", "ea", "ou"]
CODAS = ["", "", "n", "r", "s", "t", "l", "m", "nd", "ck"]


def words(count: int, ending: str, generator: np.random.Generator) -> list[str]:
    """Returns this many distinct invented words, the shortest first, each with the ending of its language."""
    syllables = [onset + vowel + coda for onset in ONSETS for vowel in VOWELS for coda in CODAS]
    found: dict[str, None] = {}
    while len(found) < count:
        drawn = generator.integers(len(syllables), size=3)
        size = 1 + (len(found) > 400) + (len(found) > 20_000)
        found["".join(syllables[i] for i in drawn[:size]) + ending] = None
    return list(found)


def write(folder: Path, pairs: int, seed: int = 0) -> None:
    """Writes the corpus and its lexicon into a folder; the same arguments give the same files."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    english, french = words(FORMS, "", generator), words(FORMS, "é", generator)
    listed = zip(english[LISTED], french[LISTED], strict=True)
    (folder / "lexicon.en-fr.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in listed), encoding="utf-8")
    weights = 1 / (np.arange(FORMS) + 3.0)
    cumulative = np.cumsum(weights / weights.sum())
    with (
        gzip.open(folder / "synthetic.en.gz", "wt", encoding="utf-8", compresslevel=1) as source,
        gzip.open(folder / "synthetic.fr.gz", "wt", encoding="utf-8", compresslevel=1) as target,
    ):
        for start in range(0, pairs, CHUNK):
            lengths = np.clip(generator.lognormal(2.75, 0.5, min(CHUNK, pairs - start)).astype(int), 4, 80)
            drawn = np.searchsorted(cumulative, generator.random(lengths.sum()))
            kept = generator.random(len(drawn)) > 1 / 12
            lines: tuple[list[str], list[str]] = ([], [])
            for sentence, there in zip(*(np.split(x, np.cumsum(lengths)[:-1]) for x in (drawn, kept)), strict=True):
                lines[0].append(" ".join(english[word] for word in sentence) + ".")
                order = np.argsort(np.arange(len(sentence)) + generator.random(len(sentence)) * 2)
                lines[1].append(" ".join(french[word] for word in sentence[order][there]) + ".")
            source.write("\n".join(lines[0]) + "\n")
            target.write("\n".join(lines[1]) + "\n")


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--pairs", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    write(given.folder, given.pairs, given.seed)


if __name__ == "__main__":
    main()
