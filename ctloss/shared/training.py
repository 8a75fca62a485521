"""What pretraining and fine-tuning both pass to transformers' Trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import TrainingArguments


def training_arguments(
    output: Path,
    *,
    seed: int,
    precision: str,
    epochs: float,
    max_steps: int | None,
    weight_decay: float,
    clip: float,
    log_every: int,
    evaluate_every: int,
    checkpoint_every: int,
    **others: Any,
) -> TrainingArguments:
    """Returns Trainer's arguments for a run that uses one device a process, and is scored and saved as it goes.

    Args:
        output: folder of the checkpoints.
        precision: see :func:`uses_bfloat16`.
        max_steps: steps instead of epochs; None for epochs.
        clip: largest norm of the gradient; 0 leaves it as it is.
        log_every, evaluate_every, checkpoint_every: in steps.
        others: further arguments of ``transformers.TrainingArguments``.
    """
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(output),
        seed=seed,
        bf16=uses_bfloat16(precision),
        use_cpu=not torch.cuda.is_available(),
        num_train_epochs=epochs,
        max_steps=max_steps or -1,
        weight_decay=weight_decay,
        max_grad_norm=clip,
        logging_steps=log_every,
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=checkpoint_every,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=False,
        **others,
    )
    one_device(arguments)
    return arguments


def one_device(arguments: TrainingArguments) -> None:
    """Makes a process use one GPU: on several, Trainer would split batches with DataParallel."""
    # Their number is known once the device is.
    if arguments.device and arguments.n_gpu > 1:
        print(f"1 of {arguments.n_gpu} GPUs is used; torchrun uses all", file=sys.stderr)
        arguments._n_gpu = 1


def uses_bfloat16(precision: str, *, cpu: bool = False) -> bool:
    """Tells whether a run of a precision (``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"auto"``) autocasts to bfloat16.

    ``"auto"`` does where the device multiplies it fast: the GPU if there is one, unless ``cpu`` says otherwise.
    """
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available() and not cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
