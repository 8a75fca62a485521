"""Word positioned samples (WPS), built in advance: parallel sentences as wordpieces, with the spans of word pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...shared.files import write_atomically, writing_file
from ...shared.models import check_fast
from ..text.finder import WordFinder, WordSource
from ..text.sentences import ParallelSentence, Span, stable_hash, text_key
from ..text.tokenizer import definition

if TYPE_CHECKING:
    import pyarrow
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

# Part of every fingerprint: builds made by other versions of these rules are not reused.
FORMAT = 1
ARROW_NAME, MANIFEST_NAME = "wps.arrow", "manifest.json"
# Large enough for the tokenizer to gain from batches, small enough to stay in cache and to show progress.
CHUNK = 2048


@dataclass
class WPSCounts:
    """What a build kept, and what it skipped and why.

    Attributes:
        sentences: sentence pairs read.
        rows: sentence pairs kept.
        rows_with_words: rows with at least one word pair.
        word_pairs: word pairs in all rows.
        skipped_sentences: by reason: ``empty`` (a side without text), ``duplicate`` (both texts seen before in these
            languages), ``too long`` (more wordpieces than allowed on either side).
        skipped_words: of the word pairs proposed for the kept rows, by reason: ``stop word``, ``not unique`` (a word
            occurs again in its sentence), ``ambiguous`` (a word has several translations left), ``span not verified``
            (no run of known wordpieces covers exactly the word).
        languages: rows, rows with words and word pairs by language pair, such as ``"en-fr"``.
    """

    sentences: int = 0
    rows: int = 0
    rows_with_words: int = 0
    word_pairs: int = 0
    skipped_sentences: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("empty", "duplicate", "too long"), 0)
    )
    skipped_words: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop word", "not unique", "ambiguous", "span not verified"), 0)
    )
    languages: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Returns a summary of a few lines."""

        def reasons(counts: dict[str, int]) -> str:
            return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count) or "none"

        lines = [
            f"{self.rows:,} of {self.sentences:,} sentence pairs kept (skipped: {reasons(self.skipped_sentences)})",
            f"{self.rows_with_words:,} of them with words, {self.word_pairs:,} word pairs "
            f"(skipped: {reasons(self.skipped_words)})",
        ]
        for name, c in self.languages.items():
            lines.append(f"{name}: {c['rows']:,} rows, {c['rows_with_words']:,} with words, {c['word_pairs']:,} pairs")
        return "\n".join(lines)


def build_wps(
    pairs: Iterable[ParallelSentence],
    tokenizer: PreTrainedTokenizerBase,
    source_of_words: WordSource,
    *,
    folder: str | Path,
    max_length: int = 128,
    progress: bool = True,
) -> WPSCounts:
    """Builds the word positioned samples of a corpus in a folder, or reuses those already there.

    A word pair is used if each of its words occurs exactly once in its sentence and is not a stop word, and a run of
    wordpieces covers exactly its characters on both sides (Chen et al. 2022). Sentence pairs without a word pair are
    kept for sentence-level training.

    ``folder/wps.arrow`` (Arrow IPC, memory-mapped when read) holds a row for each kept sentence pair: source, target
    (texts); source_language, target_language; source_ids, target_ids (with special tokens); word_pairs (lists of
    source start, source end, target start, target end: positions in the ids, end exclusive); source_words,
    target_words (their texts, case folded); word_types (a hash of languages and words, see held_out);
    source_key, target_key (hashes of the normalised texts). ``folder/manifest.json`` holds the counts and the
    fingerprint of tokenizer, corpus, word source and options; a build with an equal fingerprint is reused. Both files
    are replaced atomically, the manifest last; only one process may build in a folder at a time.

    The corpus is read twice (an iterator is first read into memory). ``max_length`` counts the wordpieces of a side,
    special tokens included.

    Raises:
        DataError: from reading the corpus.
        ValueError: the tokenizer is not fast, no sentence pair is left, or max_length leaves no room for words.
    """
    check_fast(tokenizer)
    if max_length < 3:
        raise ValueError(
            f"expected max_length of at least 3 (two special tokens and a word), got {max_length}; raise it"
        )
    if isinstance(pairs, Iterator):
        pairs = list(pairs)
    folder = Path(folder)
    fingerprint, total = _fingerprint(pairs, tokenizer, source_of_words, max_length)
    manifest = read_manifest(folder)
    if manifest is not None and manifest["fingerprint"] == fingerprint:
        return WPSCounts(**manifest["counts"])

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    builder = _Builder(tokenizer, source_of_words, max_length)
    with writing_file(folder / ARROW_NAME) as unfinished:
        _write(unfinished, builder, pairs, total, progress)
        if not builder.counts.rows:
            raise ValueError(
                f"expected sentence pairs to train on, got none out of {total} "
                f"(skipped: {builder.counts.skipped_sentences}); "
                + (f"raise max_length={max_length}, or " if builder.counts.skipped_sentences["too long"] else "")
                + "give more text"
            )
    document = {"format": FORMAT, "fingerprint": fingerprint, "counts": asdict(builder.counts)}
    write_atomically(folder / MANIFEST_NAME, json.dumps(document, indent=1))
    return builder.counts


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Returns the manifest of a finished build, or None if it is missing, unreadable or of another format."""
    folder = Path(folder)
    try:
        document = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    finished = isinstance(document, dict) and document.get("format") == FORMAT and (folder / ARROW_NAME).is_file()
    return document if finished else None


def read_table(folder: str | Path) -> pyarrow.Table:
    """Returns the rows of a build, memory-mapped."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(Path(folder) / ARROW_NAME))).read_all()


