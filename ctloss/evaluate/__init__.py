"""Evaluation of multilingual encoders, zero-shot from English.

``python -m ctloss.evaluate`` runs it from the command line; from Python:

    from ctloss.evaluate import Encoder, evaluate_tatoeba, evaluate_xnli

    encoder = Encoder("bert-base-multilingual-cased")
    for score in evaluate_tatoeba(encoder, "data/tatoeba", ["deu", "fra"]).scores:
        print(score.language, score.metric, score.value)
    outcome = evaluate_xnli("bert-base-multilingual-cased", "data", ["en", "de", "fr"])
"""

from . import extra as extra
from .classification import evaluate_pawsx, evaluate_xnli
from .encoder import Encoder
from .figures import draw_languages, draw_words
from .kept_results import Results, TaskResult, read_results
from .mining import MiningOptions, evaluate_bucc
from .options import XTREME_OPTIONS, FinetuneOptions
from .retrieval import PairsOptions, evaluate_pairs, evaluate_tatoeba
from .score import DataError, Outcome, Score
from .spread import Spread, over_seeds
from .submission import write_submission
from .suite import VectorOptions, run
from .tables import report, table_by_language, table_of_means
from .tagging import evaluate_panx, evaluate_udpos
from .words import AlignmentOptions, LexiconOptions, evaluate_alignment, evaluate_words, held_out_lines

__all__ = [
    "XTREME_OPTIONS",
    "AlignmentOptions",
    "DataError",
    "Encoder",
    "FinetuneOptions",
    "LexiconOptions",
    "MiningOptions",
    "Outcome",
    "PairsOptions",
    "Results",
    "Score",
    "Spread",
    "TaskResult",
    "VectorOptions",
    "draw_languages",
    "draw_words",
    "evaluate_alignment",
    "evaluate_bucc",
    "evaluate_pairs",
    "evaluate_panx",
    "evaluate_pawsx",
    "evaluate_tatoeba",
    "evaluate_udpos",
    "evaluate_words",
    "evaluate_xnli",
    "held_out_lines",
    "over_seeds",
    "read_results",
    "report",
    "run",
    "table_by_language",
    "table_of_means",
    "write_submission",
]
