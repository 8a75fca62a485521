"""What each of Trainer's arguments does to a pretraining run, and which of them a run that goes on may change.

Every field of ``PretrainingArguments`` is in one of seven tables, which also hold those that only some versions of
transformers have. Fields of a later version that are in none of them pass, and :func:`notes` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..shared.options import require

# They decide what the weights become: a run keeps them to its end.
NUMBERS = frozenset(
    {
        *("adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type"),
        *("max_grad_norm", "optim", "optim_args", "optim_target_modules"),
        *("warmup_ratio", "warmup_steps", "weight_decay"),
        *("bf16", "fp16", "precision", "tf32", "use_cpu", "full_determinism", "seed"),
        *("gradient_accumulation_steps", "freeze_word_embeddings"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("accelerator_config", "deepspeed", "fsdp", "fsdp_config"),
        *("ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph"),
        *("early_stopping_patience", "greater_is_better", "metric_for_best_model"),
    }
)

# They decide how long it takes: together with the number of processes, or where the schedule allows.
BATCHES = frozenset({"per_device_train_batch_size"})
LENGTH = frozenset({"max_steps", "num_train_epochs"})

# They decide what memory a step needs. They may change whenever a run goes on: its gradient stays what it was.
MEMORY = frozenset(
    {
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_cache"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    }
)

# They decide what is said, measured and kept. They may change whenever a run goes on.
MEASURING = frozenset({"eval_delay", "eval_on_start", "eval_steps", "eval_strategy"})
BOOKKEEPING = MEASURING | {
    *("dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend", "ddp_timeout", "debug", "disable_tqdm"),
    *("hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token"),
    *("load_best_model_at_end", "log_level", "log_level_replica", "log_on_each_node"),
    *("logging_dir", "logging_first_step", "logging_steps", "logging_strategy"),
    *("output_dir", "pictured_words", "project"),
    *("push_to_hub", "report_to", "restore_callback_states_from_checkpoint", "run_name"),
    *("save_steps", "save_strategy", "save_total_limit", "skip_memory_metrics"),
    *("torch_empty_cache_steps", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
}

# The value a run has, and what to do for those who ask for another.
REFUSED: dict[str, tuple[Any, str]] = {
    "auto_find_batch_size": (
        False,
        "a smaller batch has other negatives and is another run; for less memory set gradient_cache",
    ),
    "data_seed": (None, "batches follow seed; change that"),
    "dataloader_drop_last": (False, "all batches are full already: what is left of an epoch is never a batch; drop it"),
    "dataloader_in_order": (True, "batches out of order make a run that no restart can repeat; drop it"),
    "ignore_data_skip": (False, "a run that goes on takes the batch after its last one, at no cost; drop it"),
    "include_num_input_tokens_seen": ("no", "a batch has two sides; the log has pairs_per_second; drop it"),
    "label_smoothing_factor": (0.0, "pairs have no labels; raise the temperature instead"),
    "liger_kernel_config": (None, "Liger's kernels are for language models' decoders; drop it"),
    "logging_nan_inf_filter": (False, "it hides a loss that is not finite; drop it"),
    "neftune_noise_alpha": (None, "noise in the embeddings is no part of the method; raise dropout instead"),
    "parallelism_config": (
        None,
        "each process encodes whole rows of its own; for large encoders use fsdp or deepspeed",
    ),
    "remove_unused_columns": (False, "the rows' columns are not the encoder's; drop it"),
    "resume_from_checkpoint": (None, "the run in the output folder goes on with resume; drop it"),
    "save_on_each_node": (False, "all nodes share the output folder, and one process writes it; drop it"),
    "save_only_model": (False, "such checkpoints cannot be resumed; lower save_total_limit to save space"),
    "train_sampling_strategy": ("random", "batches are planned: of similar length, without false negatives; drop it"),
    "use_liger_kernel": (False, "Liger's kernels are for language models' decoders; drop it"),
}

# Nothing reads them here. Those who give one are told.
_MEASURED = "the held-out pairs are measured in batches of their own, in float32"
_COMMAND = "a run always trains and measures"
IDLE: dict[str, str] = {
    "average_tokens_across_devices": "a loss is a mean over pairs, and all processes have as many",
    "batch_eval_metrics": _MEASURED,
    "bf16_full_eval": _MEASURED,
    "do_eval": _COMMAND,
    "do_predict": _COMMAND,
    "do_train": _COMMAND,
    "enable_jit_checkpoint": "a run that is asked to end saves a checkpoint first, always",
    "eval_accumulation_steps": _MEASURED,
    "eval_do_concat_batches": _MEASURED,
    "eval_use_gather_object": _MEASURED,
    "fp16_full_eval": _MEASURED,
    "include_for_metrics": _MEASURED,
    "label_names": "pairs have no labels",
    "length_column_name": "batches are planned by the samples' own lengths",
    "local_rank": "torchrun tells each process its rank",
    "per_device_eval_batch_size": _MEASURED,
    "prediction_loss_only": _MEASURED,
    "use_cache": "encoders keep no keys and values",
}

# Schedules whose factor at a step does not depend on the length of the run.
ENDLESS = frozenset({"constant", "constant_with_warmup", "inverse_sqrt"})
# Those that follow measures: the one at the end of a run has no place in a longer run.
FOLLOWING = frozenset({"reduce_lr_on_plateau", "greedy"})


def refuse(values: Mapping[str, Any]) -> None:
    """Raises OptionError for the first value that would break exact resumption, the negatives or the run."""
    workers = values.get("dataloader_num_workers", 0)
    require(workers >= 0, "dataloader_num_workers", "at least 0", workers, "raise it")
    for name, (only, hint) in REFUSED.items():
        if name in values:
            require(values[name] == only, name, repr(only), values[name], hint)
    for name in ("split_batches", "dispatch_batches"):
        given = values.get("accelerator_config")
        if isinstance(given, Mapping):
            hint = "batches are planned, and each process takes its part; drop it"
            require(not given.get(name), f"accelerator_config, {name}", "False", given.get(name), hint)


def notes(chosen: Mapping[str, Any]) -> list[str]:
    """Returns what must be known of values, other than the defaults, with which a run works all the same."""
    said = [f"{name} has no effect: {why}" for name, why in IDLE.items() if name in chosen]
    parts = chosen.get("gradient_accumulation_steps", 1)
    if parts > 1:
        said.append(
            f"gradient_accumulation_steps {parts}: negatives are those of one part, not of all {parts}; for more "
            f"negatives in the same memory raise per_device_train_batch_size and set gradient_cache"
        )
    if chosen.get("torch_compile") or chosen.get("torch_compile_backend") or chosen.get("torch_compile_mode"):
        said.append(
            "torch_compile: resumed runs repeat uninterrupted ones bit for bit only with the same compiled code"
        )
    if chosen.get("save_strategy") == "no":
        said.append(
            "save_strategy no: no checkpoints, unless a signal ends the run; one that is killed begins again at step "
            "0. The model is written at the end all the same"
        )
    for name in chosen:
        if name not in KNOWN:
            said.append(f"{name} is newer than this version of ctloss, which passes it on")
    return said


def may_change(name: str, schedule: str, stops_early: bool) -> bool:
    """Tells whether a run that goes on may have another value of a field, whatever it is."""
    if name in MEASURING:
        return schedule not in FOLLOWING and not stops_early
    return name in BOOKKEEPING or name in MEMORY or name in IDLE


KNOWN = NUMBERS | BATCHES | LENGTH | MEMORY | BOOKKEEPING | REFUSED.keys() | IDLE.keys()
