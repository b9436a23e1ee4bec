"""One step of supervised fine-tuning: the project's trainer against whole sequences.

The plain step pads the passes' rows on the right, in the order given, and computes only the logits
that predict a response.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rere.benchmarks.models import BenchmarkModel, PromptRow
from rere.benchmarks.plain import training as plain
from rere.benchmarks.speed import steps
from rere.benchmarks.speed.sft import SftRow, collate
from rere.benchmarks.timing import split_batches
from rere.config.training import SftOptions
from rere.training.sft import SftTrainer

STEP = "SFT step"
OURS, PLAIN = "rere", "plain step"
MAX_GRAD_NORM = SftOptions().max_grad_norm


def make_steps(model: BenchmarkModel, folder: Path) -> dict[str, Any]:
    """Return the step of each side, a function of rows per pass and a batch."""
    optimizer = steps.make_optimizer(model.float32)
    trainer = steps.make_trainer(
        SftTrainer,
        model,
        SftOptions(dtype=model.dtype),
        1,
        folder,
        lengths=[],
        optimizers=(optimizer, None),
    )
    return {
        OURS: partial(take_step, model, trainer),
        PLAIN: partial(take_plain_step, model, optimizer),
    }


def take_step(
    model: BenchmarkModel, trainer: SftTrainer, rows_per_pass: int, batch: Sequence[PromptRow]
) -> steps.StepResult:
    """Take a step as the trainer's loop does, with rows of similar length in a pass."""
    rows = sorted(with_responses(model, batch), key=lambda row: len(row.prompt))
    count = torch.tensor(sum(len(row.response) for row in rows), device=model.device)
    trainer.optimizer.zero_grad()
    losses = []
    for part in split_batches(rows, rows_per_pass):
        inputs = {"packed": collate(part)["packed"].to(model.device)}
        losses.append(trainer.training_step(trainer.model, inputs, count))
    norm = steps.update_weights(model.float32, trainer.optimizer, MAX_GRAD_NORM)
    return steps.StepResult(float(sum(losses)), norm)


def take_plain_step(
    model: BenchmarkModel,
    optimizer: torch.optim.Optimizer,
    rows_per_pass: int,
    batch: Sequence[PromptRow],
) -> steps.StepResult:
    rows = with_responses(model, batch)
    count = sum(len(row.response) for row in rows)
    optimizer.zero_grad()
    losses = []
    for part in split_batches(rows, rows_per_pass):
        with model.precision():
            log_prob, _ = plain.log_probs(model.float32, plain.Sequences(*zip(*part, strict=True)))
            loss = -log_prob.sum() / count
        loss.backward()
        losses.append(loss.detach())
    norm = steps.update_weights(model.float32, optimizer, MAX_GRAD_NORM)
    return steps.StepResult(float(sum(losses)), norm)


def with_responses(model: BenchmarkModel, batch: Sequence[PromptRow]) -> list[SftRow]:
    return [SftRow(row.prompt, model.sequences[row.target]) for row in batch]
