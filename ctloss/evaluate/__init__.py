# ruff: noqa: E402
"""Evaluation of multilingual encoders, zero-shot from English.

``python -m ctloss.evaluate`` runs it from the command line; from Python:

    from ctloss.evaluate import Encoder, evaluate_tatoeba, evaluate_xnli

    encoder = Encoder("bert-base-multilingual-cased")
    for score in evaluate_tatoeba(encoder, "data/tatoeba", ["deu", "fra"]).scores:
        print(score.language, score.metric, score.value)
    outcome = evaluate_xnli("bert-base-multilingual-cased", "data", ["en", "de", "fr"])
"""

from ..shared.extra import require_extra

require_extra(
    "evaluate",
    (
        *("accelerate", "datasets", "langcodes", "matplotlib", "numpy", "pyarrow", "safetensors", "seqeval", "sklearn"),
        *("tqdm", "transformers"),
    ),
)

from ..shared.text import DataError
from .data.parallel import AlignedWords, read_alignments, read_found_links
from .models.encoder import Encoder, VectorOptions
from .models.options import XTREME_OPTIONS, FinetuneOptions, QuestionOptions
from .results.comparison import Comparison, compare_results
from .results.items import Items
from .results.languages import draw_languages
from .results.report import draw_words, report, table_by_language, table_of_means
from .results.scores import Outcome, Results, Score, Spread, TaskResult, over_seeds, read_results, write_submission
from .results.significance import Difference, Interval, ResamplingOptions, compare
from .suite import run
from .tasks.answers import AnswerScore, answer_score
from .tasks.classification import evaluate_pawsx, evaluate_xnli
from .tasks.multiway import MultiwayOptions, evaluate_flores, evaluate_ntrex
from .tasks.questions import evaluate_mlqa, evaluate_tydiqa, evaluate_xquad
from .tasks.retrieval import MiningOptions, PairsOptions, evaluate_bucc, evaluate_pairs, evaluate_tatoeba
from .tasks.tagging import evaluate_panx, evaluate_udpos
from .tasks.words import (
    AlignmentOptions,
    LexiconOptions,
    alignment_error,
    evaluate_alignment,
    evaluate_words,
    held_out_lines,
)

__all__ = [
    "XTREME_OPTIONS",
    "AlignedWords",
    "AlignmentOptions",
    "AnswerScore",
    "Comparison",
    "DataError",
    "Difference",
    "Encoder",
    "FinetuneOptions",
    "Interval",
    "Items",
    "LexiconOptions",
    "MiningOptions",
    "MultiwayOptions",
    "Outcome",
    "PairsOptions",
    "QuestionOptions",
    "ResamplingOptions",
    "Results",
    "Score",
    "Spread",
    "TaskResult",
    "VectorOptions",
    "alignment_error",
    "answer_score",
    "compare",
    "compare_results",
    "draw_languages",
    "draw_words",
    "evaluate_alignment",
    "evaluate_bucc",
    "evaluate_flores",
    "evaluate_mlqa",
    "evaluate_ntrex",
    "evaluate_pairs",
    "evaluate_panx",
    "evaluate_pawsx",
    "evaluate_tatoeba",
    "evaluate_tydiqa",
    "evaluate_udpos",
    "evaluate_words",
    "evaluate_xnli",
    "evaluate_xquad",
    "held_out_lines",
    "over_seeds",
    "read_alignments",
    "read_found_links",
    "read_results",
    "report",
    "run",
    "table_by_language",
    "table_of_means",
    "write_submission",
]
