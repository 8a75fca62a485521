"""The probe on an encoder that needs no training, and the table and picture of what it measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctloss.train import CCEEncoder
from ctloss.train.model.encoder import small_backbone
from ctloss.train.reporting.probe import Probe, by_languages, embed
from ctloss.train.reporting.report import choose_words, table

pytestmark = pytest.mark.numeric


def encoder() -> CCEEncoder:
    torch.manual_seed(0)
    backbone = small_backbone(vocabulary=60, layers=1, hidden=16, heads=2, dropout=0.5, max_length=12, pad=0, mlm=False)
    return CCEEncoder(backbone, levels="sentence", head=False)


def row(i: int, target_language: str = "fr", **changes: Any) -> dict[str, Any]:
    return {
        "source": f"s{i}", "target": f"t{i}", "source_language": "en", "target_language": target_language,
        "source_ids": [2, 10 + i, 11 + i, 3], "target_ids": [2, 10 + i, 11 + i, 3],
        "word_pairs": [[1, 2, 1, 2]], "source_words": [f"w{i}"], "target_words": [f"m{i}"], "word_types": [i],
    } | changes  # fmt: skip


def test_embedding_does_not_depend_on_the_batch() -> None:
    model = encoder().train()
    sentences = [[2, *range(5, 5 + length), 3] for length in (4, 1, 7, 2, 2)]
    spans = [[(1, 2), (2, 4)], [], [(1, 8)], [(1, 3)], [(0, 4)]]
    together, words = embed(model, sentences, spans, batch=3)
    single, single_words = embed(model, sentences, spans, batch=1)
    torch.testing.assert_close(together, single)
    for a, b in zip(words, single_words, strict=True):
        torch.testing.assert_close(a, b)
    assert [len(found) for found in words] == [2, 0, 1, 1, 1]
    torch.testing.assert_close(words[4][0], together[4])
    assert model.training


def test_probe_finds_identical_sides_and_differs_by_languages() -> None:
    rows = [row(i) for i in range(20)]
    # Every German side is what another's English side is.
    rows += [row(i, "de", target_ids=row((i + 1) % 10)["source_ids"]) for i in range(10)]
    measured = Probe(rows, most=15, is_held_out=lambda types: [kind % 2 == 0 for kind in types])(encoder())
    assert list(measured) == ["en-fr", "en-de", "mean"]
    same = measured["en-fr"]
    assert [same[f"{unit}_{way}"] for unit in ("sentence", "word") for way in ("forth", "back")] == [1.0] * 4
    assert measured["en-de"]["sentence_forth"] == measured["en-de"]["sentence_back"] == 0.0
    assert measured["mean"]["sentence_forth"] == 0.5


HELD_OUT, TRAINED = 7, 8


def test_measures_are_known_before_they_are_made() -> None:
    for held_out, share in ((True, HELD_OUT), (False, TRAINED)):
        rows = [row(i, word_types=[share]) for i in range(2)]
        probe = Probe(rows, most=9, is_held_out=lambda types: [kind == HELD_OUT for kind in types])
        assert probe.names == probe(encoder())["en-fr"].keys()
        assert ("word_queries" in probe.names) == held_out


def test_fewer_than_two_pairs_give_no_measures() -> None:
    for rows in ([], [row(0)], [row(0), row(1, source="S0")]):
        probe = Probe(rows, most=9, is_held_out=lambda types: [True] * len(types))
        assert (probe(encoder()), probe.names) == ({"mean": {}}, set())
    assert table({"after": {"mean": {}}}) == "Nothing was measured: no language pair has two test sentences."


def probed(*rows: dict[str, Any]) -> dict[str, float]:
    return Probe(rows, most=9, is_held_out=lambda types: [kind == HELD_OUT for kind in types])(encoder())["en-fr"]


def test_only_held_out_words_look_for_their_translations() -> None:
    # w0 has the wordpieces of its translation m0, but w5 those of m9, which is no translation of it.
    held, trained = row(0, word_types=[HELD_OUT]), row(5, target_ids=[2, 30, 31, 3], word_types=[TRAINED])
    third = row(9, target_ids=trained["source_ids"], word_types=[TRAINED])
    measured = probed(held, trained, third)
    assert (measured["word_forth"], measured["word_back"], measured["word_queries"]) == (1.0, 1.0, 2)
    measured = probed(held, dict(trained, word_types=[HELD_OUT]), third)
    assert (measured["word_forth"], measured["word_queries"]) == (0.5, 4)
    assert probed(row(0, word_types=[TRAINED]), row(5, word_types=[TRAINED])).keys().isdisjoint({"word_queries"})


def test_trained_translations_are_neither_right_nor_candidates() -> None:
    # w0 was trained to m0, which has its own wordpieces; held out is m1, whose wordpieces differ.
    trained = row(0, word_types=[TRAINED])
    held = row(1, source_words=["w0"], source_ids=trained["source_ids"], word_types=[HELD_OUT])
    third = row(2, target_ids=trained["target_ids"], target_words=["other"], word_types=[TRAINED])
    # Alone with the trained translation the held-out one is all that is left; with a third word as near as the
    # trained one, which is nobody's translation of w0, it is not found.
    assert probed(trained, held)["word_forth"] == 1.0
    assert probed(trained, held)["word_queries"] == 2
    assert probed(trained, held, third)["word_forth"] == 0.0


def test_all_held_out_translations_of_a_word_are_right() -> None:
    other = row(1, source_words=["w0"], source_ids=[2, 10, 12, 3], word_types=[HELD_OUT])
    measured = probed(row(0, word_types=[HELD_OUT]), other)
    assert (measured["word_forth"], measured["word_queries"]) == (1.0, 3)


def test_groups_leave_repeated_sentences_out() -> None:
    rows = [row(0), row(1, source="S0"), row(2, target="t0"), row(3), row(4)]
    assert [found["source"] for found in by_languages(rows, 2)["en-fr"]] == ["s0", "s3"]


def test_picture_takes_words_of_most_languages() -> None:
    rows = [row(0), row(0, "de"), row(1), row(1), row(1), row(2), row(2, "de"), row(2, "ru")]
    chosen = choose_words(rows, 2)
    assert list(chosen) == ["w2", "w0"]
    assert sorted(chosen["w2"]) == ["de", "en", "fr", "ru"]


def test_table_has_a_column_a_stage() -> None:
    measured = {"mean": {"sentence_forth": 0.25, "sentence_forth_centred": 0.5}}
    lines = table({"before": measured, "after": measured}).splitlines()
    assert lines[0] == "|  | before | after | before, centred | after, centred |"
    assert lines[2] == "| sentence retrieval, source → target | 0.250 | 0.250 | 0.500 | 0.500 |"
    # What was not measured has no row, and a stage in which nothing was measured no column.
    assert len(lines) == 3
    lines = table({"before": {"mean": {}}, "after": measured}).splitlines()
    assert lines[0] == "|  | after | after, centred |"


def test_table_says_which_words_were_asked() -> None:
    stages = {"after": {"mean": {"word_forth": 0.25, "word_forth_centred": 0.5, "word_queries": 37.0}}}
    assert "source → target, held-out (37 queries in both directions) | 0.250" in table(stages)
    assert "all, including trained ones (37 queries in both directions)" in table(stages, held_out=False)
