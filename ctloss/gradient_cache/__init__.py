"""Batches larger than memory: embeddings chunk by chunk, one loss over all of them, and their exact gradient."""

from .cache import GradientCache, cached

__all__ = ["GradientCache", "cached"]
