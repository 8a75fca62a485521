"""How a model is fine-tuned on a task; the defaults are XTREME's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...shared.options import Group, option, require


@dataclass(frozen=True)
class FinetuneOptions(Group):
    """Settings of a fine-tuning, with the defaults of XTREME's scripts for mBERT (Hu et al. 2020, arXiv 2003.11080).

    AdamW with a linear decay to zero. The model with the best score on English dev is kept, the earlier of two equally
    good ones. What the command's help says of an option is not repeated here.

    Args:
        batches: ``"by_length"`` needs two to three times less computation than XTREME's ``"random"``; scores then
            differ a little.
        max_length: special tokens included. Sentences of tagged words are split into several windows, so that no word
            is lost.
        evaluate_every: the last step is always scored.
        seeds: one run each; a seed sets the head's initialisation, the order of the data and dropout. XTREME's single
            run has seed 1 for tags and 42 for pairs.
        hold_out: the rows held out are not trained on. They are drawn by a hash of the text, for pairs of the first
            sentence: rows with equal texts stay together.
        output: folder of the runs, with a folder for each task and in it one for each seed; None for a temporary one,
            from which nothing can be resumed.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> FinetuneOptions(hold_out=1.0)
        Traceback (most recent call last):
        ctloss.shared.options.OptionError: hold_out: expected a number from 0 up to but not including 1, got 1.0; \
give a share
    """

    learning_rate: float = option(2e-5, "after the warm-up, when the decay starts")
    epochs: float = option(5.0, "passes over the English training data")
    max_steps: int | None = option(None, "steps instead of epochs")
    batch_size: int = option(32, "items per step, over all devices", flag="--finetune-batch-size")
    batches: Literal["random", "by_length"] = option(
        "random", "random, or by_length for steps of items of similar length, which is faster"
    )
    accumulation: int = option(1, "parts that a device's share of a batch is split into, to save memory")
    max_length: int = option(
        128,
        "most wordpieces in an item; sentences of tagged words are split, pairs cut",
        flag="--finetune-max-length",
    )
    weight_decay: float = option(0.0, "of AdamW")
    warmup_steps: int = option(0, "steps of linear warm-up")
    clip: float = option(1.0, "largest norm of the gradient")
    evaluate_every: int = option(100, "steps between two scores on English dev")
    checkpoint_every: int = option(1000, "steps between two checkpoints, from which a killed run resumes")
    evaluation_batch_size: int = option(64, "items that a device predicts at a time")
    # --seeds says how many.
    seeds: tuple[int, ...] = (1,)
    precision: Literal["fp32", "bf16"] = option("fp32", "fp32, or bf16 for autocast")
    train: tuple[str | Path, ...] = option((), "English training files instead of the data's own")
    dev: tuple[str | Path, ...] = option((), "English files that choose the best step instead of the data's own")
    hold_out: float = option(
        0.0, "share of the training data, drawn by text, that chooses the best step instead of dev; 0 for none"
    )
    test_split: str = option("test", "the split that is scored")
    output: str | Path | None = None

    def check(self) -> None:
        self.at_least(1, "batch_size", "accumulation", "evaluate_every", "checkpoint_every", "evaluation_batch_size")
        self.at_least(1, "max_steps")
        self.positive("learning_rate", "epochs", "clip")
        self.at_least(0, "weight_decay", "warmup_steps")
        self.fraction("hold_out")
        require(
            not (self.hold_out and self.dev),
            "hold_out",
            "either dev files or a share held out",
            "both",
            "the best step is chosen by one of them: drop the other",
        )
        require(bool(self.seeds), "seeds", "at least one", self.seeds, "add one")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", "each once", self.seeds, "drop the repeated ones")


@dataclass(frozen=True)
class QuestionOptions(FinetuneOptions):
    """Settings of a fine-tuning on questions that a part of a text answers, with the defaults of XTREME's scripts.

    A text that does not fit beside its question is read in several windows. Without ``dev`` files and without
    ``hold_out`` no step is chosen: the last one is kept, as XTREME does.

    Args:
        doc_stride: windows never leave a gap: where less fits in one, the next starts at its end.
        max_question_length: also at most half of what fits into a window.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> QuestionOptions(n_best=0)
        Traceback (most recent call last):
        ctloss.shared.options.OptionError: n_best: expected at least 1, got 0; raise it
    """

    learning_rate: float = option(3e-5, "after the warm-up, when the decay starts")
    epochs: float = option(3.0, "passes over the English training data")
    max_length: int = option(384, "most wordpieces of question and window", flag="--finetune-max-length")
    weight_decay: float = option(1e-4, "of AdamW")
    warmup_steps: int = option(500, "steps of linear warm-up")
    evaluate_every: int = option(1000, "steps between two scores on English dev")
    doc_stride: int = option(128, "wordpieces from the start of one window of a long text to that of the next")
    max_question_length: int = option(64, "most wordpieces of a question; a longer one is cut")
    max_answer_length: int = option(30, "most wordpieces of an answer")
    n_best: int = option(20, "likeliest starts and ends of a window that are tried with each other")

    def check(self) -> None:
        super().check()
        self.at_least(1, "doc_stride", "max_question_length", "max_answer_length", "n_best")


XTREME_OPTIONS: dict[str, FinetuneOptions] = {
    "xnli": FinetuneOptions(epochs=5, evaluate_every=100),
    "pawsx": FinetuneOptions(epochs=5, evaluate_every=200),
    "udpos": FinetuneOptions(epochs=10, evaluate_every=500),
    "panx": FinetuneOptions(epochs=10, evaluate_every=1000),
    "xquad": QuestionOptions(),
    "mlqa": QuestionOptions(),
    "tydiqa": QuestionOptions(),
}
