"""Prepares a corpus once, for any number of runs: read, divided, tokenized; a killed build goes on where it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from ...shared.files import PARTIAL, flush, locked, write_atomically, writing_file
from ...shared.models import load_tokenizer
from ...shared.options import check_type, require
from ...shared.text import DataError, home_path
from ..recipe import Data, EncoderChoice
from ..samples.mixing import times_of_origins
from ..text.embedded import SPLITS, Split
from ..text.finder import WordFinder
from ..text.lexicon import read_lexicon
from ..text.sentences import ParallelSentence
from ..text.tokenizer import definition
from .folder import (
    DOCUMENT,
    TOKENIZER,
    Origin,
    Prepared,
    Written,
    batches_of,
    is_finished,
    open_prepared,
    write_document,
)
from .mapping import map_rows, progress
from .parts import HASHES, KEYS, Fate, Keys, divide, hash_texts, lacking, read_keys
from .place import cache, check_empty, others, refusals, remove_others, unfinished
from .reading import RAW, Input, Raw, batches_kept, check_bad_lines, pairs_in, read_inputs, sentences
from .samples import MakeSamples, Tools, load_tools, open_marks, write_marks
from .settings import check_fits, differences, find_inputs, key, settings
from .summary import Summary, count_pairs
from .tools import make_tokenizer, runs_here, word_source

HELD_OUT: tuple[Split, Split] = ("validation", "test")
# What a recipe names as its corpus when it came from Python.
FROM_PYTHON = "pairs from Python"
# Of every row that was read, in files that processes share.
ARRAYS = ("fates.npy", "source_keys.npy", "target_keys.npy")


def say_on_stderr(text: str) -> None:
    """Prints a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def prepare(
    data: Data,
    encoder: EncoderChoice,
    folder: str | Path | None = None,
    *,
    pairs: Any = None,
    workers: int | None = None,
    say: Callable[[str], None] = say_on_stderr,
) -> Prepared:
    """Prepares the corpus of a recipe, or opens it if that was done before.

    Word pairs are kept where each word occurs exactly once in its sentence and is not a stop word, and a run of
    wordpieces covers exactly its characters on both sides (Chen et al. 2022). Pairs without a word pair are kept for
    sentence-level training. Several processes may call it at once: one builds, the others wait for its lock. Memory is
    a few hundred MB and some 40 bytes a pair. What a killed build finished is kept beside the folder.

    Args:
        data: the recipe's data; with ``data.prepared`` that folder is opened.
        encoder: the recipe's encoder, whose tokenizer is used.
        folder: where to build; by default a folder of the ``datasets`` cache that is named after all that the samples
            depend on, and can be deleted at any time. If it holds this corpus already, every checksum is compared.
        pairs: parallel text from Python in the corpus's place: a ``datasets.Dataset``, an iterable of (source,
            target), or a mapping such as ``{"en-fr": pairs}``.
        workers: processes that tokenize, at least 1; by default one for each core that this process may use.
        say: is told what users should know.

    Raises:
        DataError: a file is not what its format promises, too many lines cannot be read, a part has no two pairs, the
            folder holds another corpus or a damaged one, or the disk is full.
        OptionError: ``workers`` is no number of processes, ``data.mixing`` names nothing of the corpus, or the folder's
            name is not UTF-8.
    """
    check_type("workers", workers, int | None)
    require(workers is None or workers >= 1, "workers", "at least 1", workers, "raise it")
    check_type("folder", None if folder is None else str(folder), str | None)
    if data.prepared is not None and pairs is not None:
        raise DataError(
            f"pairs: expected none with the prepared corpus {data.prepared}, got some; leave out one of them"
        )
    if data.prepared is not None and folder is None:
        prepared = open_prepared(data.prepared)
        check_fits(prepared, data, encoder)
        prepared.check(whole=False)
        return prepared
    inputs = find_inputs(data, pairs)
    # Refused here, a mixing that means nothing costs no hours of preparation.
    times_of_origins(data.mixing, _origins([one for one in inputs if one.split == "train"]))
    if pairs is not None:
        data = replace(data, corpus=(FROM_PYTHON,))
    name = key(data, encoder, inputs)
    place = cache() / name if folder is None else home_path(folder)
    if is_finished(place):
        prepared = _checked(place, name, data, encoder)
        prepared.check(whole=folder is not None)
        return prepared
    # Named so also where the folder is given as a dot.
    place = place.resolve() if place.name in ("", ".", "..") else place
    building = unfinished(place, name)

    def waiting() -> None:
        say(f"waiting for another process that prepares {place}")

    with refusals(place), locked(building, wait=True, waiting=waiting):
        if not is_finished(place):
            check_empty(place)
            if not is_finished(building):
                say(f"preparing the corpus in {place}")
                for other in others(building):
                    say(f"{other} is of other settings or files; it is removed when this preparation is finished")
                _Build(data, encoder, inputs, name, building, workers or processors(), say).run()
            check_empty(place)
            os.replace(building, place)
            remove_others(building, say)
        elif building.is_dir():
            # Another process finished while this one waited, and the lock made the folder anew.
            building.rmdir()
    return _checked(place, name, data, encoder)


