"""The page on Lightning: its example trains what the same loop without Lightning trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ctloss

lightning = pytest.importorskip("lightning")

pytestmark = pytest.mark.numeric
PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "integrations" / "lightning.md"
(EXAMPLE,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.filterwarnings("ignore")
def test_a_learnt_temperature_outlives_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation leaves it alone, and a checkpoint brings it back."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLE, PAGE.name, "exec"), names)
    model, batches, contrastive = (names[name] for name in ("model", "batches", "Contrastive"))
    monkeypatch.setattr(contrastive, "validation_step", lambda self, batch, index: None, raising=False)
    learnt = model.criterion.current_temperature().item()
    names["trainer"].validate(model, batches, verbose=False)
    assert model.criterion.current_temperature().item() == learnt != pytest.approx(0.1, abs=1e-5)
    names["trainer"].save_checkpoint(tmp_path / "saved.ckpt")
    loaded = contrastive.load_from_checkpoint(tmp_path / "saved.ckpt", encoder=torch.nn.Linear(48, 32))
    assert loaded.criterion.current_temperature().item() == learnt


@pytest.mark.filterwarnings("ignore")
def test_the_example_trains_as_a_plain_loop() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLE, PAGE.name, "exec"), names)
    model, batches = names["model"], names["batches"]

    torch.manual_seed(0)
    torch.randn(256, 48), torch.randn(256, 48)
    encoder = torch.nn.Linear(48, 32)
    criterion = ctloss.InfoNCELoss(temperature=0.1, learnable_temperature=True)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *criterion.parameters()], lr=1e-3)
    for _ in range(2):
        for queries, documents in batches:
            optimizer.zero_grad()
            criterion(encoder(queries), encoder(documents)).backward()
            optimizer.step()
    torch.testing.assert_close(list(model.encoder.parameters()), list(encoder.parameters()))
    torch.testing.assert_close(model.criterion.current_temperature(), criterion.current_temperature())
    assert model.criterion.current_temperature() != ctloss.InfoNCELoss(temperature=0.1).current_temperature()
