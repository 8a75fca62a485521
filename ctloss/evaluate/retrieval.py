"""Sentence retrieval: for each sentence the nearest of the other language's, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .encoder import Encoder
from .neighbours import centred, nearest, random_pair_cosine
from .parallel import TWO_LETTERS, read_aligned, read_tatoeba
from .score import DataError, Outcome, Score

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PairsOptions:
    """How line-aligned text is searched.

    Args:
        pivot: the language that all others are paired with; by default every two languages are a pair.
        task: what the scores call it; by default the files' common name.
    """

    pivot: str | None = None
    task: str | None = None


def evaluate_tatoeba(
    encoder: Encoder | str | Path, data: str | Path, languages: Sequence[str] | None = None
) -> Outcome:
    """Tatoeba's accuracy: the share of sentences whose nearest one of the other language, by cosine, translates them.

    The way from English (``"eng-deu"``: an English sentence looks for its German one) is XTREME's score, the one of
    published tables. Beside it: the way to English, both ways with each language's mean taken out (``"_centred"``), the
    cosine of random pairs, and the means over languages as ``"eng-X"`` and ``"X-eng"``. Predictions are XTREME's: for
    each English sentence in the order of code points the line, from 0, of the sentence found.

    Args:
        encoder: an encoder, or the name or folder of one (see :class:`Encoder` for what is then assumed).
        data: the folder of the files, see :func:`read_tatoeba`. Where XTREME's label file is missing, predictions are
            made without scores.
        languages: codes; by default all in the folder.

    Raises:
        DataError: a language is missing, or a file is not what it should be.
    """
    import numpy as np

    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    scores: list[Score] = []
    predictions = {}
    for pairs in read_tatoeba(Path(data), languages):
        x, y = encoder.sentences(pairs.first), encoder.sentences(pairs.second)
        found = nearest(y, x)[1][:, 0]
        order = sorted(range(len(y)), key=lambda j: pairs.second[j])
        code = pairs.languages[0]
        predictions[TWO_LETTERS.get(code, code)] = [str(found[j]) for j in order]
        if pairs.gold is not None:
            # The candidates keep their order: of equally near ones, the scores then take the one that is predicted.
            scores += both_ways("tatoeba", pairs.languages[0], "eng", x, y[np.argsort(pairs.gold)])
    return Outcome(scores + means("tatoeba", scores, "eng"), predictions)


def evaluate_pairs(
    encoder: Encoder | str | Path,
    data: str | Path,
    languages: Sequence[str] | None = None,
    options: PairsOptions | None = None,
) -> Outcome:
    """Sentence retrieval in line-aligned text, such as multi30k's test sets, between every two languages.

    Args:
        encoder: an encoder, or the name or folder of one.
        data: the common part of the files' names: ``multi30k/test_2016_flickr`` for test_2016_flickr.de and so on.
        languages: codes; by default all that there are files of.
        options: see :class:`PairsOptions`.

    Returns:
        Scores as of Tatoeba, their mean over all pairs and ways as ``"mean"``; no predictions.

    Raises:
        DataError: a language is missing, or a file is not what it should be.
    """
    options = options or PairsOptions()
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    prefix = Path(data)
    texts = read_aligned(prefix, languages)
    if options.pivot is not None and options.pivot not in texts:
        raise DataError(f"{prefix}.{options.pivot}: expected the pivot among the languages, got {', '.join(texts)}")
    vectors = {language: encoder.sentences(lines) for language, lines in texts.items()}
    codes = list(vectors)
    chosen = [(a, b) for i, a in enumerate(codes) for b in codes[i + 1 :] if options.pivot in (None, a, b)]
    task = options.task or prefix.name
    scores = [score for a, b in chosen for score in both_ways(task, a, b, vectors[a], vectors[b])]
    return Outcome(scores + means(task, scores), {})


def both_ways(task: str, first: str, second: str, x: np.ndarray, y: np.ndarray) -> list[Score]:
    """Scores the retrieval of row i of y by row i of x and the other way, as they are and centred.

    Args:
        task: what the scores call it.
        first: language of x.
        second: language of y.
        x, y: (n, d).
    """
    scores = []
    for suffix, a, b in (("", x, y), ("_centred", centred(x), centred(y))):
        for name, queries, candidates in ((f"{first}-{second}", a, b), (f"{second}-{first}", b, a)):
            found = nearest(queries, candidates)[1][:, 0]
            right = sum(int(row) == i for i, row in enumerate(found))
            scores.append(Score(task, name, f"accuracy{suffix}", right / len(found)))
        if len(x) > 1:
            scores.append(Score(task, f"{first}-{second}", f"random_pair_cosine{suffix}", random_pair_cosine(a, b)))
    return scores


def means(task: str, scores: Sequence[Score], pivot: str | None = None) -> list[Score]:
    """Averages scores over languages by metric; with a pivot each way by itself, as ``"pivot-X"`` and ``"X-pivot"``."""
    groups: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        name = "mean"
        if pivot is not None:
            name = f"{pivot}-X" if score.language.startswith(f"{pivot}-") else f"X-{pivot}"
        groups.setdefault((name, score.metric), []).append(score.value)
    return [
        Score(task, name, metric, sum(values) / len(values), about=f"mean of {len(values)}")
        for (name, metric), values in groups.items()
    ]
