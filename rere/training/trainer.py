"""What SFT and RL share: the arguments, the step log, and the model they leave behind.

The loop itself (schedules, clipping, accumulation, checkpoints, several devices) is
`transformers.Trainer`; a method adds its loss and its validation.
"""

import json
import shutil
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

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue
from rere.config import RlOptions, SftOptions
from rere.data.splits import read_split
from rere.engine.decoder import shares_prompts
from rere.errors import InputError
from rere.files import replacing
from rere.progress import progress
from rere.prompts import PromptEncoder


class Trainer(transformers.Trainer):
    """`transformers.Trainer` with validation as one method and a plain step log."""

    def __init__(self, log: Path, label: str, **options: Any) -> None:
        super().__init__(**options)
        self.remove_callback(PrinterCallback)
        self.add_callback(StepLog(log, label))
        self.step_metrics: defaultdict[str, list[Tensor]] = defaultdict(list)

    def validate(self) -> dict[str, float]:
        """Metrics on the validation sample, by which checkpoints are chosen."""
        raise NotImplementedError

    def record(self, **metrics: Tensor) -> None:
        """Keep scalars of a pass for the step's line in the log; they stay on the device."""
        for name, value in metrics.items():
            self.step_metrics[name].append(value.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {k: torch.stack(v).mean().item() for k, v in self.step_metrics.items()}
            self.step_metrics.clear()
        super().log(logs, start_time)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in self.validate().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class StepLog(TrainerCallback):
    """One JSON line a step in `path`, and progress with rate and remaining time on the screen."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label

    def on_train_begin(self, args, state, control, **_):
        self.bar = progress(state.max_steps, self.label, "step")
        self.path.write_text("")

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
    checkpoints: Path,
    total_steps: int,
    rows: int,
    **more: Any,
) -> TrainingArguments:
    """The arguments that SFT and RL agree on, for steps of `rows` rows.

    The checkpoint with the best validation is loaded at the end.
    """
    return TrainingArguments(
        output_dir=str(checkpoints),
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
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
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
    """Write `output`/model (safetensors and JSON only) and remove the run's checkpoints.

    The folder is all that recommending takes: weights, tokenizer and catalogue.
    """
    with replacing(output / "model") as folder:
        model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        catalogue.save(folder / CATALOGUE)
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
