"""One step of supervised fine-tuning: the project's trainer beside the plain side.

The plain side takes rows as they come, pads them on the right, and computes only the logits that
predict a response.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rere.benchmarks.models import BenchmarkModel, PromptRow
from rere.benchmarks.plain import training as plain
from rere.benchmarks.speed import steps
from rere.benchmarks.speed.sft import SftRow, collate
from rere.benchmarks.timing import split_batches
from rere.config.training import SftOptions
from rere.training.sft import SftTrainer

STEP, OURS, PLAIN = "SFT step", "rere", "plain step"


def make_steps(model: BenchmarkModel, folder: Path) -> dict[str, Callable]:
    """Return the step of each side, a function of rows per pass and a batch."""
    trainer = steps.make_trainer(
        SftTrainer, model, SftOptions(dtype=model.dtype), 1, folder, lengths=[]
    )

    def train(rows: Sequence[SftRow], rows_per_pass: int) -> Tensor:
        changed = {"rows_per_pass": rows_per_pass}
        trainer.options = trainer.options.model_copy(update=changed)
        return trainer.training_step(trainer.model, collate(rows))

    def train_plainly(rows: Sequence[SftRow], rows_per_pass: int) -> Tensor:
        count, total = sum(len(row.response) for row in rows), torch.zeros((), device=model.device)
        for part in split_batches(rows, rows_per_pass):
            with model.precision():
                sequences = plain.Sequences(*zip(*part, strict=True))
                loss = -plain.log_probs(model.float32, sequences)[0].sum() / count
            loss.backward()
            total += loss.detach()
        return total

    return {
        OURS: partial(take_step, model, trainer, train, True),
        PLAIN: partial(take_step, model, trainer, train_plainly, False),
    }


def take_step(
    model: BenchmarkModel,
    trainer: SftTrainer,
    train: Callable[[Sequence[SftRow], int], Tensor],
    by_length: bool,
    rows_per_pass: int,
    batch: Sequence[PromptRow],
) -> steps.StepResult:
    """Take a step by `train`; `by_length` as the trainer's loop batches rows."""
    rows = [SftRow(row.prompt, model.sequences[row.target]) for row in batch]
    if by_length:
        rows.sort(key=lambda row: len(row.prompt))
    trainer.optimizer.zero_grad()
    loss = train(rows, rows_per_pass)
    norm = steps.update_weights(model.float32, trainer.optimizer, trainer.args.max_grad_norm)
    return steps.StepResult(float(loss), norm)
