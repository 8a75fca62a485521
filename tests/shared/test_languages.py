"""What counts as a language code, and the language that it names."""

from __future__ import annotations

import pytest

from ctloss.shared.languages import TWO_LETTERS, XTREME_CODES, is_language, primary


@pytest.mark.parametrize("code", ["en", "ast", "pt-br", "pt_BR", "zh_Hant", "zho_Hans", "sr-Latn-RS", "es-419"])
def test_codes_with_script_and_region(code: str) -> None:
    assert is_language(code)
    assert primary(code) == {"zho": "zh"}.get(code[:3], code.replace("_", "-").partition("-")[0])


@pytest.mark.parametrize(
    "name", ["", "e", "EN", "Pt-br", "gz", "ids", "md-5", "tokens", "en-", "en..fr", "ею", "en fr"]
)
def test_other_endings_of_names_are_no_codes(name: str) -> None:
    assert not is_language(name)


def test_two_letters_are_those_of_iso_639() -> None:
    assert [primary(code) for code in ("cmn", "pes_Arab", "swh", "DEU", "yue_Hant")] == ["zh", "fa", "sw", "de", "yue"]
    assert XTREME_CODES.items() <= TWO_LETTERS.items()
    assert all(is_language(code) and is_language(short) and len(short) == 2 for code, short in TWO_LETTERS.items())
