"""The evaluations that the command offers: what each is called, where its data lie, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .classification import evaluate_pawsx, evaluate_xnli
from .mining import evaluate_bucc
from .retrieval import evaluate_pairs, evaluate_tatoeba
from .score import Outcome
from .tagging import evaluate_panx, evaluate_udpos
from .tasks import PANX, PAWSX, UDPOS, XNLI, Task
from .words import evaluate_alignment, evaluate_words


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Args:
        title: what tables call it.
        run: its function.
        places: where its data lie in a folder of several tasks' data: folders, or for ``pairs`` files' common name.
        patterns: names of its files; of a fine-tuned task they follow from ``task``.
        task: what is fine-tuned; None where an encoder is used as it is.
        submission: XTREME's name of it; None where it is none of XTREME's.
    """

    title: str
    run: Callable[..., Outcome]
    places: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    task: Task | None = None
    submission: str | None = None


EVALUATIONS = {
    "xnli": Evaluation("XNLI", evaluate_xnli, XNLI.folders, task=XNLI, submission="xnli"),
    "pawsx": Evaluation("PAWS-X", evaluate_pawsx, PAWSX.folders, task=PAWSX, submission="pawsx"),
    "pos": Evaluation("POS", evaluate_udpos, (*UDPOS.folders, "ud/pud"), task=UDPOS, submission="udpos"),
    "ner": Evaluation("NER", evaluate_panx, PANX.folders, task=PANX, submission="panx"),
    "bucc": Evaluation("BUCC", evaluate_bucc, ("bucc2018", "bucc"), ("*-en.*",), submission="bucc2018"),
    "tatoeba": Evaluation(
        "Tatoeba", evaluate_tatoeba, ("tatoeba",), ("*-eng.*", "*-en.*", "test-*.tsv"), submission="tatoeba"
    ),
    "pairs": Evaluation("line-aligned pairs", evaluate_pairs, ("multi30k/test_2016_flickr",)),
    "words": Evaluation("word translation", evaluate_words, ("lexicon",), ("*.txt",)),
    "align": Evaluation("word alignment", evaluate_alignment, ("align",), ("*.txt", "*.gold")),
}
