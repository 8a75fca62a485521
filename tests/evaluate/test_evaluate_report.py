"""Tables and figures of results: by hand."""

from __future__ import annotations

from pathlib import Path

from ctloss.evaluate import Encoder, Results, draw_languages, draw_words, report, table_by_language, table_of_means
from ctloss.evaluate.results.report import choose_words
from support import tiny_tasks
from support.tiny_encoder import write
from support.tiny_results import made


def rows(table: str) -> dict[str, list[str]]:
    read = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {cells[0]: cells[1:] for cells in read}


def test_table_of_means_by_hand() -> None:
    table = rows(table_of_means([made("ours"), made("better", 0.1)]))
    assert table["model"] == ["XNLI acc.", "Tatoeba acc., XTREME's eng→X", "Tatoeba acc., X→eng"]
    assert table["ML-CTL-CZ (paper's)"] == ["67.8", "43.4", "–"]
    # Means over languages .55 and .60: their mean, and their sample standard deviation .05 / sqrt(2).
    assert table["**ours**"] == ["57.5 ± 3.5", "41.0", "43.0"]
    assert table["**better**"] == ["67.5 ± 3.5", "51.0", "53.0"]
    assert [name for name in table if "majority" in name] == ["majority class of ours's test data"]
    assert table["majority class of ours's test data"] == ["33.3", "–", "–"]


def test_tables_by_language_and_notes_by_hand() -> None:
    empty = Results("nothing", "nothing")
    lines = table_by_language([made("ours"), empty], "xnli").splitlines()
    assert lines == [
        "| metric | language | ours |",
        "|---|---|---|",
        "| accuracy | de | 0.520 ± 0.028 |",
        "| accuracy (mean of 2) | mean | 0.575 ± 0.035 |",
        "| accuracy (majority class; mean of 2) | mean | 0.333 |",
    ]
    shown = report([made("ours")])
    assert "- ours, XNLI: de; 2 seeds; epochs 2.0; train sick.tsv; otherwise XTREME's settings" in shown
    assert "- ours, Tatoeba: eng-deu; pooling 'layer'; prefix 'query: '" in shown
    assert "## Tatoeba by language" in shown
    assert "## NER by language" not in shown


def test_words_of_the_picture(tmp_path: Path) -> None:
    """Linked one to one and not a function word: horse in both files, house in one; not dog, which is short."""
    write(tmp_path, en___de__txt=["the horse with dog ||| das pferd mit hund"], en___de__gold=["0-0 1-1 2-2 3-3"])
    write(tmp_path, zh___en__txt=["x y ||| horse house", "x ||| house house"], zh___en__gold=["0-0 1p1", "0-0 0-1"])
    assert choose_words(tmp_path, 5) == {
        "horse": {
            "en": [(("the", "horse", "with", "dog"), 1), (("horse", "house"), 0)],
            "de": [(("das", "pferd", "mit", "hund"), 1)],
            "zh": [(("x", "y"), 0)],
        }
    }
    assert list(choose_words(tmp_path, 5, ["en-de"])["horse"]) == ["en", "de"]
    encoder = Encoder(tiny_tasks.save_model(tmp_path / "model"), pooling="mean")
    assert not draw_words({"tiny": encoder}, tmp_path, tmp_path / "words.png")
    assert not draw_languages([Results("nothing", "nothing")], tmp_path / "languages.png")
    assert list(tmp_path.glob("*.png*")) == []
