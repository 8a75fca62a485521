"""What a prepared corpus depends on: settings, rules, and files, the large ones by their size and time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ...shared.text import DataError, home_path
from ..corpus import bitexts_of, embedded_bitexts, find_bitexts
from ..recipe import Data, EncoderChoice
from ..text.embedded import SPLITS, Split
from ..text.finder import rules_of
from ..text.mutual import MutualAligner
from ..text.tokenizer import identity
from .folder import FORMAT, Prepared
from .reading import Input
from .tools import make_tokenizer

EMBEDDED = "embedded"
# Fields that preparation reads. The others are training's, and any run may choose them anew.
FROM_DATA = (
    *("corpus", "languages", "validation", "test", "evaluation_pairs", "lexicon", "alignments", "align"),
    *("stop_words", "max_length", "max_pairs", "max_bad_lines"),
)
FROM_ENCODER = ("encoder", "lower_case", "vocabulary")
# Names of files and models, which count by what they hold, and a limit that changes nothing once it is kept.
NOT_IN_KEY = {"corpus", "validation", "test", "lexicon", "alignments", "align", "encoder", "max_bad_lines"}


def settings(data: Data, encoder: EncoderChoice) -> dict[str, Any]:
    """Returns the fields that preparation reads, as JSON gives them back."""
    chosen = {name: getattr(data, name) for name in FROM_DATA} | {name: getattr(encoder, name) for name in FROM_ENCODER}
    if encoder.encoder != "small":
        del chosen["vocabulary"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def find_inputs(data: Data, pairs: Any = None) -> list[Input]:
    """Returns the parallel text that the settings name, or that was given from Python in the corpus's place.

    Raises:
        DataError: a file is not what its format promises, languages are missing, or the embedded corpus is not alone.
    """
    if pairs is None and EMBEDDED in data.corpus:
        _check_alone(data)
        return [Input(split, bitext) for split in SPLITS for bitext in embedded_bitexts(split, data.languages)]
    corpus = (
        find_bitexts(data.corpus, data.languages, data.alignments)
        if pairs is None
        else bitexts_of(pairs, data.languages)
    )
    found = [Input("train", bitext) for bitext in corpus]
    held_out: list[tuple[Split, tuple[str, ...]]] = [("validation", data.validation), ("test", data.test)]
    for split, names in held_out:
        for bitext in find_bitexts(names, data.languages) if names else []:
            for there, other in found:
                # Alignments of a corpus are appended to its identity.
                if there != split and f"{other.identity} ".startswith(f"{bitext.identity} "):
                    raise DataError(
                        f"{split}: expected text that is in no other part, got {bitext.name}, which is "
                        f"{'the corpus' if there == 'train' else there} too; name other text, or leave it out"
                    )
            found.append(Input(split, bitext))
    return found


def key(data: Data, encoder: EncoderChoice, inputs: Sequence[Input]) -> str:
    """Returns a hash of all that a prepared corpus depends on, and of nothing else.

    Files of text count by path, size and time, data sets by their own fingerprint, which has the revision in it. Of an
    encoder its tokenizer counts, whatever its weights are; an aligner's weights count too, by size and time.

    Raises:
        DataError: a lexicon is missing, or an encoder or aligner cannot be used.
    """
    languages = [code for _, bitext in inputs for code in (bitext.source_language, bitext.target_language)]
    document = {
        "format": FORMAT,
        "rules": rules_of(data.stop_words, languages),
        "settings": {name: value for name, value in settings(data, encoder).items() if name not in NOT_IN_KEY},
        "inputs": [
            (split, bitext.name, bitext.source_language, bitext.target_language, bitext.identity)
            for split, bitext in inputs
        ],
        "lexicon": list(map(_files, data.lexicon)),
        "align": data.align and _aligner(data.align),
        "encoder": encoder.encoder == "small" or identity(make_tokenizer(data, encoder, ())),
    }
    return hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_fits(prepared: Prepared, data: Data, encoder: EncoderChoice) -> None:
    """Refuses settings of a run that contradict those that its corpus was prepared with.

    A field of Data left at its default says nothing; the encoder has to be the same.

    Raises:
        DataError: with the fields that differ.
    """
    wanted, default = settings(data, encoder), settings(Data(), encoder)
    differing = [
        f"{name} {prepared.settings.get(name)!r} there, {value!r} here"
        for name, value in wanted.items()
        if prepared.settings.get(name) != value and (name in FROM_ENCODER or value != default[name])
    ]
    if differing:
        raise DataError(
            f"prepared: expected the settings that {prepared.path} was made with, got {'; '.join(differing)}; give the "
            "same, or leave them out, or prepare the corpus anew in another folder"
        )


def differences(prepared: Prepared, data: Data, encoder: EncoderChoice) -> str:
    """Returns in words why a folder does not hold what the settings ask for."""
    differing = [
        f"{name} {prepared.settings.get(name)!r} there, {value!r} here"
        for name, value in settings(data, encoder).items()
        if name != "max_bad_lines" and prepared.settings.get(name) != value
    ]
    return "; ".join(differing) or (
        "the same settings, but other sizes or times of their files, or another tokenizer, stop words, rules or Unicode"
    )


def _check_alone(data: Data) -> None:
    if data.corpus != (EMBEDDED,):
        raise DataError(
            f"corpus: expected the embedded corpus alone, or files, got {' '.join(data.corpus)}; give one or the other"
        )
    for name in ("validation", "test", "lexicon", "alignments", "align"):
        if getattr(data, name):
            raise DataError(
                f"{name}: expected nothing with the embedded corpus, which has its own parts and word pairs, "
                f"got {getattr(data, name)!r}; leave it out, or name a corpus"
            )


def _files(name: str) -> list[tuple[str, int, int]]:
    path = home_path(name).resolve()
    found = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    try:
        return [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in found]
    except OSError as error:
        raise DataError(f"{name}: expected a file or a folder, got {error.strerror}; check the path") from error


def _aligner(name: str) -> str:
    try:
        return MutualAligner(name).fingerprint()
    except (ValueError, OSError) as error:
        raise DataError(f"align: {error}") from error
