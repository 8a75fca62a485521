"""Facts in several scripts, and a tiny encoder that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import tiny_tasks

Facts = dict[str, list[tuple[str, str, str]]]


@pytest.fixture(scope="session")
def facts() -> Facts:
    """By language, questions, texts and answers of one word and of several."""
    return {
        "en": [
            ("who ?", "Mira drew it , in May .", "Mira"),
            ("what ?", "Tom saw the old bridge , there .", "the old bridge"),
        ],
        "zh": [("谁？", "五月，小明在河边画画。", "小明"), ("什么？", "她看见一座老桥。", "一座老桥")],
        "ar": [("من ؟", "رسمت ليلى في أيار .", "ليلى"), ("ماذا ؟", "رأى الجسر القديم هناك .", "الجسر القديم")],
    }


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory, facts: Facts) -> Path:
    """The folder of a random BERT whose tokenizer knows all words of the facts, and takes Chinese apart."""
    text = " ".join(part for rows in facts.values() for row in rows for part in row)
    pieces = dict.fromkeys([*tiny_tasks.VOCABULARY[:5], *text.split(), *(one for one in text if not one.isspace())])
    folder = tmp_path_factory.mktemp("models") / "reader"
    return Path(tiny_tasks.save_model(folder, dropout=0.0, vocabulary=[*pieces, *"uvwxyz"]))
