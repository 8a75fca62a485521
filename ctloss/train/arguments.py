"""Trainer's arguments as a pretraining run has them: our defaults, fields of our own, and the names they had before."""

from __future__ import annotations

import copy
import enum
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import trainer_log_levels

from ..shared.options import OptionError, check_type, near, require
from ..shared.training import one_device, uses_bfloat16
from . import effects

# The schedule of Chen et al. 2022, which transformers has not.
THIRDS = "thirds"
# What checkpoints are compared by, where that is asked for: accuracy of sentence retrieval on the validation pairs.
BEST = "sentence_forth"
# Where the names of fields stand.
LISTED = "--help-all lists them"
# How often something is done: a number of steps or, below 1, a share of the run's.
STEPS = ("logging_steps", "eval_steps", "save_steps")

# Names that options had before they were Trainer's, and those that Trainer itself has renamed.
FORMER = {
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "clip": "max_grad_norm",
    "warmup": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "optimizer": "optim",
    "schedule": "lr_scheduler_type",
    "log_every": "logging_steps",
    "evaluate_every": "eval_steps",
    "checkpoint_every": "save_steps",
    "keep_checkpoints": "save_total_limit",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# What their values were called. Adam is AdamW without weight decay; other values pass.
FORMER_VALUES: dict[str, dict[Any, dict[str, Any]]] = {
    "optimizer": {
        "adamw": {"optim": "adamw_torch_fused"},
        "adam": {"optim": "adamw_torch_fused", "weight_decay": 0.0},
    },
    "schedule": {"constant": {"lr_scheduler_type": "constant_with_warmup"}},
    "max_steps": {None: {"max_steps": -1}},
    "bf16": {True: {"precision": "bf16"}, False: {}},
    "fp16": {True: {"precision": "fp16"}, False: {}},
}


def _own(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(repr=False)
class PretrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of a pretraining run and a few fields of its own.

    :mod:`ctloss.train.effects` tells what each of them does here. A recipe needs none of these: it holds choices
    (:class:`Training`), which become arguments, and ask for devices, when the run starts.

    Raises:
        OptionError: a value cannot be used, here or by Trainer.
    """

    per_device_train_batch_size: int = _own(64, "pairs per batch, on each process")
    gradient_cache: int | None = _own(
        None, "encode this many pairs at a time, twice each, so that a batch needs the memory of that many"
    )
    num_train_epochs: float = _own(1, "passes over the training pairs")
    max_steps: int = _own(-1, "stop after this many steps, whatever the epochs; -1: no limit")
    optim: str = _own("adamw_torch_fused", "optimizer, as transformers names it")
    learning_rate: float = _own(2e-3, "peak learning rate")
    weight_decay: float = _own(0.01, "decoupled weight decay of matrices")
    lr_scheduler_type: str = _own(
        "linear",
        "learning rate after warmup, as transformers names it; or 'thirds': x 0.1 at 1/3, 2/3 and 5/6 of the run",
    )
    warmup_steps: float = _own(
        0.06, "steps over which the learning rate rises from 0; below 1, their share of the run's"
    )
    max_grad_norm: float = _own(1.0, "largest norm of the gradient; 0 does not clip")
    freeze_word_embeddings: bool = _own(False, "leave the wordpieces' embeddings as they are")
    early_stopping_patience: int | None = _own(
        None, "stop after this many measures in a row without a better metric_for_best_model"
    )
    seed: int = _own(2021, "seed of weights, batches, word draws, masks and dropout")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _own(
        "auto", "autocast: bf16 if the device multiplies it fast, or always the one given"
    )
    logging_steps: float = _own(25, "steps between log lines; below 1, a share of the run's")
    eval_strategy: IntervalStrategy | str = field(
        default="steps", metadata={"help": "when the validation pairs are measured: steps, epoch or no"}
    )
    eval_steps: float | None = _own(250, "steps between retrieval measures on the validation pairs")
    save_steps: float = _own(250, "steps between checkpoints; below 1, a share of the run's")
    save_total_limit: int | None = _own(2, "checkpoints to keep")
    pictured_words: int = _own(12, "meanings in the t-SNE picture; 0 draws none")
    logging_nan_inf_filter: bool = field(default=False)
    remove_unused_columns: bool = field(default=False)
    ddp_find_unused_parameters: bool | None = field(default=False)
    disable_tqdm: bool | None = field(default=False)
    restore_callback_states_from_checkpoint: bool = field(default=True)

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in defaults()}
        given = Training(**{name: value for name, value in values.items() if value != defaults()[name]})
        for name, value in given.chosen.items():
            setattr(self, name, value)
        self._given = given.chosen
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        self.bf16, self.fp16 = uses_bfloat16(self.precision, cpu=self.use_cpu), self.precision == "fp16"
        require(not (self.fp16 and self.use_cpu), "precision", "bf16 or fp32 without a GPU", "fp16", "choose one")
        schedule = self.lr_scheduler_type
        if schedule == THIRDS:
            self.lr_scheduler_type = "constant"
        if given.watches and self.metric_for_best_model is None:
            self.metric_for_best_model = BEST
        try:
            super().__post_init__()
            one_device(self)
        except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
            # What is left half-made would be taken up by the next run of this process.
            AcceleratorState._reset_state(reset_partial_state=True)
            raise OptionError(f"training arguments: {error}") from error
        if schedule == THIRDS:
            self.lr_scheduler_type = THIRDS
        if schedule == "reduce_lr_on_plateau":
            # torch's own default takes every measure for a loss.
            mode = "max" if self.greater_is_better else "min"
            given_kwargs: Any = self.lr_scheduler_kwargs or {}
            self.lr_scheduler_kwargs = {"mode": mode, **given_kwargs}
        self._resolved = {item.name: getattr(self, item.name) for item in fields(self)}

    def choices(self) -> dict[str, Any]:
        """Returns what was given, and what was assigned since, by name."""
        assigned = {name: getattr(self, name) for name, value in self._resolved.items() if getattr(self, name) != value}
        return {**self._given, **assigned}


@cache
def defaults() -> dict[str, Any]:
    """Returns the default of each field, by name."""
    return {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(PretrainingArguments)
    }


@cache
def hints() -> dict[str, Any]:
    """Returns the type of each field, by name."""
    found = get_type_hints(PretrainingArguments)
    return {name: found[name] for name in defaults()}


@cache
def ours() -> tuple[str, ...]:
    """Returns the fields of which this class has a default or a meaning of its own, and a help."""
    known = {item.name: item for item in fields(PretrainingArguments)}
    return tuple(name for name in PretrainingArguments.__annotations__ if known[name].metadata)


@dataclass(frozen=True, init=False, repr=False)
class Training:
    """The training arguments that a recipe chooses; the others have the defaults of :class:`PretrainingArguments`.

    Takes every field of that class by name, and the names of :data:`FORMER`. Attributes read them all. Values are
    compared, printed and stored without asking for a device.

    Raises:
        OptionError: there is no such field, or the value is refused.

    Example:
        >>> training = Training(batch_size=32, lr_scheduler_type="cosine")
        >>> training
        Training(per_device_train_batch_size=32, lr_scheduler_type='cosine')
        >>> training.learning_rate, training.per_device_train_batch_size
        (0.002, 32)
    """

    chosen: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        values = {name: _plain(name, value) for name, value in translated(values).items()}
        effects.refuse(values)
        values = {name: _checked(name, value) for name, value in values.items()}
        chosen = {name: values[name] for name, value in defaults().items() if name in values and values[name] != value}
        object.__setattr__(self, "chosen", copy.deepcopy(chosen))
        self._check()

    @classmethod
    def of(cls, arguments: TrainingArguments) -> Training:
        """Returns the choices in ready arguments.

        Of transformers' own TrainingArguments that is every value, its defaults included; only those with which no
        run works here give way to ours.
        """
        if isinstance(arguments, PretrainingArguments):
            return cls(**arguments.choices())
        plain = {item.name: item.default for item in fields(TrainingArguments)}
        given = [name for name in plain if name not in _RESOLVED and FORMER.get(name) not in plain]
        values = {name: _plain(name, getattr(arguments, name)) for name in given}
        values = {name: value for name, value in values.items() if name in ours() or value != plain[name]}
        if values.get("metric_for_best_model") == "loss":
            # What Trainer fills in; no measure here is called that.
            del values["metric_for_best_model"]
        values["precision"] = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
        return cls(**values)

    def replace(self, **values: Any) -> Training:
        """Returns these choices with others in their place."""
        return Training(**{**self.chosen, **translated(values)})

    def arguments(self, output: Path | str) -> PretrainingArguments:
        """Returns Trainer's arguments with a folder of checkpoints; asks for the device, and joins the processes.

        Raises:
            OptionError: they cannot be had on this device, or a library that they need is missing.
        """
        # Trainer's arguments fill in dictionaries that they are given.
        return PretrainingArguments(**{**copy.deepcopy(self.chosen), "output_dir": str(output)})

    def as_dict(self) -> dict[str, Any]:
        """Returns our fields and the other choices as JSON gives them back, without what is secret."""
        shown = {name: getattr(self, name) for name in ours()} | self.chosen
        public = {name: value for name, value in shown.items() if not name.endswith("_token") and name != "output_dir"}
        document: dict[str, Any] = json.loads(json.dumps(public, default=str))
        return document

    @property
    def watches(self) -> bool:
        """Whether something depends on which measure is best."""
        return (
            self.load_best_model_at_end
            or self.early_stopping_patience is not None
            or self.save_strategy == "best"
            or self.lr_scheduler_type in effects.FOLLOWING
        )

    def __getattr__(self, name: str) -> Any:
        if name not in defaults():
            raise AttributeError(f"training arguments have no {name!r}")
        return self.chosen.get(name, defaults()[name])

    def __repr__(self) -> str:
        public = (f"{name}={value!r}" for name, value in self.chosen.items() if not name.endswith("_token"))
        return f"Training({', '.join(public)})"

    def __hash__(self) -> int:
        return hash(repr(self))

    def _check(self) -> None:
        def each(names: Iterable[str], holds: Callable[[Any], bool], expected: str, hint: str = "raise it") -> None:
            for name in names:
                value = getattr(self, name)
                require(value is None or holds(value), name, expected, value, hint)

        schedule, size = self.lr_scheduler_type, self.per_device_train_batch_size
        each(("learning_rate", "num_train_epochs", *STEPS), lambda value: value > 0, "a number above 0")
        each(
            ("weight_decay", "max_grad_norm", "warmup_steps", "seed", "pictured_words"), lambda v: v >= 0, "at least 0"
        )
        each(("gradient_accumulation_steps", "save_total_limit", "gradient_cache"), lambda v: v >= 1, "at least 1")
        each(("early_stopping_patience",), lambda value: value >= 1, "at least 1")
        each(("max_steps",), lambda value: value >= 1 or value == -1, "at least 1, or -1 for none")
        each(
            ("report_to",),
            lambda value: isinstance(value, str) or not {"none", "all"} & set(value),
            "'none', 'all' or names of services",
            "drop the others, or name each",
        )
        each(("seed",), lambda value: value < 2**32, f"at most {2**32 - 1}", "lower it")
        each(
            ("warmup_steps", *STEPS),
            lambda value: value < 1 or value == int(value),
            "a whole number of steps, or a share of the run's below 1",
            "round it",
        )
        each(
            ("per_device_train_batch_size",),
            lambda value: value >= 2,
            "at least 2",
            "a row's negatives are the other rows",
        )
        each(
            ("gradient_cache",),
            lambda value: value <= size,
            f"at most the per_device_train_batch_size {size}",
            "lower it, or leave it out",
        )
        each(
            ("warmup_steps",),
            lambda value: schedule != "constant" or not self.chosen.get("warmup_steps"),
            "0 with the lr_scheduler_type constant",
            "leave it out, or choose constant_with_warmup",
        )
        each(
            ("eval_strategy",),
            lambda value: value != "no" or not self.watches,
            "steps or epoch",
            "the best checkpoint, early stopping and schedules that follow measures need them",
        )


# What Trainer's arguments fill in from the others.
_RESOLVED = ("bf16", "do_eval", "fp16", "greater_is_better")


def _plain(name: str, value: Any) -> Any:
    """Returns a value as text, numbers, lists and dictionaries, where Trainer's arguments keep another form of it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list) and name == "report_to" and len(value) < 2:
        return value[0] if value else "none"
    if isinstance(value, list) and name == "debug":
        return " ".join(item if isinstance(item, str) else item.value for item in value)
    if name in ("activation_checkpointing", "fsdp"):
        return value or None
    if name == "fsdp_config" and isinstance(value, dict) and not any(value.values()):
        # Earlier versions fill one in, in which everything is off.
        return None
    if name == "accelerator_config" and hasattr(value, "to_dict"):
        usual = type(value)().to_dict()
        return {key: given for key, given in value.to_dict().items() if given != usual.get(key)} or None
    if name in TrainingArguments._VALID_DICT_FIELDS and isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise OptionError(f"{name}: expected JSON, got {value!r} ({error}); correct it") from None
    return value


def every_name() -> list[str]:
    """Returns every name that a value may be given by."""
    return [*defaults(), *FORMER]


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by their present names.

    Raises:
        OptionError: a name is unknown, or two names ask for different values of one field.
    """
    found: dict[str, tuple[str, Any]] = {}
    for given, value in values.items():
        if given not in defaults() and given not in FORMER:
            raise OptionError(f"recipe: expected a field, got {given}; {near(given, every_name(), LISTED)}")
        if given == "warmup_ratio" and isinstance(value, (int, float)):
            require(0 <= value < 1, given, "a share of the run's steps below 1", value, "give warmup_steps")
        # An earlier transformers has not renamed it yet.
        present = FORMER.get(given, given)
        meant = {present if present in defaults() else given: value}
        known = FORMER_VALUES.get(given, {})
        if isinstance(value, (str, bool, type(None))) and value in known:
            meant = known[value]
        for name, wanted in meant.items():
            other, before = found.setdefault(name, (given, wanted))
            require(
                before == wanted or other == given, name, f"{before!r}, as {other} asks for", wanted, f"drop {given}"
            )
    if "precision" not in found and {"bf16", "fp16"} & values.keys():
        found["precision"] = ("bf16 and fp16", "fp32")
    return {name: value for name, (_, value) in found.items()}


def _checked(name: str, value: Any) -> Any:
    hint, choices = hints()[name], _choices(name)
    for one in value if isinstance(value, list) else [value]:
        if choices and one is not None:
            told = near(str(one), choices, "choose one of them")
            require(one in choices, name, "one of " + ", ".join(choices), one, told)
    # Trainer takes True and a list for it too, whatever its type says.
    if name != "fsdp":
        check_type(name, value, hint)
    if isinstance(value, float):
        require(math.isfinite(value), name, "a finite number", value, "give one")
        if value.is_integer() and abs(value) >= 1:
            return int(value)
    return value


@cache
def _choices(name: str) -> list[str]:
    """Returns the texts among which a field is chosen, where transformers, or what it hands them to, names them."""
    if name == "report_to":
        return ["none", "all", *INTEGRATION_TO_CALLBACK]
    if name in ("log_level", "log_level_replica"):
        return list(trainer_log_levels)
    if name == "ddp_backend":
        # torch's own, and those of the libraries that accelerate knows.
        own = torch.distributed.Backend.backend_list if torch.distributed.is_available() else []
        return sorted({*own, "ccl", "cncl", "hccl", "mccl", "xccl"} - {"fake", "undefined"})
    kinds = get_args(get_type_hints(TrainingArguments).get(name))
    choices = [str(item.value) for kind in kinds if isinstance(kind, enum.EnumMeta) for item in kind]  # type: ignore[var-annotated]
    return [THIRDS, *choices] if name == "lr_scheduler_type" else choices
