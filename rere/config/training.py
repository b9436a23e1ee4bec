"""Options of training: those that all stages share, supervised fine-tuning, preferences."""

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rere.config.options import MAX_BEAMS, MAX_EPOCHS, MAX_STEPS, Options, Precision, Scoring

DEFAULT_STEPS = 100
"""Steps of a run that names neither steps nor epochs."""

LEARNING_RATE = "Peak learning rate: linear warm-up, then cosine decay to 0."
VALIDATIONS = (
    "Validations ({}) after training has begun, evenly spread. One more, of the initial model, "
    "comes before step 1. The weights of the best are kept, which may be the initial model's."
)
NDCG_VALIDATIONS = VALIDATIONS.format("NDCG@10")


class Training(Options):
    """Options that SFT, preference optimisation and RL share."""

    rows_option: ClassVar[str] = "batch_size"
    """The option with the rows per step."""

    learning_rate: float = Field(gt=0, description=LEARNING_RATE)
    warmup: float = Field(
        0.03, ge=0, le=1, description="Fraction of the steps in which the learning rate rises."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients with a larger L2 norm are scaled down to this one."
    )
    optimizer: Literal["adamw", "adafactor"] = Field(
        "adamw",
        description="adamw keeps two float32 numbers per weight, adafactor (Shazeer and Stern "
        "2018, with the given learning rate) two per row and column of a matrix.",
    )
    dtype: Precision = Field(
        "auto",
        description="Precision of forward and backward passes. auto: bfloat16 on a GPU, else "
        "float32. Weights, optimiser state, logits and log-probabilities are always float32.",
    )
    deterministic: bool = Field(
        False,
        description="Repeatable training on a GPU, and slower: only algorithms that add up in a "
        "fixed order. Training on the CPU is always repeatable.",
    )
    rows_per_pass: int = Field(
        32,
        ge=1,
        description="Rows per forward pass; must divide `batch_size`. Changes memory and speed; "
        "results differ by rounding only.",
    )
    train_part: list[float] = Field(
        [0.0, 1.0],
        description="Part of the training rows to train on: two fractions, start and end, of the "
        "rows in time order. Lets SFT and RL train on different rows.",
    )
    valid_rows: int = Field(
        1000, ge=1, description="Rows of each validation: a fixed sample of the validation split."
    )
    lora_rank: int | None = Field(
        None,
        ge=1,
        description="Rank of LoRA adapters on all linear layers. None: all weights are trained.",
    )
    lora_alpha: float = Field(
        32.0, gt=0, description="The output of LoRA adapters is scaled by lora_alpha / lora_rank."
    )
    save: Literal["merged", "adapters"] = Field(
        "merged",
        description="What model/ holds of a model with LoRA adapters. merged: all weights. "
        "adapters: only the adapters. They need their base: at the same place relative to them, at "
        "its old place, or on the hub. Does not change results.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass. Changes memory and speed; results "
        "differ by rounding only.",
    )
    sharded: bool = Field(
        False,
        description="Split weights, gradients and optimiser state over the processes that "
        "`torchrun` started (FSDP2), for models that one device does not hold. Takes more time; "
        "results differ by rounding only.",
    )
    checkpoint_seconds: float = Field(
        300.0,
        ge=0,
        description="Seconds between checkpoints, from which a killed run resumes; 0: one per "
        "step. Does not change results.",
    )
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        [],
        description="Trackers that also get the step log: tensorboard (in the run folder), wandb.",
    )

    @field_validator("train_part")
    @classmethod
    def check_train_part(cls, part: list[float]) -> list[float]:
        if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
            raise ValueError("takes two fractions, 0 <= start < end <= 1")
        return part

    @model_validator(mode="after")
    def check_save(self) -> Self:
        if self.save == "adapters" and self.lora_rank is None:
            raise ValueError("save: adapters needs lora_rank; without adapters leave it out")
        return self

    @model_validator(mode="after")
    def check_sharded(self) -> Self:
        if self.sharded and self.optimizer == "adafactor":
            raise ValueError("sharded training takes optimizer: adamw")
        return self

    @model_validator(mode="after")
    def check_rows_per_pass(self) -> Self:
        if getattr(self, self.rows_option) % self.rows_per_pass:
            raise ValueError(f"{self.rows_option} must be a multiple of rows_per_pass")
        return self


