"""Training speed in pairs per second: ctloss.train's trainer and sentence-transformers', in turns in one process.

    python -m benchmarks.pretraining.throughput
    python -m benchmarks.pretraining.throughput --corpus data/en-fr.tsv data/en-ru.tsv

Both train the same BERT (4 layers × 256) from the same weights on the same pairs (the embedded corpus's): batch 64,
fused AdamW, clipping at 1, no evaluation, checkpoint or log in between, on a CUDA device if there is one. Pooling and
loss are the same too: the mean over a sentence's tokens of first plus last layer, and CLIP's symmetric infoNCE, here
with negatives="cross", there MultipleNegativesRankingLoss in both directions with a softmax each. Before any timing
both compute the loss of one batch without dropout; if they differ by more than a relative 1e-4, the benchmark stops.
The difference is what a trainer adds: how batches are formed (here from sentences of similar length, there at
random), tokenized and stepped.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import describe

# Memory is allocated and kernels are chosen during these.
WARM_STEPS = 5


def timed_callback() -> Any:
    """A Trainer callback that notes when each step ended."""
    from transformers import TrainerCallback

    class StepTimes(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

        def seconds(self) -> float:
            return self.ends[-1] - self.ends[WARM_STEPS - 1]

    return StepTimes()


class Contest:
    """The common ground: pairs, tokenizer and initial weights, in a folder."""

    def __init__(
        self, folder: Path, *, corpus: tuple[str, ...], pairs: int, batch: int, layers: int, hidden: int
    ) -> None:
        from ctloss.train import tiny
        from ctloss.train.model.encoder import small_backbone
        from ctloss.train.prepared.build import prepare

        self.folder, self.batch = folder, batch
        self.recipe = tiny().override(
            corpus=corpus, max_pairs=pairs, layers=layers, hidden=hidden, heads=hidden // 64, batch_size=batch,
            evaluation_pairs=10, levels="sentence", head=False, alpha=0.0, loss="info_nce", negatives="cross",
            learning_rate=3e-4, eval_strategy="no", save_strategy="no", logging_strategy="no", report_to="none",
        )  # fmt: skip
        self.prepared = prepare(self.recipe.data, self.recipe.encoder, folder / "data", say=lambda text: None)
        self.tokenizer = self.prepared.tokenizer()
        table = self.prepared.table("train").select(["source", "target"])
        self.pairs = [(row["source"], row["target"]) for row in table.to_pylist()]
        torch.manual_seed(0)
        backbone = small_backbone(
            vocabulary=len(self.tokenizer), layers=layers, hidden=hidden, heads=hidden // 64, dropout=0.1,
            max_length=128, pad=self.tokenizer.pad_token_id, mlm=False,
        )  # fmt: skip
        backbone.save_pretrained(folder / "encoder")
        self.tokenizer.save_pretrained(folder / "encoder")

    def our_objective(self) -> Any:
        """ctloss.train's model with its loss."""
        from ctloss.shared.models import load_encoder
        from ctloss.train import CCEEncoder
        from ctloss.train.model.objective import Objective

        encoder = CCEEncoder(load_encoder(self.folder / "encoder"), levels="sentence", head=False)
        choice = self.recipe.objective
        return Objective(encoder, loss=choice.loss, temperature=choice.temperature, negatives=choice.negatives)

    def our_rows(self) -> tuple[Any, Any]:
        """ctloss.train's training rows, and what makes batches of them."""
        from ctloss.train.samples.collator import Collator
        from ctloss.train.samples.dataset import WPSDataset

        collate = Collator(self.tokenizer, seed=0, words=False, mlm_probability=0.0)
        return WPSDataset(self.prepared.table("train"), words=False), collate

    def their_loss(self) -> tuple[Any, Any]:
        """sentence-transformers' model, with our pooling, and its loss."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        class FirstPlusLast(torch.nn.Module):
            def forward(self, features: dict[str, Any]) -> dict[str, Any]:
                states = features["all_layer_embeddings"]
                return {**features, "token_embeddings": states[1].float() + states[-1].float()}

        device = "cuda" if torch.cuda.is_available() else "cpu"
        modules: Any = SentenceTransformer(str(self.folder / "encoder"), device=device)
        transformer, mean = modules
        transformer.auto_model.config.output_hidden_states = True
        model = SentenceTransformer(modules=[transformer, FirstPlusLast(), mean], device=device)
        return model, MultipleNegativesRankingLoss(
            model,
            scale=1 / self.recipe.objective.temperature,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )

    @torch.no_grad()
    def losses(self) -> tuple[float, float]:
        """The loss of the first batch by ctloss.train and by sentence-transformers, without dropout."""
        rows, collate = self.our_rows()
        batch = collate(rows.__getitems__((0, np.arange(self.batch))))
        ours = self.our_objective().eval()(**{name: value for name, value in batch.items() if name != "index"})["loss"]
        model, loss = self.their_loss()
        model.eval()
        sides = [list(texts) for texts in zip(*self.pairs[: self.batch], strict=True)]
        features = [
            {name: each.to(model.device) if torch.is_tensor(each) else each for name, each in inputs.items()}
            for inputs in map(model.preprocess, sides)
        ]
        return float(ours), float(loss(features, torch.empty(0)))

    def ours(self, steps: int, precision: str) -> float:
        """Pairs per second of ctloss.train."""
        from ctloss.shared.command import Signals
        from ctloss.train.reporting.logs import ProgressLines
        from ctloss.train.samples.sampler import BatchPlan
        from ctloss.train.trainer import PretrainingTrainer

        training = self.recipe.override(max_steps=steps, precision=precision).training
        rows, collate = self.our_rows()
        with tempfile.TemporaryDirectory() as output:
            trainer = PretrainingTrainer(
                self.our_objective(),
                training.arguments(Path(output)),
                Path(output),
                rows=rows,
                plan=BatchPlan(rows.lengths, rows.keys, batch_size=self.batch, seed=0),
                split=False,
                collate=collate,
                tokenizer=self.tokenizer,
                measure=lambda encoder: {},
                signals=Signals("python -m benchmarks.pretraining.throughput", "start again"),
            )
            trainer.pop_callback(ProgressLines)
            times = timed_callback()
            trainer.add_callback(times)
            trainer.train()
        return self.batch * (steps - WARM_STEPS) / float(times.seconds())

    def theirs(self, steps: int, precision: str) -> float:
        """Pairs per second of sentence-transformers' trainer."""
        import datasets
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

        model, loss = self.their_loss()
        data = datasets.Dataset.from_dict(
            {"anchor": [source for source, _ in self.pairs], "positive": [target for _, target in self.pairs]}
        )
        with tempfile.TemporaryDirectory() as output:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=output, max_steps=steps, per_device_train_batch_size=self.batch, learning_rate=3e-4,
                weight_decay=0.01, optim="adamw_torch_fused", bf16=precision == "bf16", disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(), save_strategy="no", logging_strategy="no", report_to="none",
            )  # fmt: skip
            times = timed_callback()
            trainer = SentenceTransformerTrainer(
                model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[times]
            )
            trainer.train()
        return self.batch * (steps - WARM_STEPS) / float(times.seconds())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="steps per turn; the first five are not timed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; the medians are printed")
    parser.add_argument("--pairs", type=int, default=6400, help="training pairs")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--corpus", nargs="+", default=["embedded"], help="as python -m ctloss.train takes it")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(
            Path(folder),
            corpus=tuple(options.corpus),
            pairs=options.pairs,
            batch=options.batch_size,
            layers=options.layers,
            hidden=options.hidden,
        )
        ours, theirs = contest.losses()
        if abs(ours - theirs) > 1e-4 * abs(theirs):
            raise SystemExit(
                f"expected both to compute the same loss, got {ours:.6f} by ctloss and {theirs:.6f} by the other"
            )
        print(f"loss of the first batch: ctloss {ours:.6f}, sentence-transformers {theirs:.6f}")
        sides = {"ctloss": contest.ours, "sentence-transformers": contest.theirs}
        turns = {
            f"{name} {precision}": partial(side, options.steps, precision)
            for name, side in sides.items()
            for precision in ("fp32", "bf16")
        }
        speeds: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(options.rounds):
            for name, turn in turns.items():
                speeds[name].append(turn())
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(", ".join(f"{key} {value}" for key, value in describe(device).items()))
    for name, found in speeds.items():
        print(f"{name:28} {medians[name]:8.1f} pairs/s   turns {' '.join(f'{value:.1f}' for value in found)}")
    peer = medians["sentence-transformers fp32"]
    print(f"ratio, both fp32: {medians['ctloss fp32'] / peer:.2f}")
    print(f"ratio, both bf16: {medians['ctloss bf16'] / medians['sentence-transformers bf16']:.2f}")
    print(f"ratio, ctloss bf16 to sentence-transformers as it comes (fp32): {medians['ctloss bf16'] / peer:.2f}")


if __name__ == "__main__":
    main()
