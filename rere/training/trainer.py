"""What SFT and RL share: the arguments, the step log, and the model they leave behind.

The loop itself (schedules, clipping, accumulation, checkpoints, several devices) is
`transformers.Trainer`; a method adds its loss and its validation.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue
from rere.config import RlOptions, SftOptions, Training
from rere.data.splits import read_split
from rere.engine.decoder import shares_prompts
from rere.errors import InputError
from rere.files import flush, replacing
from rere.progress import progress
from rere.prompts import PromptEncoder
from rere.training.checkpoints import LOG, Checkpoints


class Trainer(transformers.Trainer):
    """`transformers.Trainer` with validation as one method, a plain step log and checkpoints."""

    def __init__(
        self, options: Training, checkpoints: Checkpoints, label: str, **more: Any
    ) -> None:
        super().__init__(**more)
        self.options, self.checkpoints = options, checkpoints
        self.remove_callback(PrinterCallback)
        self.add_callback(StepLog(checkpoints.log, label))
        self.step_metrics: defaultdict[str, list[Tensor]] = defaultdict(list)

    def validate(self) -> dict[str, float]:
        """Metrics on the validation sample, by which checkpoints are chosen."""
        raise NotImplementedError

    def record(self, **metrics: Tensor) -> None:
        """Keep scalars of a pass for the step's line in the log; they stay on the device."""
        for name, value in metrics.items():
            self.step_metrics[name].append(value.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:
            return  # a summary of what ran after the last interruption; run.json has all of it
        if "loss" in logs:
            logs |= {k: torch.stack(v).mean().item() for k, v in self.step_metrics.items()}
            self.step_metrics.clear()
        super().log(logs, start_time)
        self.state.log_history.clear()  # the step log has it, and checkpoints would grow with it

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in self.validate().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _maybe_log_save_evaluate(self, *args: Any, **more: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **more)  # a new best is saved at once
        saved = self.checkpoints.path(self.state.global_step).exists()
        if self.checkpoints.due(self.options.checkpoint_seconds) and not saved:
            self._save_checkpoint(self.model_wrapped)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """All that the rest of the run depends on; nothing does at its end."""
        if self.control.should_training_stop:
            return
        state = self.state
        with self.checkpoints.adding(state.global_step, state.best_global_step) as folder:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            for part in [*self.callback_handler.callbacks, self.control]:
                if isinstance(part, ExportableState):
                    state.stateful_callbacks[type(part).__name__] = part.state()
            state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers' own adds a pickle of the arguments.
        self.accelerator.unwrap_model(self.model).save_pretrained(output_dir, state_dict=state_dict)

    def _finalize_training(self, *args: Any) -> Any:
        best = self.state.best_global_step
        if best is not None and best < self.state.global_step:
            self.state.best_model_checkpoint = str(self.checkpoints.path(best))
        return super()._finalize_training(*args)  # loads it


class StepLog(TrainerCallback):
    """One JSON line a step in `path`, and progress with rate and remaining time on the screen."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label

    def on_train_begin(self, args, state, control, **_):
        self.bar = progress(state.max_steps, self.label, "step", state.global_step)
        self.path.touch()

    def on_log(self, args, state, control, logs, **_):
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        shown = {k: v for k, v in logs.items() if k in ("loss", "reward") or k.startswith("eval_")}
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)

    def on_step_end(self, args, state, control, **_):
        self.bar.update(1)

    def on_train_end(self, args, state, control, **_):
        self.bar.close()


def training_arguments(
    options: SftOptions | RlOptions,
    seed: int,
    folder: Path,
    total_steps: int,
    rows: int,
    **more: Any,
) -> TrainingArguments:
    """The arguments that SFT and RL agree on, for steps of `rows` rows; checkpoints in `folder`.

    The weights with the best validation end the run.
    """
    return TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(options.warmup * total_steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        max_steps=total_steps,
        per_device_train_batch_size=options.rows_per_pass,
        per_device_eval_batch_size=options.rows_per_pass,
        gradient_accumulation_steps=rows // options.rows_per_pass,
        eval_steps=max(1, total_steps // options.evaluations),
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused
        bf16=options.dtype == "bfloat16",
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
        **more,
    )


def load(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and model that training starts from.

    Raises InputError for an architecture whose candidates cannot share their prompt.
    """
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    if not shares_prompts(model):
        raise InputError(
            f"{folder}: {type(model).__name__} cannot be trained, since its attention does not "
            "follow a mask by position; take another architecture"
        )
    return tokenizer, model


def read_rows(data: Path, split: str, rows: int | None = None) -> list[dict[str, Any]]:
    """A split, or the seeded sample of it, as rows {"row_id", "history", "target"}."""
    return read_split(data, split, rows).select("row_id", "history", "target").to_dicts()


def encode(encoder: PromptEncoder, rows: list[dict[str, Any]], seed: int) -> list[list[int]]:
    """The prompt ids of a batch of rows."""
    return encoder.prompts([row["row_id"] for row in rows], [row["history"] for row in rows], seed)


def save(
    model: PreTrainedModel,
    encoder: PromptEncoder,
    catalogue: Catalogue,
    trainer: Trainer,
    output: Path,
) -> None:
    """Write `output`/model (safetensors and JSON only) and `output`/log.jsonl.

    The folder is all that recommending takes: weights, tokenizer and catalogue.
    """
    with replacing(output / "model") as folder:
        model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        catalogue.save(folder / CATALOGUE)
    flush(trainer.checkpoints.log)
    trainer.checkpoints.log.replace(output / LOG)
