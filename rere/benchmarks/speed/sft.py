"""Supervised fine-tuning: the project's trainer against the stock `transformers.Trainer`.

The stock trainer shuffles rows, pads a batch to its longest row, and computes the logits of every
token. Ours batches rows of similar length and computes the logits that predict the response. Both
get token ids.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
)

from rere.backbones import load_tokenizer
from rere.benchmarks.models import BenchmarkModel
from rere.benchmarks.speed.scoring import is_close
from rere.benchmarks.speed.steps import make_trainer
from rere.benchmarks.table import compare
from rere.benchmarks.timing import time_at_best_size
from rere.config.training import SftOptions
from rere.engine.candidates.scoring import token_log_probs
from rere.training.callbacks import ValidationSteps
from rere.training.sft import Examples, SftTrainer

SFT = "supervised fine-tuning"
OURS, STOCK = "rere", "transformers Trainer"
BATCH_SIZE, REPEATS = 32, 3


class SftRow(NamedTuple):
    """A prompt and the response for its target."""

    prompt: Sequence[int]
    response: Sequence[int]


def benchmark_sft(
    model: BenchmarkModel, num_rows: int, sizes: Sequence[int], seed: int
) -> dict[str, Any]:
    """Return the table's row, on `num_rows` training rows.

    Each side takes its best rows per pass of `sizes`, found on a quarter of the rows.
    """
    tokenizer, sampled = load_tokenizer(model.folder), model.sample_rows("train", num_rows, seed)
    rows = [SftRow(row.prompt, model.sequences[row.target]) for row in sampled]
    trial = rows[: max(BATCH_SIZE, len(rows) // 4)]
    with TemporaryDirectory() as folder:
        calls = {
            OURS: partial(train, model, Path(folder)),
            STOCK: partial(train_stock, model, Path(folder), tokenizer),
        }
        label = f"speed: {model.name}, {SFT}"
        best, timed = time_at_best_size(calls, sizes, trial, [rows] * REPEATS, label)
    tokens = sum(len(row.prompt) + len(row.response) for row in rows) / len(rows)
    setting = model.describe(
        f"{tokens:.0f} tokens a row",
        f"{BATCH_SIZE} rows a step",
        f"{best[OURS]} rows a pass (theirs {best[STOCK]})",
    )
    seconds = timed[OURS].median, timed[STOCK].median
    equal = equals_stock(model, tokenizer, rows[: max(sizes)])
    return compare(SFT, STOCK, setting, *seconds, equal)


def train(model: BenchmarkModel, folder: Path, rows_per_pass: int, rows: Sequence[SftRow]) -> float:
    """Train on all rows once; return the mean loss."""
    options = SftOptions(batch_size=BATCH_SIZE, rows_per_pass=rows_per_pass, checkpoint_seconds=1e9)
    trainer = make_trainer(
        SftTrainer,
        model,
        options,
        BATCH_SIZE,
        folder,
        lengths=[len(row.prompt) for row in rows],
        args=make_arguments(folder, BATCH_SIZE, len(rows)),
        train_dataset=list(rows),
        data_collator=collate,
    )
    # The stock trainer does not validate.
    trainer.args.eval_on_start = False
    trainer.remove_callback(ValidationSteps)
    return trainer.train().training_loss


def train_stock(
    model: BenchmarkModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows_per_pass: int,
    rows: Sequence[SftRow],
) -> float:
    """Train on all rows once with the stock trainer; return the mean loss."""
    trainer = transformers.Trainer(
        model=model.float32,
        args=make_arguments(folder, rows_per_pass, len(rows)),
        train_dataset=[label_response(row) for row in rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer.train().training_loss


def collate(rows: Sequence[SftRow]) -> dict[str, Any]:
    """Collate rows as `rere.training.sft` does."""
    return {"examples": Examples([row.prompt for row in rows], [row.response for row in rows])}


def label_response(row: SftRow) -> dict[str, list[int]]:
    """Return a row as transformers expects it, with labels of the response only."""
    ids = [*row.prompt, *row.response]
    return {"input_ids": ids, "labels": [-100] * len(row.prompt) + list(row.response)}


def make_arguments(folder: Path, rows_per_pass: int, num_rows: int) -> TrainingArguments:
    """Return arguments of plain AdamW with learning rate 0, so that all train the same model."""
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=0.0,
        max_steps=num_rows // BATCH_SIZE,
        per_device_train_batch_size=rows_per_pass,
        gradient_accumulation_steps=BATCH_SIZE // rows_per_pass,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def equals_stock(
    model: BenchmarkModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[SftRow]
) -> bool:
    """Whether loss and gradient of a batch are those of the model's own loss."""
    examples = collate(rows)["examples"]
    log_prob = token_log_probs(model.float32, examples.pack().to(model.device))
    stock = DataCollatorForSeq2Seq(tokenizer)([label_response(row) for row in rows])
    losses = (
        -log_prob.sum() / examples.num_predicted,
        model.float32(**stock.to(model.device)).loss,
    )

    def with_gradient(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, list(model.float32.parameters()))
        return torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])

    return is_close(*map(with_gradient, losses))
