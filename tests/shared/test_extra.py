"""Missing packages of an extra are named before anything else is imported."""

from __future__ import annotations

import pytest

from ctloss.shared.extra import require_extra


def test_missing_modules_are_named() -> None:
    require_extra("train", ("torch", "json"))
    with pytest.raises(ModuleNotFoundError, match=r"ctloss\.evaluate: .* without no_a, no_b; pip") as refusal:
        require_extra("evaluate", ("torch", "no_a", "no_b"))
    assert refusal.value.name == "no_a"
