"""GISTEmbedLoss: a guide model says which negatives are false."""

from __future__ import annotations


class GISTEmbedLoss:
    """To come."""
