"""Evaluation of multilingual encoders, zero-shot from English.

from ctloss.evaluate import Encoder, evaluate_tatoeba

encoder = Encoder("bert-base-multilingual-cased")
for score in evaluate_tatoeba(encoder, "data/tatoeba", ["deu", "fra"]).scores:
    print(score.language, score.metric, score.value)
"""

from . import extra as extra
from .encoder import Encoder
from .mining import MiningOptions, evaluate_bucc
from .retrieval import PairsOptions, evaluate_pairs, evaluate_tatoeba
from .score import DataError, Outcome, Score
from .words import AlignmentOptions, LexiconOptions, evaluate_alignment, evaluate_words, held_out_lines

__all__ = [
    "AlignmentOptions",
    "DataError",
    "Encoder",
    "LexiconOptions",
    "MiningOptions",
    "Outcome",
    "PairsOptions",
    "Score",
    "evaluate_alignment",
    "evaluate_bucc",
    "evaluate_pairs",
    "evaluate_tatoeba",
    "evaluate_words",
    "held_out_lines",
]
