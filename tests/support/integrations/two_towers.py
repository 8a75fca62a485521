"""Two linear towers trained by transformers' Trainer, on one rank or on several, and by hand."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

import ctloss

from .drop_ins import rows

BATCH, STEPS, TAU = 4, 2, 0.2


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {"image_embeds": self.left(image), "text_embeds": self.right(text)}


def pairs(world: int) -> list[dict[str, Any]]:
    x, y = (rows(BATCH * world * STEPS, 8, dtype=torch.float32, seed=seed) for seed in (0, 1))
    return [{"image": one, "text": other, "labels": n // 3} for n, (one, other) in enumerate(zip(x, y, strict=True))]


def by_hand(world: int) -> list[Tensor]:
    """SGD on the loss of all ranks' rows."""
    model, data = Towers(), pairs(world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        batch = data[step * BATCH * world :][: BATCH * world]
        found = model(*(torch.stack([row[name] for row in batch]) for name in ("image", "text")))
        ids = torch.tensor([row["labels"] for row in batch])
        optimizer.zero_grad()
        ctloss.info_nce(*found.values(), temperature=TAU, ids=ids).backward()
        optimizer.step()
    return [one.detach() for one in model.parameters()]


def by_trainer(rank: int, world: int, folder: str) -> dict[str, list[Tensor]]:
    """The weights that each way to use the Trainer ends with, on a rank whose group is there."""
    from transformers import Trainer, TrainingArguments

    from ctloss.integrations.transformers import ContrastiveTrainer, PairLoss

    # What torchrun sets; the address is not used.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    options: dict[str, Any] = {"temperature": TAU, "group": "world"}
    names = ("image_embeds", "text_embeds")
    found = {}
    for way in ("counted", "given", "contrastive"):
        model = Towers()
        given: dict[str, Any] = {
            "args": TrainingArguments(
                folder,
                per_device_train_batch_size=BATCH,
                max_steps=STEPS,
                optim="sgd",
                learning_rate=0.1,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                train_sampling_strategy="sequential",
                label_names=["labels"],
                remove_unused_columns=False,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                use_cpu=True,
                ddp_backend="gloo",
            ),
            "train_dataset": pairs(world),
        }
        if way == "contrastive":
            ContrastiveTrainer(model, outputs=names, loss_options=options, **given).train()
        else:
            loss = PairLoss(*names, accumulation_steps=1 if way == "given" else None, **options)
            Trainer(model, compute_loss_func=loss, **given).train()
        found[way] = [one.detach() for one in model.parameters()]
    return found
