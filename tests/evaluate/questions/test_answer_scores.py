"""Scores of answers, worked out by hand from the definitions of SQuAD 1.1 and MLQA."""

from __future__ import annotations

import pytest

from ctloss.evaluate import answer_score
from ctloss.evaluate.tasks.answers import MLQA_LANGUAGES, normalised


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        (None, "  The Queen's,  a (Crown)! ", "queens crown"),
        # Only ASCII's punctuation, and only English articles, in every language.
        (None, "«Der Fluß»", "«der fluß»"),
        (None, "theatre another", "theatre another"),
        ("en", "“The” Queen’s an apple", "queens apple"),
        ("de", "Das Haus der Königin — einem Dieb", "haus königin dieb"),
        ("es", "¿La casa, unos árboles?", "casa árboles"),
        ("vi", "Những ngôi nhà của làng", "ngôi nhà làng"),
        ("hi", "नदी का पुल।", "नदी का पुल"),
        # The article goes wherever it stands, and what follows it within a word becomes a word.
        ("ar", "الجسر القديم؟", "جسر قديم"),
        ("zh", "在1920年，Lhasa 城。", "在 1920 年 lhasa 城"),
    ],
)
def test_normal_forms(language: str | None, text: str, expected: str) -> None:
    assert normalised(text, language) == expected


def test_every_language_of_mlqa_has_rules_and_no_other() -> None:
    assert {normalised("Ω!", language) for language in MLQA_LANGUAGES} == {"ω"}
    with pytest.raises(ValueError, match="one of MLQA's languages ar, de, en, es, hi, vi, zh, got 'fr'"):
        normalised("x", "fr")


@pytest.mark.parametrize(
    ("predicted", "gold", "language", "f1", "exact"),
    [
        ("the old bridge", ["Old bridge!"], None, 1.0, 1.0),
        # 2 of 3 words predicted, 2 of 4 in the gold answer.
        ("old stone bridge", ["bridge of old Mira"], None, 4 / 7, 0.0),
        # A word counts as often as both have it.
        ("la la land", ["la land land"], None, 2 * 2 / 6, 0.0),
        ("la la land", ["la land land"], "es", 2 * 1 / 3, 0.0),
        # The best gold answer, each score by itself.
        ("May", ["in early May", "May", "June"], None, 1.0, 1.0),
        ("early May", ["May", "in early May"], None, 4 / 5, 0.0),
        ("", ["May"], None, 0.0, 0.0),
        # Nothing is left of either: no word is shared, but they are equal.
        ("the", ["a"], None, 0.0, 1.0),
        # By SQuAD's rules Chinese is one word, by MLQA's each ideograph.
        ("一座老桥", ["老桥"], None, 0.0, 0.0),
        ("一座老桥", ["老桥"], "zh", 2 * 2 / 6, 0.0),
        ("الجسر القديم", ["جسر قديم"], "ar", 1.0, 1.0),
        ("الجسر القديم", ["جسر قديم"], None, 0.0, 0.0),
    ],
)
def test_scores(predicted: str, gold: list[str], language: str | None, f1: float, exact: float) -> None:
    assert list(answer_score(predicted, gold, language)) == [pytest.approx(f1), exact]