def wordpiece_span(encoding: Encoding, text: str, word: Span, unknown_id: int | None = None) -> Span | None:
    """Returns the run of wordpieces that covers a word exactly: (start, end) in ``encoding.ids``, end exclusive.

    None if no run of wordpieces covers exactly the characters of the word (a wordpiece extends beyond it, characters
    are missing) or one of them is unknown.

    Args:
        encoding: the tokenizer's encoding of ``text``, special tokens included.
        text: the encoded text.
        word: the word's character span in ``text``, end exclusive.
        unknown_id: id of the unknown wordpiece.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "hot": 1, "dog": 2, "##s": 3}, unk_token="[UNK]"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        >>> wordpiece_span(tokenizer.encode("hot dogs"), "hot dogs", (4, 8))
        (1, 3)
        >>> wordpiece_span(tokenizer.encode("hot dogs"), "hot dogs", (4, 7))  # "dog" is a wordpiece
        (1, 2)
        >>> wordpiece_span(tokenizer.encode("hot dogs"), "hot dogs", (4, 6)) is None  # "do" is not
        True
    """
    start, end = word
    if not 0 <= start < end <= len(text):
        return None
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None or first > last:
        return None
    before, after = encoding.token_to_chars(first), encoding.token_to_chars(last)
    if before is None or after is None:
        return None
    # Some tokenizers include the space before a word in its first wordpiece.
    if text[before[0] : after[1]].strip() != text[start:end]:
        return None
    if unknown_id is not None and unknown_id in encoding.ids[first : last + 1]:
        return None
    return first, last + 1


def _fingerprint(
    pairs: Iterable[ParallelSentence], tokenizer: PreTrainedTokenizerBase, source_of_words: WordSource, max_length: int
) -> tuple[str, int]:
    digest, total = hashlib.blake2b(digest_size=16), 0
    for sentence in pairs:
        digest.update(repr(sentence).encode())
        total += 1
    digest.update(definition(tokenizer).encode())
    digest.update(repr((FORMAT, WordFinder(source_of_words).fingerprint(), max_length)).encode())
    return digest.hexdigest(), total


