"""Training steps with learning rate 0, so that every step starts from the same weights."""

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PreTrainedModel

from rere.backbones import halve_linear_layers
from rere.benchmarks.models import BenchmarkModel, PromptRow
from rere.benchmarks.speed.scoring import TOLERANCE
from rere.benchmarks.table import compare
from rere.benchmarks.timing import Timings
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.provenance import RunRecord
from rere.training.checkpoints import Checkpoints
from rere.training.trainer import Trainer, training_arguments

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


class StepResult(NamedTuple):
    """The values by which two steps are compared."""

    loss: float
    gradient_norm: float
    leaves: Sequence[list[int]] = ()  # the candidates that were found


def make_trainer(
    kind: type[AnyTrainer],
    model: BenchmarkModel,
    options: SftOptions | PreferenceOptions | RlOptions,
    rows: int,
    folder: Path,
    **more: Any,
) -> AnyTrainer:
    """Build one of the project's trainers, by default without data, for steps of `rows` rows."""
    use_cpu = model.device.type == "cpu"
    defaults = {
        "args": training_arguments(options, 0, folder, 1, rows, use_cpu=use_cpu),
        "train_dataset": [],
        "eval_dataset": [],
        "optimizers": (make_optimizer(model.float32), None),
    }
    trainer = kind(
        options=options,
        checkpoints=Checkpoints(folder, RunRecord({}, time.perf_counter()), "", {}),
        label=f"speed: {model.name}",
        model=model.float32,
        **defaults | more,
    )
    trainer.autocast = model.precision
    return trainer


def take_trainer_step(
    trainer: Trainer, rows_per_pass: int, batch: Sequence[PromptRow]
) -> StepResult:
    """Take one step as the trainer's loop does."""
    trainer.options = trainer.options.model_copy(update={"rows_per_pass": rows_per_pass})
    inputs = {
        "prompts": [row.prompt for row in batch],
        "row_id": [row.row_id for row in batch],
        "history": [[] for _ in batch],
        "target": torch.tensor([row.target for row in batch], device=trainer.args.device),
    }
    trainer.optimizer.zero_grad()
    loss = trainer.training_step(trainer.model, inputs)
    norm = update_weights(trainer.model, trainer.optimizer, trainer.args.max_grad_norm)
    return StepResult(float(loss), norm)


def make_reference(model: BenchmarkModel) -> PreTrainedModel:
    """Copy a model with slightly larger weights, so that the KL to it is not 0."""
    reference = copy.deepcopy(model.float32).requires_grad_(False)
    for weight in reference.parameters():
        weight.mul_(1.01)
    if model.dtype == "bfloat16":
        halve_linear_layers(reference)
    return reference


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)


def update_weights(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> float:
    """Clip the gradient and step the optimiser; return the norm of the gradient."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return float(norm)


def compare_steps(
    what: str, against: str, setting: str, scoring: str, ours: Timings, theirs: Timings
) -> dict[str, Any]:
    """Return the table's row; under `catalogue` scores the loss is another than the plain one."""
    equal = are_same_steps(ours.results, theirs.results) if scoring == "vocabulary" else None
    return compare(what, against, setting, ours.median, theirs.median, equal)


def are_same_steps(ours: Sequence[StepResult], theirs: Sequence[StepResult]) -> bool:
    """Whether all steps have the same results, except for rounding.

    Absolute differences are held against the largest gradient norm, since the gradient of
    zero-advantage groups is almost 0.
    """
    scale = max(result.gradient_norm for result in theirs)

    def is_close(a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE * scale)

    return all(
        a.leaves == b.leaves
        and is_close(a.loss, b.loss)
        and is_close(a.gradient_norm, b.gradient_norm)
        for a, b in zip(ours, theirs, strict=True)
    )
