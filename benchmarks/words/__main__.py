"""The command line: ``python -m benchmarks.words errors DATA --encoder FOLDER`` and ``... growth``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.results import insert, table
from benchmarks.words.corpora import corpora
from benchmarks.words.gold import GoldSet, read_gold_sets
from benchmarks.words.growth import in_a_process
from ctloss.train.text.cooccurrence import CooccurrenceAligner
from ctloss.train.text.finder import WordFinder, WordSource
from ctloss.train.text.lexicon import find_lexicon_lines, read_lexicon
from ctloss.train.text.mutual import MutualAligner
from ctloss.train.text.sentences import ParallelSentence, WordPair

COMMAND = "python -m benchmarks.words"
COLUMNS = ("gold set", "source", "AER", "precision", "recall", "pairs", "kept", "precision of kept", "ms a pair")
SIZES = (200_000, 400_000, 800_000)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    errors = commands.add_parser("errors", help="alignment error of each source of word pairs on the gold sets")
    errors.add_argument("data", type=Path, help="folder with align, lexicon, tatoeba-train, news and multi30k")
    errors.add_argument("--encoder", help="name or folder of an encoder to align with")
    errors.add_argument("--layers", type=int, nargs="+", help="of the encoder (default: two thirds of its depth)")
    errors.add_argument("--sets", nargs="+", metavar="SET", help="gold sets, such as en-fr (default: all)")
    growth = commands.add_parser("growth", help="memory and time of counting co-occurrences in made-up text")
    growth.add_argument("--pairs", type=int, nargs="+", default=SIZES, help="sizes of the corpora")
    for command in (errors, growth):
        command.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the tables between its markers")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser().parse_args(arguments)
    text = growth(options.pairs) if options.command == "growth" else errors(options)
    print(text)
    if options.write:
        insert(options.write, f"{COMMAND} {options.command}", text)


def errors(options: argparse.Namespace) -> str:
    """A table with a row for each gold set and source of word pairs, and one of what co-occurrences were counted in."""
    sets = read_gold_sets(options.data / "align")
    chosen = [gold for gold in sets if options.sets is None or gold.name in options.sets]
    encoders: dict[str, WordSource] = {}
    if options.encoder:
        for layer in options.layers or [None]:
            name = "encoder" if layer is None else f"encoder, layer {layer}"
            encoders[name] = MutualAligner(options.encoder, layer=layer)
    rows, counted = [], []
    for gold in chosen:
        texts = corpora(options.data, gold.languages)
        text = [sentence for part in texts.values() for sentence in part] + gold.sentences
        counted.append([gold.name, ", ".join(f"{name} {len(part):,}" for name, part in texts.items()) or "none"])
        with TemporaryDirectory() as folder:
            sources: dict[str, WordSource] = {
                "co-occurrence": CooccurrenceAligner.count(lambda text=text: [text], folder)  # type: ignore[misc]
            }
            if set(gold.languages) <= find_lexicon_lines(options.data / "lexicon").keys():
                sources["lexicon"] = read_lexicon([str(options.data / "lexicon")], [gold.languages])
            for name, source in {**sources, **encoders}.items():
                rows.append([gold.name, name, *measured(gold, source)])
                print(*rows[-1], file=sys.stderr)
    return f"{table(COLUMNS, rows)}\n\n{table(('gold set', 'counted in, besides its own text'), counted)}"


def measured(gold: GoldSet, source: WordSource) -> list[str]:
    """The columns from AER on, of a source's word pairs and of those of them that can be training pairs."""
    source.word_pairs(gold.sentences[:1])  # Loads what it has to load.
    start = time.process_time()
    found = source.word_pairs(gold.sentences)
    milliseconds = 1000 * (time.process_time() - start) / len(gold.sentences)
    scores, kept = gold.scores(found), gold.scores(WordFinder(_Found(found)).find(gold.sentences).pairs)
    shares = (scores["aer"], scores["precision"], scores["recall"])
    return [
        *(f"{100 * share:.1f}" for share in shares),
        *(f"{scores['pairs']:.1f}", f"{kept['pairs']:.1f}", f"{100 * kept['precision']:.1f}", f"{milliseconds:.2g}"),
    ]


@dataclass(frozen=True)
class _Found:
    """A source of the word pairs that another has found."""

    pairs: list[list[WordPair]]

    def fingerprint(self) -> str:
        return "found"

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        return self.pairs


def growth(sizes: Sequence[int]) -> str:
    """A table with a row for each size."""
    rows = []
    for size in sizes:
        found = in_a_process(size)
        per_100k = found["seconds"] / size * 1e5
        rows.append([f"{size:,}", *(f"{found[key]:,.0f}" for key in ("before", "peak", "tables")), f"{per_100k:.1f}"])
    return table(("pairs", "MB before", "MB at the peak", "MB of tables", "CPU s per 100k pairs"), rows)


if __name__ == "__main__":
    main()
