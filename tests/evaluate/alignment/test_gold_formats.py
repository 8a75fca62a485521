"""awesome-align's files: text under either name, gold counted from zero or one, and the links that an aligner found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctloss.evaluate import (
    AlignmentOptions,
    alignment_error,
    evaluate_alignment,
    read_alignments,
    read_found_links,
)
from ctloss.shared.options import OptionError
from support.tiny_encoder import Table, write
from support.tiny_results import refused, value

WORDS = Table({"dog": [1.0, 0.0], "cat": [0.0, 1.0], "chien": [0.9, 0.1], "chat": [0.1, 0.9]})
TEXT = ["dog cat ||| chat chien", "cat ||| chat"]


def test_gold_from_one_is_gold_from_zero(tmp_path: Path) -> None:
    write(tmp_path, zero__txt=TEXT, zero__gold=["0-1 1p0", "0-0"], one__txt=TEXT, one__gold=["1-2 2p1", "1-1"])
    assert read_alignments(tmp_path / "zero") == read_alignments(tmp_path / "one", one_based=True)
    write(tmp_path, one__gold=["1-2 2p0", "1-1"])
    with refused(
        r"i from 1 to 2 and j from 1 to 2 \(the numbers of words\), got '2p0'", where=tmp_path / "one.gold", line=1
    ):
        read_alignments(tmp_path / "one", one_based=True)
    with refused(
        "got '1-2'; count from zero, or say that the file counts from one", where=tmp_path / "one.gold", line=1
    ):
        read_alignments(tmp_path / "one")


def test_text_under_its_name_there(tmp_path: Path) -> None:
    write(tmp_path, enfr__src___tgt=TEXT, enfr__gold=["0-1 1-0", "0-0"])
    assert [pair.first for pair in read_alignments(tmp_path / "enfr")] == [["dog", "cat"], ["cat"]]
    # A name in our layout goes before.
    write(tmp_path, enfr__txt=["cat ||| chat"] * 2, enfr__gold=["0-0", "0-0"])
    assert [pair.first for pair in read_alignments(tmp_path / "enfr")] == [["cat"], ["cat"]]


def test_links_come_out_as_they_are_read(tmp_path: Path) -> None:
    write(tmp_path, en___fr__txt=TEXT, en___fr__gold=["1-2 2p1", "1-1"])
    outcome = evaluate_alignment(WORDS, tmp_path, None, AlignmentOptions(one_based=True))
    assert outcome.predictions == {"en-fr": ["0-1 1-0", "0-0"]}
    # Three links, all of them possible; both sure ones are among them.
    assert {m: value(outcome, "en-fr", m) for m in ("aer", "precision", "recall")} == {
        "aer": 0,
        "precision": 1,
        "recall": 1,
    }
    gold = read_alignments(tmp_path / "en-fr", one_based=True)
    write(tmp_path, found__out=outcome.predictions["en-fr"], from_one__out=["1-2 2-1", "1-1"])
    found = read_found_links(tmp_path / "found.out", gold)
    assert found == [{(0, 1), (1, 0)}, {(0, 0)}] == read_found_links(tmp_path / "from_one.out", gold, one_based=True)
    assert alignment_error(found, gold)["aer"] == 0
    # Another aligner's, which misses one sure link and adds a wrong one: 1 - (1 + 1) / (2 + 2).
    write(tmp_path, other__out=["0-1 0-0", ""])
    assert alignment_error(read_found_links(tmp_path / "other.out", gold), gold) == {
        "aer": pytest.approx(0.5),
        "precision": 0.5,
        "recall": 0.5,
    }


def test_links_of_another_text_are_refused(tmp_path: Path) -> None:
    write(tmp_path, en___fr__txt=TEXT, en___fr__gold=["0-1", "0-0"], short__out=["0-0"], far__out=["0-0", "0-1"])
    gold = read_alignments(tmp_path / "en-fr")
    with refused("expected 2 lines, one a sentence pair, got 1", where=tmp_path / "short.out"):
        read_found_links(tmp_path / "short.out", gold)
    with refused("within 1 and 1 words, counted from 0, got '0-1'", where=tmp_path / "far.out", line=2):
        read_found_links(tmp_path / "far.out", gold)


def test_parts_of_the_alignment_error_sum_to_it(tmp_path: Path) -> None:
    """Sentence by sentence, so that intervals are of the same number."""
    write(tmp_path, en___fr__txt=TEXT, en___fr__gold=["0-1 1p0 0p0", "0-0"])
    outcome = evaluate_alignment(WORDS, tmp_path)
    parts = {item.metric: (item.numerators, item.denominators) for item in outcome.items}
    # Of the first pair's two links one is sure, and both are possible: nothing is wrong of 2 + 1.
    np.testing.assert_array_equal(parts["aer"], [[0, 0], [3, 2]])
    np.testing.assert_array_equal(parts["precision"], [[2, 1], [2, 1]])
    np.testing.assert_array_equal(parts["recall"], [[1, 1], [1, 1]])


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="threshold: expected a number above 0, got 0"):
        AlignmentOptions("softmax", 0.0)
