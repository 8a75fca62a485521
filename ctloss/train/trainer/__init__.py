"""transformers' Trainer for pretraining runs."""

from .pretraining import PretrainingTrainer

__all__ = ["PretrainingTrainer"]
