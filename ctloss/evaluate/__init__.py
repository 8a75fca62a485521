"""Evaluation of multilingual encoders, zero-shot from English."""

from . import extra as extra
from .score import DataError, Outcome, Score

__all__ = ["DataError", "Outcome", "Score"]
