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

    def train(part: Sequence[SftRow], count: int) -> Tensor:
        inputs = {"packed": collate(part)["packed"].to(model.device)}
        count = torch.tensor(count, device=model.device)
        return trainer.training_step(trainer.model, inputs, count)

    def train_plainly(part: Sequence[SftRow], count: int) -> Tensor:
        with model.precision():
            log_prob, _ = plain.log_probs(model.float32, plain.Sequences(*zip(*part, strict=True)))
            loss = -log_prob.sum() / count
        loss.backward()
        return loss.detach()

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
    """Take a step of the passes of `train`; `by_length` as the trainer's loop batches rows."""
    rows = [SftRow(row.prompt, model.sequences[row.target]) for row in batch]
    if by_length:
        rows.sort(key=lambda row: len(row.prompt))
    trainer.optimizer.zero_grad()
    count = sum(len(row.response) for row in rows)
    losses = [train(part, count) for part in split_batches(rows, rows_per_pass)]
    norm = steps.update_weights(model.float32, trainer.optimizer, trainer.args.max_grad_norm)
    return steps.StepResult(float(sum(losses)), norm)
