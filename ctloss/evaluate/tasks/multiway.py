"""Bitext retrieval in sentences of many languages, FLORES-200 and NTREX-128: accuracy and xsim of every two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...shared.options import Group, option
from ...shared.vectors import largest, unit
from ..data.multiway import FLORES, NTREX, Layout, read_multiway
from ..models.encoder import Encoder, sentence_vectors
from ..results.items import Items, digest_of_items
from ..results.scores import Outcome, Score, with_means
from .retrieval import line_of, ratio_margins

if TYPE_CHECKING:
    import numpy as np

# Of LASER's xsim.
NEIGHBOURS = 4


@dataclass(frozen=True)
class MultiwayOptions(Group):
    """Which pairs of languages are searched, and in which part of FLORES-200."""

    language_pairs: Literal["all", "english"] = option("all", "every two languages, or English with each")
    flores_split: Literal["devtest", "dev"] = option("devtest", "the part of FLORES-200; published figures use devtest")


def evaluate_flores(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: MultiwayOptions | None = None,
) -> Outcome:
    """Sentence retrieval in FLORES-200 (NLLB Team 2022, arXiv 2207.04672) between every two languages, both ways.

    A sentence of one language looks for its translation among all sentences of the other. ``"accuracy"`` is the share
    that find it by cosine. ``"xsim"`` is the error rate with the ratio margin of 4 neighbours in place of the cosine,
    as LASER's xsim has it (Artetxe and Schwenk 2019, arXiv 1811.01136), and ``"xsim_cosine"`` the one with the cosine,
    1 - accuracy. All three count line numbers: a sentence that occurs twice is right once. Each language is encoded
    once.

    Args:
        encoder: an encoder, or the name or folder of one.
        data: the folder as unpacked: dev/ and devtest/ with files such as ``devtest/deu_Latn.devtest``.
        languages: codes as in the files' names, or that mean the same; by default all in the folder.

    Returns:
        Scores by direction, and their means over all directions, from English and to English; no predictions.

    Raises:
        DataError: a language is missing, or a file is malformed.
    """
    options = options or MultiwayOptions()
    return _evaluate("flores", FLORES, encoder, Path(data), languages, options, options.flores_split)


def evaluate_ntrex(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: MultiwayOptions | None = None,
) -> Outcome:
    """The same in NTREX-128 (Federmann et al. 2022): newstest2019 in 128 languages.

    The folder holds ``NTREX-128/newstest2019-src.eng.txt`` and ``newstest2019-ref.deu.txt`` and so on. A code's script
    or region follows an underscore in the scores, ``zho_TW``. See :func:`evaluate_flores`.
    """
    return _evaluate("ntrex", NTREX, encoder, Path(data), languages, options or MultiwayOptions(), "")


def _evaluate(
    task: str,
    layout: Layout,
    encoder: Encoder | str | Path,
    data: Path,
    languages: Sequence[str] | None,
    options: MultiwayOptions,
    split: str,
) -> Outcome:
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    if languages is not None and options.language_pairs == "english":
        languages = [layout.english, *languages]
    texts = read_multiway(data, layout, languages, split)
    vectors = {
        language: unit(sentence_vectors(encoder, lines, partial(line_of, path)))
        for language, (path, lines) in texts.items()
    }
    scores: list[Score] = []
    items: list[Items] = []
    digests = {language: digest_of_items(lines) for language, (_, lines) in texts.items()}
    for a, b in combinations(texts, 2):
        if options.language_pairs == "english" and layout.english not in (a, b):
            continue
        for name, (hits, margin_hits) in zip((f"{a}-{b}", f"{b}-{a}"), search(vectors[a], vectors[b]), strict=True):
            accuracy = float(hits.mean())
            scores += [
                Score(task, name, "accuracy", accuracy),
                Score(task, name, "xsim", 1 - float(margin_hits.mean())),
                Score(task, name, "xsim_cosine", 1 - accuracy),
            ]
            asked = f"{digests[a]} {digests[b]}"
            items += [
                Items(name, metric, asked, found, aligned=task)
                for metric, found in (("accuracy", hits), ("xsim", ~margin_hits))
            ]
    english = [score for score in scores if layout.english in score.language.split("-")]
    means = with_means(scores)[len(scores) :] + with_means(english, pivot=layout.english)[len(english) :]
    return Outcome(scores + means, {}, items)


def search(x: np.ndarray, y: np.ndarray, k: int = NEIGHBOURS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tells of each row of x whether it finds the row of y with its number, and of each row of y the reverse.

    Args:
        x, y: unit vectors (n, d).
        k: neighbours of the margin.

    Returns:
        For each direction, who finds it by cosine, and who by margin among its k nearest: two arrays (n,) of booleans.

    Example:
        >>> import numpy as np
        >>> x, y = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 0]]
        >>> [[found.tolist() for found in way] for way in search(x, y, 2)]
        [[[True, False], [True, False]], [[True, False], [True, False]]]
    """
    import numpy as np

    cosines = x @ y.T
    back, back_rows = largest(cosines.T.copy(), k)
    forth, forth_rows = largest(cosines, k)
    means = [side.mean(axis=1, dtype=np.float64) for side in (forth, back)]
    numbers = np.arange(len(x))
    found = []
    for values, rows, own, other in ((forth, forth_rows, *means), (back, back_rows, *reversed(means))):
        best = ratio_margins(values, rows, own, other).argmax(axis=1)
        found.append((rows[:, 0] == numbers, rows[numbers, best] == numbers))
    return found
