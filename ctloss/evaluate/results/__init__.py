"""Scores, what keeps them, and the report made from them."""