class Stepped(Training):
    """Training whose length is a number of steps, or of passes over the training rows."""

    steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Optimiser steps. None: 100, or by `epochs`.",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=MAX_EPOCHS,
        description="Passes over the training rows, instead of `steps`.",
    )

    def num_steps(self, rows: int) -> int:
        """The steps of a run on so many training rows."""
        if self.epochs is None:
            return self.steps or DEFAULT_STEPS
        rows_per_step: int = getattr(self, self.rows_option)
        return math.ceil(self.epochs * rows / rows_per_step)

    @model_validator(mode="after")
    def check_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both; the other is null")
        return self


class SftOptions(Training):
    """Fine-tune a language model: minimise the cross-entropy of targets' titles."""

    learning_rate: float = Field(3e-4, gt=0, description=LEARNING_RATE)
    batch_size: int = Field(128, ge=1, description="Training rows per step.")
    epochs: float = Field(
        1.0,
        gt=0,
        le=MAX_EPOCHS,
        description="Passes over the training rows, fewer if `patience` ends the run.",
    )
    scoring: Scoring = Field(
        "vocabulary",
        description="Tokens over which training's and validation's losses normalise probabilities: "
        "the whole vocabulary, or those that continue a title of the catalogue (arXiv 2504.04178).",
    )
    validations: int = Field(20, ge=1, description=VALIDATIONS.format("loss"))
    patience: int = Field(
        3, ge=1, description="Stop after this many validations in a row without a lower loss."
    )


class PreferenceOptions(Stepped):
    """Train a language model to prefer targets' titles to others: DPO, S-DPO or SPRec."""

    algorithm: Literal["dpo", "s_dpo", "sprec"] = Field(
        "s_dpo",
        description="dpo (arXiv 2305.18290): one random negative per row. s_dpo (arXiv "
        "2406.09215): several. sprec (arXiv 2412.09243): self-play; SFT and DPO take turns, and "
        "the negatives are the model's own best titles.",
    )
    learning_rate: float = Field(1e-5, gt=0, description=LEARNING_RATE)
    steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Optimiser steps, with sprec including those of SFT. None: 100, or by "
        "`epochs`.",
    )
    batch_size: int = Field(128, ge=1, description="Training rows per step.")
    beta: float = Field(
        0.1, gt=0, description="Factor of the log-ratios to the reference model in the loss."
    )
    negatives: int | None = Field(
        None,
        ge=1,
        description="Negatives per row; a row keeps its random ones. None: 3 for s_dpo, else 1.",
    )
    iterations: int | None = Field(
        None,
        ge=1,
        description="sprec only: iterations, each some steps of SFT, then as many of DPO on the "
        "same rows. None: 5.",
    )
    num_beams: int = Field(
        16,
        ge=1,
        le=MAX_BEAMS,
        description="Beams of the validation's search, and of the one for negatives.",
    )
    scoring: Scoring = Field(
        "vocabulary",
        description="Tokens over which loss and searches normalise probabilities: the whole "
        "vocabulary, or those that continue a title of the catalogue.",
    )
    validations: int = Field(5, ge=1, description=NDCG_VALIDATIONS)

    @property
    def num_negatives(self) -> int:
        return self.negatives or (3 if self.algorithm == "s_dpo" else 1)

    @property
    def num_iterations(self) -> int:
        return self.iterations or 5

    @property
    def steps_per_phase(self) -> int:
        """Steps of each phase of an iteration of SPRec: SFT, then DPO."""
        return (self.steps or DEFAULT_STEPS) // (2 * self.num_iterations)

    @model_validator(mode="after")
    def check_negatives(self) -> Self:
        if self.algorithm == "dpo" and self.num_negatives > 1:
            raise ValueError("algorithm: dpo has one negative; with more, write s_dpo")
        if self.algorithm == "sprec" and self.num_beams <= self.num_negatives:
            raise ValueError("num_beams must be above negatives: one beam may be the target")
        return self

    @model_validator(mode="after")
    def check_iterations(self) -> Self:
        if self.algorithm != "sprec":
            if self.iterations is not None:
                raise ValueError(
                    f"iterations is for algorithm: sprec; leave it out of {self.algorithm}"
                )
        elif self.epochs is not None:
            raise ValueError("algorithm: sprec takes steps; leave epochs out")
        elif (self.steps or DEFAULT_STEPS) % (2 * self.num_iterations):
            raise ValueError("steps must be a multiple of twice the iterations (5 by default)")
        elif self.lora_rank is not None:
            raise ValueError(
                "algorithm: sprec needs lora_rank: null; with adapters the reference is the model "
                "without them and cannot change"
            )
        return self
