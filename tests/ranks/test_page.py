"""The page on many ranks: its examples train what one process would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

import ctloss
from support.ranks.pool import fresh

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "many-ranks.md"
DDP, FSDP = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


def trained(group: Any, example: str) -> list[Tensor]:
    """The weights at the end of an example, which finds its process group initialised."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    # AdamW would train alike with gradients of any scale.
    plain = example.replace("dist.init_process_group", "str").replace("AdamW", "SGD")
    exec(compile(plain, PAGE.name, "exec"), names)
    weights = [one.detach() for one in names["encoder"].parameters()]
    return [one.full_tensor() if isinstance(one, DTensor) else one for one in weights]


def in_one_process(loss: Any) -> list[Tensor]:
    torch.manual_seed(0)
    encoder = torch.nn.Linear(64, 32)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-2)
    for step in range(3):
        parts = [torch.randn(16, 64, generator=torch.Generator().manual_seed(2 * step + rank)) for rank in range(2)]
        queries = torch.cat(parts)
        optimizer.zero_grad()
        loss(encoder(queries), encoder(queries + 0.1)).backward()
        optimizer.step()
    return [one.detach() for one in encoder.parameters()]


def test_examples_are_short_and_initialise() -> None:
    for example in (DDP, FSDP):
        assert len([line for line in example.splitlines() if line]) <= 12
        assert example.count('dist.init_process_group("gloo")') == 1


def test_examples_train_what_one_process_would() -> None:
    assert not dist.is_initialized()
    with fresh(2) as pool:
        of_examples = [pool.run(2, trained, [example] * 2) for example in (DDP, FSDP)]
    for of_ranks, loss in zip(of_examples, (ctloss.info_nce, ctloss.cz_nce), strict=True):
        for found in of_ranks:
            torch.testing.assert_close(found, in_one_process(loss), rtol=1e-5, atol=1e-6)