def _write(path: Path, builder: _Builder, pairs: Iterable[ParallelSentence], total: int, progress: bool) -> None:
    import pyarrow as pa
    from tqdm.auto import tqdm

    schema = pa.schema(
        {
            "source": pa.string(),
            "target": pa.string(),
            "source_language": pa.string(),
            "target_language": pa.string(),
            "source_ids": pa.list_(pa.int32()),
            "target_ids": pa.list_(pa.int32()),
            "word_pairs": pa.list_(pa.list_(pa.int32(), 4)),
            "source_words": pa.list_(pa.string()),
            "target_words": pa.list_(pa.string()),
            "word_types": pa.list_(pa.uint64()),
            "source_key": pa.uint64(),
            "target_key": pa.uint64(),
        }
    )
    sentences = iter(pairs)
    with (
        path.open("wb") as file,
        pa.ipc.new_file(file, schema) as writer,
        tqdm(total=total, desc="word positioned samples", unit=" pairs", disable=not progress) as bar,
    ):
        while chunk := list(islice(sentences, CHUNK)):
            if rows := builder.rows(chunk):
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
            bar.update(len(chunk))


class _Builder:
    """Turns sentence pairs into rows and counts them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source_of_words: WordSource, max_length: int) -> None:
        self.counts = WPSCounts()
        self._tokenizer = tokenizer
        self._finder = WordFinder(source_of_words)
        self._max_length = max_length
        self._seen: set[int] = set()

    def rows(self, sentences: Sequence[ParallelSentence]) -> list[dict[str, Any]]:
        """Returns the rows of those sentence pairs that are kept."""
        self.counts.sentences += len(sentences)
        fresh = [(sentence, keys) for sentence in sentences if (keys := self._keys(sentence)) is not None]
        if not fresh:
            return []
        texts = [sentence.source for sentence, _ in fresh] + [sentence.target for sentence, _ in fresh]
        encodings = self._tokenizer(
            texts,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        ).encodings
        rows = []
        for i, (sentence, (source_key, target_key)) in enumerate(fresh):
            source, target = encodings[i], encodings[len(fresh) + i]
            if max(len(source), len(target)) > self._max_length:
                self.counts.skipped_sentences["too long"] += 1
                continue
            row = {
                "source": sentence.source,
                "target": sentence.target,
                "source_language": sentence.source_language,
                "target_language": sentence.target_language,
                "source_ids": source.ids,
                "target_ids": target.ids,
                "source_key": source_key,
                "target_key": target_key,
                **self._words(sentence, source, target),
            }
            rows.append(row)
            self._count(sentence, len(row["word_pairs"]))
        return rows

    def _keys(self, sentence: ParallelSentence) -> tuple[int, int] | None:
        source, target = text_key(sentence.source), text_key(sentence.target)
        if not source or not target:
            self.counts.skipped_sentences["empty"] += 1
            return None
        pair = stable_hash(sentence.source_language, source, sentence.target_language, target)
        if pair in self._seen:
            self.counts.skipped_sentences["duplicate"] += 1
            return None
        self._seen.add(pair)
        return stable_hash(source), stable_hash(target)

    def _words(self, sentence: ParallelSentence, source: Encoding, target: Encoding) -> dict[str, list]:
        unknown = self._tokenizer.unk_token_id
        kept: dict[str, list] = {"word_pairs": [], "source_words": [], "target_words": [], "word_types": []}
        [found], skipped = self._finder.find([sentence])
        for reason, count in skipped.items():
            self.counts.skipped_words[reason] += count
        for a, b in found:
            source_span = wordpiece_span(source, sentence.source, a, unknown)
            target_span = wordpiece_span(target, sentence.target, b, unknown)
            if source_span is None or target_span is None:
                self.counts.skipped_words["span not verified"] += 1
                continue
            source_word, target_word = sentence.source[slice(*a)].casefold(), sentence.target[slice(*b)].casefold()
            kept["word_pairs"].append([*source_span, *target_span])
            kept["source_words"].append(source_word)
            kept["target_words"].append(target_word)
            kept["word_types"].append(
                stable_hash(sentence.source_language, source_word, sentence.target_language, target_word)
            )
        return kept

    def _count(self, sentence: ParallelSentence, word_pairs: int) -> None:
        name = f"{sentence.source_language}-{sentence.target_language}"
        language = self.counts.languages.setdefault(name, {"rows": 0, "rows_with_words": 0, "word_pairs": 0})
        self.counts.rows += 1
        self.counts.rows_with_words += word_pairs > 0
        self.counts.word_pairs += word_pairs
        language["rows"] += 1
        language["rows_with_words"] += word_pairs > 0
        language["word_pairs"] += word_pairs
