"""Parallel text of every form, read in one pass: files, data sets of the hub, Python objects, the embedded corpus."""

from .bitext import BadLine, Bitext, Chunk
from .embedded import embedded_bitexts
from .find import find_bitexts
from .given import bitexts_of

__all__ = ["BadLine", "Bitext", "Chunk", "bitexts_of", "embedded_bitexts", "find_bitexts"]
