"""The parts that all training stages share: trainer and arguments.

The loop (schedule, clipping, resuming) is `transformers.Trainer`; a stage adds its loss and its
validation.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainerControl, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.utils import SAFE_WEIGHTS_NAME

from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.engine.model.precision import arithmetic, products_in
from rere.engine.search.sizes import SearchSizes, choose_sizes
from rere.errors import InputError
from rere.provenance import peak_memory
from rere.signals import Stopped
from rere.training.callbacks import StepLog, ValidationSteps, tracker_callbacks
from rere.training.checkpoints import Checkpoints
from rere.training.groups import slices
from rere.training.models import Model
from rere.training.reference import Reference
from rere.training.sharding import (
    load_state,
    load_weights,
    part_of,
    shard,
    unsharded,
    whole,
    whole_state,
    whole_weights,
)

log = logging.getLogger(__name__)


class Pass(NamedTuple):
    """Some rows of a step, for one forward and backward pass."""

    rows: list[int]
    weight: float = 1.0  # of their loss; 0 for a pass that only keeps the ranks together


class Trainer(transformers.Trainer):
    """`transformers.Trainer` with its own validation, step log and checkpoints."""

    control: TrainerControl

    def __init__(
        self,
        options: SftOptions | PreferenceOptions | RlOptions,
        checkpoints: Checkpoints,
        label: str,
        reference: Reference | None = None,
        **more: Any,
    ) -> None:
        self.options, self.checkpoints, self.label = options, checkpoints, label
        self.ranks, self.reference = checkpoints.ranks, reference
        self.is_sharded = options.sharded and self.ranks.size > 1
        device = more["args"].device
        if self.is_sharded:
            models = [more["model"], *([reference.model] if reference else [])]
            for model in dict.fromkeys(models):  # LoRA's reference is the policy
                shard(model, self.ranks, device)
        super().__init__(**more)
        if reference is not None:
            reference.model.to(device)
        self.remove_callback(PrinterCallback)
        self.step_log = StepLog(checkpoints.log, label)
        if self.ranks.is_first:
            for callback in tracker_callbacks(options.report_to, checkpoints.folder.parent):
                self.add_callback(callback)
            self.add_callback(self.step_log)
        self.add_callback(ValidationSteps(options.validations))
        self.args.eval_on_start = checkpoints.latest is None
        self.step_metrics: dict[str, Tensor] = {}

    @property
    def language_model(self) -> PreTrainedModel:
        """The model that searches use: with its adapters, without PEFT's wrapper."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the options, for search, reference, update and validation."""
        return arithmetic(self.args.device, self.options.dtype)

    def choose_sizes(self) -> SearchSizes:
        """The sizes of the run's searches: those that it began with, or new ones, now recorded.

        Gradients and the optimiser's state do not have their memory yet. Under `deterministic`
        nothing is timed. All ranks take the first one's sizes.
        """
        chosen = self.checkpoints.run.chosen
        if "search_memory" not in chosen:
            weights = [each for each in self.model.parameters() if each.requires_grad]
            copies = 3 if self.options.optimizer == "adamw" else 1
            with self.autocast(), unsharded(self.model):
                sizes = choose_sizes(
                    self.language_model,
                    reserved=copies * sum(part_of(each).nbytes for each in weights),
                    is_timed=not self.options.deterministic and self.ranks.is_first,
                )
            chosen |= zip(sizes._fields, map(int, self.ranks.first(*sizes)), strict=True)
        return SearchSizes(*(chosen[name] for name in SearchSizes._fields))

    def split_into_passes(self, rows: Sequence[int]) -> list[Pass]:
        """This rank's share of a step's rows, in passes.

        Of a sharded model every rank takes equally many: a pass too many has no effect.
        """
        share, size = [*rows][self.ranks.rows], self.options.rows_per_pass
        passes = [Pass(share[part]) for part in slices(len(share), size)]
        if self.is_sharded:
            most = math.ceil(math.ceil(len(rows) / self.ranks.size) / size)
            passes += [Pass([*rows[:1]], weight=0.0)] * (most - len(passes))
        return passes

    def validate(self) -> dict[str, float]:
        """Metrics on the validation rows, which select the checkpoint."""
        raise NotImplementedError

    def record_metrics(self, **metrics: Tensor | None) -> None:
        """Keep scalars for the step's line in the log, on their device; None is left out."""
        for name, value in metrics.items():
            if value is not None:
                self.step_metrics[name] = value.detach().float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:
            return  # transformers' summary since the last resume; run.json covers the whole run
        if "loss" in logs:
            self.stop_if_not_finite(logs)
            logs |= self.read_metrics() | peak_memory()
        logs = {**logs, "seconds": round(self.checkpoints.run.seconds, 3)}
        super().log(logs, start_time)
        self.state.log_history.clear()  # else every checkpoint would contain the whole log

    def read_metrics(self) -> dict[str, float]:
        """The metrics recorded in this step, read from the device in one transfer."""
        if not self.step_metrics:
            return {}
        values = torch.stack([*self.step_metrics.values()]).tolist()
        named = dict(zip(self.step_metrics, values, strict=True))
        self.step_metrics = {}
        return named

    def stop_if_not_finite(self, logs: dict[str, float]) -> None:
        """Raise InputError, before a checkpoint of these weights is written."""
        step = self.state.global_step
        remedy = (
            "lower learning_rate"
            if step > 1
            else "it is that of the initial model; take dtype: float32 or another model"
        )
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise InputError(f"{name} is {logs[name]} at step {step}; {remedy}")

    def train(self, *args: Any, **more: Any) -> Any:
        try:
            # Backward passes run outside `autocast`.
            with products_in("tf32"):
                return super().train(*args, **more)
        except UnpicklingError as error:  # in the state of optimiser, schedule or random numbers
            raise InputError(
                f"{self.checkpoints.latest}: holds code, which is not run; remove the folder"
            ) from error
        finally:
            self.step_log.close()  # before a message is printed

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Validate, and log it. The first call is for the initial model, the best so far.

        Raises InputError if the initial model's metrics are not finite.
        """
        is_initial, device = self.state.global_step == 0, self.args.device
        self.model.eval()
        # Steps draw the same random numbers as without a validation of the initial model.
        with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=is_initial):
            with unsharded(self.model):
                found = self.validate()
            metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items()}
        if is_initial and not all(map(math.isfinite, metrics.values())):
            raise InputError(
                f"{', '.join(f'{k} is {v}' for k, v in metrics.items())} for the initial model; "
                "it is broken, or dtype is too narrow for it"
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        if is_initial:
            self._determine_best_metric(metrics, None)
            self._save_checkpoint(self.model_wrapped)
        return metrics

    def _maybe_log_save_evaluate(self, *args: Any, **more: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **more)  # saves a new best
        path = self.checkpoints.path(self.state.global_step)
        # A signal may reach one rank only; the clock is the first one's.
        (signal,) = map(int, self.ranks.largest(self.checkpoints.signals.received or 0))
        is_due = self.checkpoints.is_due(self.options.checkpoint_seconds) or signal > 0
        (is_due,) = map(bool, self.ranks.first(is_due and not path.exists()))
        is_last = self.control.should_training_stop
        if is_due and not is_last:
            self._save_checkpoint(self.model_wrapped)
        if signal and not is_last:
            raise Stopped(signal, f"the same command resumes from {path}")

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Save all state that the rest of the run depends on; nothing after the last step."""
        if self.control.should_training_stop:
            return
        weights = reference = None
        optimizer = self.optimizer.state_dict()
        if self.is_sharded:  # gathered from all ranks
            is_first = self.ranks.is_first
            weights = whole_weights(self.model, is_first)
            optimizer = whole_state(optimizer, is_first)
            if self.reference is not None and self.reference.is_synced:
                reference = whole_weights(self.reference.model, is_first)
        if self.ranks.is_first:
            state = self.state
            with self.checkpoints.write(state.global_step, state.best_global_step) as folder:
                self._save(str(folder), weights)
                if self.reference is not None:
                    self.reference.save(folder, reference)
                torch.save(optimizer, folder / OPTIMIZER_NAME)
                torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
                self._save_rng_state(str(folder))
                for part in [*self.callback_handler.callbacks, self.control]:
                    if isinstance(part, ExportableState):
                        state.stateful_callbacks[type(part).__name__] = part.state()
                state.save_to_json(str(folder / TRAINER_STATE_NAME))
        self.ranks.wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.load_sharded(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.reference is not None:
            self.reference.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if not self.load_sharded(Path(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def load_sharded(self, checkpoint: Path) -> bool:
        """Load weights of which each rank has a part; False where transformers can load them.

        Adapters are whole on every rank.
        """
        is_split = self.is_sharded and not isinstance(self.model, PeftModel)
        if is_split:
            load_weights(self.model, load_file(checkpoint / SAFE_WEIGHTS_NAME))
        return is_split

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.is_sharded:
            state, schedule = (
                torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True)
                for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
            )
            load_state(self.optimizer, state)
            self.lr_scheduler.load_state_dict(schedule)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _clip_grad_norm(self, model: Model) -> Tensor:
        return whole(super()._clip_grad_norm(model))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers would add a pickle of the arguments.
        self.accelerator.unwrap_model(self.model).save_pretrained(output_dir, state_dict=state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied weight is saved under one of its names only.
        tied = self.language_model.all_tied_weights_keys
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _finalize_training(self, *args: Any) -> Any:
        best = self.checkpoints.run.best_step = self.state.best_global_step
        if best is not None and best < self.state.global_step:
            if self.ranks.is_first:
                self.checkpoints.intact(best)
            self.ranks.wait()
            self.state.best_model_checkpoint = str(self.checkpoints.path(best))
        if best == 0:
            log.warning(
                "%s: no validation was better than that of the initial model, which model/ now "
                "holds",
                self.checkpoints.folder.parent,
            )
        result = super()._finalize_training(*args)  # loads the best model
        self.ranks.wait()  # the first rank removes it
        return result


def training_arguments(
    options: SftOptions | PreferenceOptions | RlOptions,
    seed: int,
    folder: Path,
    total_steps: int,
    rows: int,
    **more: Any,
) -> TrainingArguments:
    """The arguments that all stages share, for steps of `rows` rows.

    Checkpoints are in `folder`; the one with the best validation is the result.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        run_name=str(folder.parent),
        seed=seed,
        data_seed=seed,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(options.warmup * total_steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        max_steps=total_steps,
        **({"optim": "adafactor"} if options.optimizer == "adafactor" else {}),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=options.rows_per_pass,
        eval_steps=total_steps,  # ValidationSteps adds the others
        eval_strategy="steps",
        save_strategy="best",
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        **{"use_cpu": not torch.cuda.is_available()} | more,
    )
    # The Trainer would copy the model to every visible device, and take more rows per step.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
