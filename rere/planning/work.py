"""What a job computes: a few kinds of work, each on some rows.

What `patience`, dynamic sampling and skipped groups may save is not known before a run. It takes at
most what is counted here.
"""

import math
from typing import NamedTuple

from rere.config.evaluation import Recommend
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.planning.operations import Operations, Shape
from rere.planning.passes import TrainingOptions
from rere.planning.sample import Sample, Search, Strategy, Unit

EVALUATED_ROWS = 32
"""Rows per search of an evaluation without `batch_size`."""


class Work(NamedTuple):
    """Rows of a job for which the same is computed."""

    name: str
    rows: float
    rows_at_once: int  # in a pass, or in a search
    unit: Unit  # what each takes
    layers: int = 1  # times as many products as a forward pass; with a backward pass 2 to 4
    head_gradient: int = 0  # products in the backward pass for each that computes logits

    @property
    def tokens(self) -> float:
        """Tokens that are fed, those of a backward pass not again."""
        return self.rows * self.unit.counts.tokens

    @property
    def passes(self) -> float:
        """Passes through the layers, forward and backward."""
        return self.layers * self.rows / self.rows_at_once * self.unit.counts.passes

    def operations(self, shape: Shape, is_shared: bool = True) -> Operations:
        """Operations, with prompts that candidates share, or with one for each candidate."""
        unit = shape.forward(self.unit.counts if is_shared else self.unit.apart)
        return Operations(
            self.rows * self.layers * unit.layers,
            self.rows * unit.head,
            self.rows * self.head_gradient * unit.head,
        )


class Writing(Recommend):
    """BIGRec's evaluation: a title is written freely for each row, without beams."""


def job_work(options: TrainingOptions | Recommend, sample: Sample) -> list[Work]:
    """The work of a job with these options."""
    match options:
        case SftOptions():
            return sft_work(options, sample)
        case PreferenceOptions():
            return preference_work(options, sample)
        case RlOptions():
            return rl_work(options, sample)
    rows, size = sample.num_rows("test"), options.batch_size or EVALUATED_ROWS
    strategy: Strategy = "greedy" if isinstance(options, Writing) else "beam"
    search = sample.search(
        Search("test", size, strategy, options.num_beams, options.scoring, options.dtype)
    )
    return [Work("search", min(rows, options.rows or rows), size, search)]


def sft_work(options: SftOptions, sample: Sample) -> list[Work]:
    steps = math.ceil(options.epochs * trained_rows(options, sample) / options.batch_size)
    valid = validated_rows(options, sample)
    forward = sample.score(options, 1, options.scoring, is_update=False)
    return [
        update(options, sample, steps * options.batch_size, 1),
        Work("validation", valid, options.rows_per_pass, forward),
    ]


def preference_work(options: PreferenceOptions, sample: Sample) -> list[Work]:
    rows = options.num_steps(trained_rows(options, sample)) * options.batch_size
    work = []
    if options.algorithm == "sprec":  # half of the steps are SFT's
        rows //= 2
        search = sample.search(
            Search(
                "train",
                options.rows_per_pass,
                "beam",
                options.num_beams,
                options.scoring,
                options.dtype,
            )
        )
        work = [
            update(options, sample, rows, 1)._replace(name="update of SFT"),
            Work("search for negatives", rows, options.rows_per_pass, search),
        ]
    num_candidates = 1 + options.num_negatives
    return [
        *work,
        update(options, sample, rows, num_candidates),
        reference(options, sample, rows, num_candidates),
        validation(options, sample, options.num_beams),
    ]


def rl_work(options: RlOptions, sample: Sample) -> list[Work]:
    rows = options.num_steps(trained_rows(options, sample)) * options.prompts
    size = options.prompts if options.is_constrained else options.rows_per_pass
    rollout = sample.search(
        Search("train", size, options.rollout, options.group_size, options.scoring, options.dtype)
    )
    work = [
        Work("rollout", rows * (1 + options.dynamic_sampling), size, rollout),
        update(options, sample, rows * options.updates, options.group_size),
    ]
    if options.beta > 0:
        work.append(reference(options, sample, rows, options.group_size))
    return [*work, validation(options, sample, options.group_size)]


def trained_rows(options: TrainingOptions, sample: Sample) -> int:
    """The rows of `train_part`."""
    first, end = (round(share * sample.num_rows("train")) for share in options.train_part)
    return end - first


def validated_rows(options: TrainingOptions, sample: Sample) -> int:
    """The rows of all validations, with that of the initial model."""
    return (1 + options.validations) * min(options.valid_rows, sample.num_rows("valid"))


def update(options: TrainingOptions, sample: Sample, rows: float, num_candidates: int) -> Work:
    """Forward and backward passes. The latter computes two products for each of the former.

    One of the two is of a weight's gradient, which layers below LoRA adapters and the head above
    them lack. Checkpointed layers are computed once more.
    """
    unit = sample.score(options, num_candidates, options.scoring, is_update=True)
    products = 2 if options.lora_rank is None else 1
    layers = 1 + products + options.gradient_checkpointing
    return Work("update", rows, options.rows_per_pass, unit, layers, products)


def reference(options: TrainingOptions, sample: Sample, rows: float, num_candidates: int) -> Work:
    unit = sample.score(options, num_candidates, options.scoring, is_update=False)
    return Work("reference", rows, options.rows_per_pass, unit)


def validation(options: PreferenceOptions | RlOptions, sample: Sample, num_beams: int) -> Work:
    size, scoring = options.rows_per_pass, options.scoring
    search = sample.search(Search("valid", size, "beam", num_beams, scoring, options.dtype))
    return Work("validation", validated_rows(options, sample), size, search)