def _origins(inputs: Sequence[Input]) -> list[Origin]:
    return [Origin(bitext.name, bitext.source_language, bitext.target_language) for _, bitext in inputs]


def processors() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked(place: Path, name: str, data: Data, encoder: EncoderChoice) -> Prepared:
    prepared = open_prepared(place)
    if prepared.key != name:
        raise DataError(
            f"{place}: expected a folder without a prepared corpus, or with this one, got one made from "
            f"{differences(prepared, data, encoder)}; choose another folder, or remove this one"
        )
    if prepared.bad_lines > data.max_bad_lines:
        raise DataError(
            f"corpus: expected at most {data.max_bad_lines:,} lines that cannot be read, got {prepared.bad_lines:,}; "
            f"correct them, or skip them with --max-bad-lines {prepared.bad_lines}"
        )
    return prepared


class _Build:
    """One corpus on its way through the passes; each leaves files that a later start takes over."""

    def __init__(
        self,
        data: Data,
        encoder: EncoderChoice,
        inputs: Sequence[Input],
        name: str,
        folder: Path,
        workers: int,
        say: Callable[[str], None],
    ) -> None:
        self.data, self.encoder, self.inputs, self.key = data, encoder, inputs, name
        self.folder, self.workers, self.say = folder, workers, say
        self.work = folder / "work"
        self.origins = _origins(inputs)
        self.languages = [(origin.source_language, origin.target_language) for origin in self.origins]
        self.notes: list[str] = []

    def run(self) -> None:
        """Goes through all passes."""
        self.work.mkdir(exist_ok=True)
        raw = self._read()
        keys = self._hash(raw)
        fates = self._divide(raw, keys)
        self._tokenize(raw, fates)
        made = self._samples(raw, keys, fates)
        self._finish(raw, keys, fates, made)

    def note(self, text: str) -> None:
        """Says something that users should know, and keeps it."""
        self.notes.append(text)
        self.say(text)

    def _read(self) -> Raw:
        # What is refused of these is refused before hours of reading.
        if self.data.lexicon:
            read_lexicon(self.data.lexicon, list(dict.fromkeys(self.languages)))
        with progress("reading", pairs_in(self.inputs)) as move:
            raw = read_inputs(self.inputs, self.work / "raw", move)
        if not raw.total.rows and not raw.total.bad.total():
            names = ", ".join(origin.name for origin in self.origins)
            raise DataError(f"corpus: expected sentence pairs, got none in {names}; give files with text")
        if (bad := check_bad_lines(raw.total, self.data.max_bad_lines)) is not None:
            self.note(bad)
        return raw

    def _hash(self, raw: Raw) -> Keys:
        with progress("hashing", raw.total.rows) as move:
            hashes = map_rows(
                raw.files,
                self.work / "hashes",
                hash_texts,
                HASHES,
                workers=self.workers,
                move=move,
            )
        return read_keys(raw.files, hashes, self.origins, [split for split, _ in self.inputs])

    def _divide(self, raw: Raw, keys: Keys) -> np.ndarray:
        fates = divide(
            keys,
            given=[split for split in HELD_OUT if any(given == split for given, _ in self.inputs)],
            wanted=self.data.evaluation_pairs * 3 // 2,
            max_pairs=self.data.max_pairs,
        )
        if not (fates == Fate.train).any():
            raise DataError(
                f"train: expected sentence pairs to train on, got none out of {raw.total.given.total():,}, of which "
                f"{int((fates == Fate.held_out).sum()):,} have a text of validation or test; give more text, or other "
                "text for these"
            )
        self._check_held_out(keys, fates)
        for name, array in zip(ARRAYS, (fates, keys.source, keys.target), strict=True):
            with writing_file(self.work / name) as path, path.open("wb") as file:
                np.save(file, array)
        held = int(((keys.given_for == Fate.train) & (fates == Fate.held_out)).sum())
        if held:
            self.note(f"train: left out {held:,} pairs with a text of validation or test")
        if shared := int(((keys.given_for == Fate.validation) & (fates == Fate.held_out)).sum()):
            self.note(f"validation: skipped {shared:,} pairs whose texts are also in test")
        return fates

    def _check_held_out(self, keys: Keys, fates: np.ndarray, *, after: str = "") -> None:
        names = list(dict.fromkeys(origin.languages for origin in self.origins))
        for split in HELD_OUT:
            without = [names[number] for number in lacking(keys, fates, split)]
            if len(without) == len(np.unique(keys.languages)):
                raise DataError(
                    f"{split}: expected at least two sentence pairs that share no sentence in some language pair, to "
                    f"measure retrieval on, got {int((fates == Fate[split]).sum()):,} pairs{after}; give more text, or "
                    f"separate pairs with --{split}"
                )
            if without and not after:
                self.note(f"{split}: too few pairs to measure on in {', '.join(without)}")

    def _batches(self, raw: Raw, fates: np.ndarray) -> Iterator[list[ParallelSentence]]:
        for batch in batches_kept(raw.files, fates, Fate.train):
            yield sentences(batch, self.languages)

    def _texts(self, raw: Raw, fates: np.ndarray, move: Callable[[int], None]) -> Iterator[str]:
        for batch in batches_kept(raw.files, fates, Fate.train):
            for name in ("source", "target"):
                yield from batch.column(name).to_pylist()
            move(len(batch))

    def _tokenize(self, raw: Raw, fates: np.ndarray) -> None:
        place = self.folder / TOKENIZER
        if place.is_dir():
            with suppress(ValueError, TypeError, AttributeError):
                load_tokenizer(place)
                return
            # A machine that went down may leave names without content.
            shutil.rmtree(place)
        if self.encoder.encoder == "small":
            with progress("tokenizer", int((fates == Fate.train).sum())) as move:
                tokenizer = make_tokenizer(self.data, self.encoder, self._texts(raw, fates, move))
        else:
            tokenizer = make_tokenizer(self.data, self.encoder, ())
        partial = self.folder / (TOKENIZER + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        os.replace(partial, place)

    def _samples(self, raw: Raw, keys: Keys, fates: np.ndarray) -> dict[Split, list[Path]]:
        words = word_source(
            self.data,
            lambda: self._batches(raw, fates),
            int((fates == Fate.train).sum()),
            languages=list(dict.fromkeys(self.languages)),
            has_words=raw.total.words,
            folder=self.work,
        )
        tools = self.work / f"tools-{uuid4().hex}"
        Tools.write(
            tools,
            finder=WordFinder(words, self.data.stop_words),
            tokenizer=self.folder / TOKENIZER / "tokenizer.json",
            unknown=self._tokenizer().unk_token_id,
            languages=self.languages,
            arrays=[self.work / name for name in ARRAYS],
        )
        load_tools(str(tools))  # Before processes are forked, so that they have them too.
        make = MakeSamples(str(tools), self.data.max_length, self._too_long("train", len(fates)), int(Fate.train))
        made: dict[Split, list[Path]] = {}
        with progress("samples", len(fates)) as move:
            made["train"] = self._map(raw.files, "train", make, runs_here(words), move)
        for split in HELD_OUT:
            file = self.work / f"{split}.arrow"
            schema = pa.unify_schemas([RAW, HASHES])
            with writing_file(file) as path, pa.ipc.new_stream(str(path), schema) as writer:
                for batch in self._with_keys(raw, keys, fates, split):
                    writer.write_batch(batch)
            rows = int((fates == Fate[split]).sum())
            marking = replace(make, fate=None, too_long=self._too_long(split, rows))
            with progress(f"samples of {split}", rows) as move:
                made[split] = self._map([file], split, marking, runs_here(words), move)
        return made

    def _too_long(self, split: Split, rows: int) -> Path:
        return write_marks(self.work / f"too_long_{split}.npy", rows)

    def _map(
        self, files: Sequence[Path], split: Split, make: MakeSamples, here: bool, move: Callable[[int], None]
    ) -> list[Path]:
        workers = 1 if here else self.workers
        return map_rows(files, self.folder / split, make, make.schema, workers=workers, move=move)

    def _with_keys(self, raw: Raw, keys: Keys, fates: np.ndarray, split: Split) -> Iterator[pa.RecordBatch]:
        rows = np.flatnonzero(fates == Fate[split])
        start = 0
        for batch in batches_kept(raw.files, fates, Fate[split]):
            these = rows[start : start + len(batch)]
            start += len(batch)
            for name, column in zip(KEYS, (keys.source, keys.target), strict=True):
                batch = batch.append_column(name, pa.array(column[these]))
            yield batch

    def _finish(self, raw: Raw, keys: Keys, fates: np.ndarray, made: dict[Split, list[Path]]) -> None:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(definition(self._tokenizer()).encode())
        counts = {}
        for split in SPLITS:
            summary = Summary(self.origins)
            summary.add(made[split])
            digest.update(summary.digest().encode())
            counts[split] = summary.counts
            too_long = int(open_marks(self._too_long(split, 0)).sum())
            count_pairs(
                summary.counts,
                split,
                inputs=self.inputs,
                read=raw.total,
                keys=keys,
                fates=fates,
                too_long=too_long,
                folder=self.folder,
            )
        if not counts["train"].rows:
            raise DataError(
                f"train: expected sentence pairs to train on, got none: skipped {counts['train'].skipped_pairs}; raise "
                f"max_length={self.data.max_length}, or give more text"
            )
        if not counts["train"].rows_with_words:
            self.note("train: no word pair was found in any sentence pair; only sentences can be trained on")
        if any(counts[split].skipped_pairs["too long"] for split in HELD_OUT):
            self._check_what_fits(made)
        shutil.rmtree(self.work)
        wanted = {path for paths in made.values() for path in paths}
        for split in SPLITS:
            for path in (self.folder / split).iterdir():
                if path not in wanted:
                    path.unlink()
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        prepared = Prepared(
            path=self.folder,
            fingerprint=digest.hexdigest(),
            key=self.key,
            settings=settings(self.data, self.encoder),
            origins=self.origins,
            counts=counts,
            bad_lines=raw.total.bad.total(),
            notes=self.notes,
            files={path.relative_to(self.folder).as_posix(): Written.of(path) for path in files},
        )
        for path in files:
            flush(path)
        write_atomically(self.folder / DOCUMENT, write_document(prepared))

    def _check_what_fits(self, made: dict[Split, list[Path]]) -> None:
        """Checks the held-out parts again, without the pairs that were too long."""
        files = [path for split in HELD_OUT for path in made[split]]
        splits: list[Split] = [split for split in HELD_OUT for path in made[split] for _ in batches_of(path)]
        keys = read_keys(files, files, self.origins, ["train"] * len(self.origins))
        sizes = [len(batch) for path in files for batch in batches_of(path)]
        fates = np.repeat(np.array([Fate[split] for split in splits], dtype=np.uint8), sizes)
        self._check_held_out(keys, fates, after=f" of at most {self.data.max_length} wordpieces a side")

    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder / TOKENIZER)
