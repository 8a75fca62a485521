"""Two gloo ranks under DistributedDataParallel, each with half a batch: value and averaged gradient of every case.

And what transformers' Trainer ends with, whose import is the same.

Run as a program, so that both are forked from one process that has imported everything.
"""

from __future__ import annotations

import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from tiny_sentence_model import WIDTH, tokens
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ctloss.integrations.sentence_transformers as ours
from support.integrations import two_towers
from support.integrations.installed_losses import lacking, losses

WORLD, ROWS = 2, 8
PATIENCE = timedelta(seconds=60)
LIBRARIES: dict[str, Any] = {"ours": ours, "theirs": losses}
GTE = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
# The class, columns, and arguments.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "pairs": ("MultipleNegativesRankingLoss", 2, {}),
    "all directions": ("MultipleNegativesRankingLoss", 3, {"directions": GTE}),
    "apart": (
        "MultipleNegativesRankingLoss",
        3,
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    ),
    "own": ("MultipleNegativesRankingLoss", 4, {"hardness_mode": "hard_negatives", "hardness_strength": 4.0}),
    "batch": ("MultipleNegativesRankingLoss", 4, {"hardness_mode": "in_batch_negatives", "hardness_strength": 4.0}),
    "cached": ("CachedMultipleNegativesRankingLoss", 3, {"mini_batch_size": 3}),
    "guide": ("GISTEmbedLoss", 3, {"temperature": 0.2}),
    "cached guide": ("CachedGISTEmbedLoss", 3, {"temperature": 0.2, "mini_batch_size": 3}),
    "nested": ("MultipleNegativesRankingLoss", 3, {}),
}
GUIDED = [case for case, (name, _, _) in CASES.items() if "GIST" in name]


def model(folder: str) -> SentenceTransformer:
    found = SentenceTransformer(folder, device="cpu").eval()
    for name, one in found.named_parameters():
        # DDP waits for every gradient, and this layer has none.
        one.requires_grad_("pooler" not in name)
    return found


def loss_of(case: str, library: str, encoder: SentenceTransformer, folder: str, gather: bool) -> nn.Module:
    name, _, options = CASES[case]
    if case in GUIDED:
        options = options | {"guide": SentenceTransformer(folder, device="cpu").eval()}
    if case == "nested" and library == "ours":
        options = options | {"dims": (32, 8)}
    if gather:
        options = options | {"gather_across_devices": True}
    loss: nn.Module = getattr(LIBRARIES[library], name)(encoder, **options)
    if case == "nested" and library == "theirs":
        loss = losses.MatryoshkaLoss(encoder, loss, [32, 8])
    return loss


def part(columns: list[dict[str, Any]], rank: int) -> list[dict[str, Any]]:
    here = slice(rank * ROWS // WORLD, (rank + 1) * ROWS // WORLD)
    return [{k: one[here] if isinstance(one, Tensor) else one for k, one in column.items()} for column in columns]


def results(folder: str, rank: int) -> dict[tuple[str, str], tuple[Tensor, dict[str, Tensor]]]:
    found = {}
    for case, (name, columns, chosen) in CASES.items():
        for library in ["ours"] if lacking(name, [*chosen, "gather_across_devices"]) else LIBRARIES:
            encoder = model(folder)
            loss = loss_of(case, library, encoder, folder, gather=True)
            wrapped = DistributedDataParallel(encoder)
            # As the trainer does it.
            wrapped.get_embedding_dimension = lambda: WIDTH  # type: ignore[assignment]
            for one in (loss, getattr(loss, "loss", None)):
                if isinstance(one, nn.Module):
                    one.model = wrapped
            value = loss(part(tokens(encoder, ROWS, columns), rank), None)
            value.backward()
            gradients = {name: one.grad for name, one in encoder.named_parameters() if one.grad is not None}
            found[case, library] = value.detach(), gradients
    return found


def serve(rank: int, folder: str, out: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(out / "store"), WORLD)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=PATIENCE)
    torch.save(results(folder, rank), out / f"rank{rank}.pt")
    torch.save(two_towers.by_trainer(rank, WORLD, str(out / "runs")), out / f"trainer{rank}.pt")
    dist.destroy_process_group()


def main(folder: str, out: str) -> int:
    context: Any = multiprocessing.get_context("fork")
    processes = [context.Process(target=serve, args=(rank, folder, Path(out)), daemon=True) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode) for process in processes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
