"""Trainer with checkpoints of ours: folders that exist whole or not at all, of safetensors and JSON."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.utils import SAFE_WEIGHTS_NAME

from ...shared.files import PARTIAL, mark_complete, remove_folder, writing_folder
from .. import saving, stops
from ..model.encoder import CCEEncoder
from ..model.objective import Objective
from ..output import CHECKPOINT, CHECKPOINTS, checkpoints
from ..processes import from_main, shared_out
from ..reporting.logs import Averages
from ..resumption import RunState, precision_of, write_run_state

if TYPE_CHECKING:
    from ..arguments import PretrainingArguments


class CheckpointedTrainer(Trainer):
    """A Trainer that writes and reads checkpoints without pickles, uploads them, and never saves what is not finite.

    With FSDP or DeepSpeed, which share weights out, the weights in them are as Trainer saves them.

    Args:
        objective: the model with its loss.
        arguments: Trainer's arguments; ``output_dir`` is the folder of the checkpoints, in ``output``.
        output: folder of the run.
        others: of Trainer.

    Attributes:
        shared_out: whether no process has all weights.
    """

    args: PretrainingArguments

    def __init__(self, objective: Objective, arguments: PretrainingArguments, output: Path, **others: Any) -> None:
        self.shared_out = shared_out(arguments)
        first = self.shared_out and arguments.process_index == 0
        self._whole = copy.deepcopy(objective.encoder) if first else None
        super().__init__(objective, arguments, **others)
        self._output = output
        self._saved_step = -1
        self._trained = True
        self._averages = Averages(self.accelerator.gather)

    def whole_encoder(self) -> CCEEncoder | None:
        """Returns the encoder as it is now, on every process; if weights are shared out, a copy on the main one."""
        if not self.shared_out:
            return self.model.encoder  # type: ignore[union-attr,return-value]
        if self._trained:
            state = self.accelerator.get_state_dict(self.model_wrapped)
            if self._whole is not None:
                self._load_whole(state)
        return self._whole

    def _load_whole(self, state: dict[str, Tensor]) -> None:
        own = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
        self._whole.load_state_dict(own)  # type: ignore[union-attr]

    def _diverge(self, what: str, steps: int) -> None:
        saved = checkpoints(self._output)
        said = stops.diverged(what, self.args, saved[-1] if saved else None, steps=steps)
        raise stops.DivergedError(said, told=self.is_world_process_zero())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.store_flos()
        step = self.state.global_step
        self._check_weights()
        self._note_best()
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()  # type: ignore[index,call-overload]
        log = self._averages.state()
        failed: stops.SavingError | None = None
        if self.shared_out:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_run_state(self._run_state(), self._folder(step))
                mark_complete(self._folder(step))
        elif self.args.should_save:
            try:
                self._write_checkpoint(step, log)
            except stops.SavingError as error:
                remove_folder(self._folder(step).with_name(self._folder(step).name + PARTIAL))
                failed = error
        # All processes learn of a failure, or one would wait for the others.
        if said := from_main(str(failed) if failed else ""):
            raise stops.SavingError(said, told=self.is_world_process_zero()) from failed
        self._saved_step = step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(self._folder(step)))

    def _check_weights(self) -> None:
        named = [*self.model.named_parameters()]  # type: ignore[union-attr]
        if not self.shared_out:
            for number, values in enumerate(self.optimizer.state.values()):  # type: ignore[union-attr]
                named += [(f"optimizer {number} {name}", one) for name, one in values.items() if torch.is_tensor(one)]
        bad = stops.not_finite((name, getattr(value, "_local_tensor", value)) for name, value in named)
        found = self.accelerator.gather(torch.tensor([bad is not None], device=self.args.device))
        if found.any():
            what = (
                "the optimizer's state"
                if (bad or "").startswith("optimizer")
                else f"a weight ({bad})"
                if bad
                else "a weight"
            )
            steps = self.state.global_step
            self._diverge(f"{what} is not finite after step {steps}", steps)

    def _write_checkpoint(self, step: int, log: dict[str, Any]) -> None:
        kept = "".join(f" ({folder})" for _, folder in checkpoints(self._output)[-1:])
        todo = f"make room there, then go on with --resume; what was saved before is as it was{kept}"
        with stops.writing(f"the checkpoint of step {step}", todo):
            with writing_folder(self._folder(step)) as folder:
                encoder: CCEEncoder = self.model.encoder  # type: ignore[union-attr,assignment]
                saving.save_encoder(folder, encoder, self.processing_class)  # type: ignore[arg-type]
                saving.save_optimizer(self.optimizer, folder)  # type: ignore[arg-type]
                saving.save_progress(folder, scheduler=self.lr_scheduler, scaler=self._scaler(), log=log)
                self.state.save_to_json(str(folder / saving.TRAINER_STATE))
                write_run_state(self._run_state(), folder)
            self._remove_old()

    def _run_state(self) -> RunState:
        arguments = self.args
        return RunState(
            step=self.state.global_step,
            processes=arguments.world_size,
            batch_size=arguments.per_device_train_batch_size,
            precision=precision_of(arguments.precision, cpu=arguments.use_cpu),
            warmup_steps=arguments.get_warmup_steps(self.state.max_steps),
        )

    def _remove_old(self) -> None:
        keep, saved = self.args.save_total_limit, checkpoints(self._output)
        for step, folder in saved[:-keep] if keep else []:
            if step != self.state.best_global_step:
                remove_folder(folder)

    def _note_best(self) -> None:
        best = self.state.best_global_step
        if best and (best == self.state.global_step or self._folder(best).is_dir()):
            self.state.best_model_checkpoint = str(self._folder(best))

    def _load_best_model(self) -> None:
        if self.shared_out:
            super()._load_best_model()
        else:
            self._load_encoder(self._folder(self.state.best_global_step or 0))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.shared_out:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_encoder(Path(resume_from_checkpoint))

    def _load_encoder(self, folder: Path) -> None:
        self.model.encoder.load_state_dict(CCEEncoder.load(folder).state_dict())  # type: ignore[union-attr,operator]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shared_out:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            saving.load_optimizer(self.optimizer, Path(checkpoint))  # type: ignore[arg-type]
            self._averages.restore(
                saving.load_progress(Path(checkpoint), scheduler=self.lr_scheduler), self.args.device
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to restore: every step is seeded."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saving.load_scaler(Path(checkpoint), self._scaler())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads a checkpoint's encoder in the background, unless the last upload is still under way."""
        under_way = getattr(self, "push_in_progress", None)
        if self.args.hub_strategy == "end" or not self.is_world_process_zero():
            return
        if under_way is None or under_way.is_done() or self.args.hub_always_push:
            from transformers.utils.hub import PushInProgress

            self.push_in_progress: Any = PushInProgress(
                [self._upload(Path(checkpoint_folder))]  # type: ignore[arg-type]
            )

    def _upload(self, folder: Path) -> Any:
        from huggingface_hub import HfApi

        return HfApi(token=self.args.hub_token).upload_folder(  # type: ignore[call-overload]
            repo_id=self.hub_model_id,
            folder_path=folder,
            commit_message=f"Step {self.state.global_step}",
            revision=getattr(self.args, "hub_revision", None),
            ignore_patterns=["optimizer.*", "*" + PARTIAL],
            run_as_future=True,
        )

    def _scaler(self) -> Any:
        return getattr(self.accelerator, "scaler", None)

    def _folder(self, step: int) -> Path:
        return self._output / CHECKPOINTS / f"{CHECKPOINT}-{step}"

    def _load_last(self, step: int, folder: Path) -> int:
        self.state = TrainerState.load_from_json(str(folder / saving.TRAINER_STATE))
        best = self._folder(self.state.best_global_step) if self.state.best_global_step else folder
        wanted = best if self.args.load_best_model_at_end and best.is_dir() else folder
        if not self.shared_out:
            self._load_encoder(wanted)
        elif self._whole is not None:
            self._load_whole(load_file(wanted / SAFE_WEIGHTS_NAME))
        self._trained = False
        return step


class SaveLast(TrainerCallback):
    """Lets the last step of an epoch, or of the run, be saved after what is measured and logged at the epoch's end.

    Saved before, a checkpoint would lack that: a run that is killed and goes on from it would never measure it, and
    schedules and stops that follow measures would miss one. Add it after the callbacks that ask for checkpoints.
    """

    def __init__(self) -> None:
        self._owed = False
        self._saved = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts a checkpoint off to the epoch's end, if that follows."""
        whole = state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-9
        if control.should_save and (whole or control.should_training_stop):
            control.should_save, self._owed = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for what was put off, and again for what was saved before something is measured or logged."""
        reports = control.should_log or control.should_evaluate
        control.should_save |= self._owed or (reports and self._saved == state.global_step)
        self._owed = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remembers the step."""
        self._saved, self._owed = state.global_step, False
