"""Tokens and links of word alignments: what parts them, and what does not."""

from __future__ import annotations

import sys

import pytest

from ctloss.shared.alignments import read_links, token_spans, tokens


def test_no_other_character_parts_tokens() -> None:
    """str.split parts at two dozen characters, which programs that write alignments leave within a token."""
    others = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace() and chr(code) not in " \t"]
    assert len(others) > 20
    for space in others:
        assert tokens(f"a{space}b {space}\t{space}c") == [f"a{space}b", space, f"{space}c"]


@pytest.mark.parametrize(
    ("text", "spans"), [("", []), (" \t ", []), ("a", [(0, 1)]), ("  a\tbc  d ", [(2, 3), (4, 6), (8, 9)])]
)
def test_spans(text: str, spans: list[tuple[int, int]]) -> None:
    assert token_spans(text) == spans
    assert [text[start:end] for start, end in spans] == tokens(text)


def test_links() -> None:
    wrong = ["0:1", "-1-0", "0-1-2", "0-", "٣-0", "0P1", "1.0-2", "0\u00a0-1"]
    assert list(read_links("0-12  3p4\t" + " ".join(wrong))) == [
        ("0-12", (0, "-", 12)),
        ("3p4", (3, "p", 4)),
        *((text, None) for text in wrong),
    ]
