"""Training of a language model: supervised fine-tuning, preference optimisation, RL."""

import math
import re
from typing import Annotated, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from rere.config.options import Options, Scoring
from rere.errors import InputError, unknown

REWARDS = ("rule", "ranking", "ranking_literal", "semantic", "collaborative")
"""The rewards of `rere.training.rewards`."""

OWN_REWARD = r"\w+(\.\w+)*:\w+"
"""The user's own reward, `module:function`."""

RolloutStrategy = Literal[
    "beam",  # the best items by beam search
    "iid",  # independent samples from the constrained policy
    "oversample",  # half as many samples again, of which distinct ones are kept first
    "oversample_with_target",  # the same, but a sampled target is kept first (released code)
    "stochastic_beam",  # samples without replacement
    "unconstrained",  # independent samples over the whole vocabulary, items or not
    "unconstrained_beam",  # the best sequences by beam search over the whole vocabulary
]
"""How a prompt gets its group of candidates (`rere.engine.search.rollout`)."""

Reward = Annotated[
    str,
    WithJsonSchema({"type": "string", "pattern": rf"^({'|'.join(REWARDS)}|{OWN_REWARD})(=|$)"}),
]


def reward_weights(rewards: list[str]) -> dict[str, float]:
    """The weights of rewards written `name` (weight 1) or `name=weight`, by name, in order.

    Raises InputError for a name that is neither in REWARDS nor `module:function`, for a repeated
    name, and for a weight that is not a finite number.
    """
    weights: dict[str, float] = {}
    for text in rewards:
        name, equals, weight = text.partition("=")
        if name not in REWARDS and not re.fullmatch(OWN_REWARD, name):
            raise InputError(f"{unknown(name, REWARDS)} (your own is module:function)")
        if name in weights:
            raise InputError(f"{name} comes twice")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise InputError(f"{text}: {weight!r} is not a weight; write {name}=0.5") from None
        if not math.isfinite(weights[name]):
            raise InputError(f"{text}: a weight must be finite")
    return weights


LEARNING_RATE = "Peak learning rate of AdamW: linear warm-up, then cosine decay to 0."
NDCG_VALIDATIONS = "Number of validations (NDCG@10) over the run; the best one's weights are kept."


class Training(Options):
    """Options that SFT, preference optimisation and RL share."""

    learning_rate: float = Field(gt=0, description=LEARNING_RATE)
    warmup: float = Field(
        0.03, ge=0, le=1, description="Fraction of the steps in which the learning rate rises."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients with a larger L2 norm are scaled down to this one."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision of forward and backward passes. Weights and optimiser state are "
        "float32.",
    )
    rows_per_pass: int = Field(
        32,
        ge=1,
        description="Rows per forward pass; must divide `batch_size`. Changes memory and speed, "
        "not results.",
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
        description="Rank of LoRA adapters on all linear layers, merged into the saved model. "
        "None: all weights are trained.",
    )
    lora_alpha: float = Field(
        32.0, gt=0, description="The output of LoRA adapters is scaled by lora_alpha / lora_rank."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass, which saves memory and takes "
        "time.",
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


class SftOptions(Training):
    """Fine-tune a language model: minimise the cross-entropy of targets' titles."""

    learning_rate: float = Field(3e-4, gt=0, description=LEARNING_RATE)
    batch_size: int = Field(128, ge=1, description="Training rows per step.")
    epochs: float = Field(
        1.0, gt=0, description="Passes over the training rows, fewer if `patience` ends the run."
    )
    validations: int = Field(
        20,
        ge=1,
        description="Number of validations (loss) over the run; the best one's weights are kept.",
    )
    patience: int = Field(
        3, ge=1, description="Stop after this many validations in a row without a lower loss."
    )

    @model_validator(mode="after")
    def check_rows_per_pass(self) -> Self:
        if self.batch_size % self.rows_per_pass:
            raise ValueError("batch_size must be a multiple of rows_per_pass")
        return self


class PreferenceOptions(Training):
    """Train a language model to prefer targets' titles to others: DPO, S-DPO or SPRec."""

    algorithm: Literal["dpo", "s_dpo", "sprec"] = Field(
        "s_dpo",
        description="dpo (arXiv 2305.18290): one random negative per row. s_dpo (arXiv "
        "2406.09215): several. sprec (arXiv 2412.09243): self-play; SFT and DPO take turns, and "
        "the negatives are the model's own best titles.",
    )
    learning_rate: float = Field(1e-5, gt=0, description=LEARNING_RATE)
    steps: int = Field(100, ge=1, description="Optimiser steps, with sprec including those of SFT.")
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
        16, ge=1, description="Beams of the validation's search, and of the one for negatives."
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
    def steps_per_phase(self) -> int:
        """Steps of each phase of an iteration of SPRec: SFT, then DPO."""
        return self.steps // (2 * (self.iterations or 5))

    @model_validator(mode="after")
    def check_rows_per_pass(self) -> Self:
        if self.batch_size % self.rows_per_pass:
            raise ValueError("batch_size must be a multiple of rows_per_pass")
        return self

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
        elif self.steps_per_phase * 2 * (self.iterations or 5) != self.steps:
            raise ValueError("steps must be a multiple of twice the iterations (5 by default)")
        elif self.lora_rank is not None:
            raise ValueError(
                "algorithm: sprec needs lora_rank: null; with adapters the reference is the model "
                "without them and cannot change"
            )
        return self


class RlOptions(Training):
    """Train a language model by reinforcement learning; the defaults are ReRe's."""

    learning_rate: float = Field(1e-5, gt=0, description=LEARNING_RATE)
    max_grad_norm: float = Field(
        0.3, gt=0, description="Gradients with a larger L2 norm are scaled down to this one."
    )
    steps: int = Field(100, ge=1, description="Steps, each a rollout and its updates.")
    prompts: int = Field(32, ge=1, description="Prompts per step, each of one training row.")
    rows_per_pass: int = Field(
        8,
        ge=1,
        description="Prompts per forward pass; must divide `prompts`. Changes memory and speed, "
        "not results.",
    )
    group_size: int = Field(
        16, ge=2, description="Candidates per prompt (G), and beams of the validation's search."
    )
    rollout: RolloutStrategy = Field(
        "beam",
        description="How candidates are found. beam: the best titles by beam search. iid: "
        "independent samples of titles. oversample: 1.5 times as many samples, of which distinct "
        "ones are kept first; oversample_with_target: a sampled target is also kept. "
        "stochastic_beam: samples without replacement (Gumbel top-k). unconstrained and "
        "unconstrained_beam: samples, or beam search, without a catalogue.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Temperature of policy and reference in rollout and update; validation and "
        "test use 1.",
    )
    ground_truth: bool = Field(
        False, description="Replace the last candidate of a group without the target by the target."
    )
    scoring: Scoring = Field(
        "vocabulary",
        description="Tokens over which rollout, update and validation normalise probabilities: "
        "the whole vocabulary, or those that continue a title of the catalogue. iid, oversample "
        "and stochastic_beam need catalogue, unconstrained rollouts vocabulary.",
    )
    reward: list[Reward] = Field(
        ["rule", "ranking"],
        min_length=1,
        description="Rewards, added up. rule: 1 for the target. ranking: a penalty for wrong "
        "candidates, larger at better ranks, in groups with the target; ranking_literal: in all "
        "groups. semantic: similarity to the target's title. collaborative: logit of a sequential "
        "baseline. module:function: your own. Written name=0.5, a reward has a weight.",
    )
    embeddings: str | None = Field(
        None,
        description="Folder of the sentence-embedding model of the semantic reward. None: TF-IDF "
        "vectors of the titles, reduced by an SVD.",
    )
    advantage: Literal["grpo", "dr_grpo", "rloo", "global"] = Field(
        "grpo",
        description="Advantage estimator. grpo: reward minus the group's mean, divided by its "
        "standard deviation; dr_grpo: not divided. rloo: reward minus the mean of the group's "
        "other candidates. global: grpo's over all candidates of the step.",
    )
    objective: Literal[
        "grpo", "dapo", "gspo", "dr_grpo", "released_token_mean", "released_sequence_mean"
    ] = Field(
        "grpo",
        description="Loss of an update. grpo: mean over candidates of the mean over tokens. dapo: "
        "mean over tokens. gspo: mean over candidates, each with one probability ratio. dr_grpo: "
        "sum over tokens, divided by a constant. released_token_mean and released_sequence_mean: "
        "ReRe's released DAPO and GSPO.",
    )
    clip: list[float] | None = Field(
        None,
        description="How far probability ratios may fall below 1 and rise above it before they are "
        "clipped. None: [0.2, 0.2], of dapo [0.2, 0.28], of gspo [0.0003, 0.0004], never for "
        "released objectives.",
    )
    updates: int = Field(
        1,
        ge=1,
        description="Updates per rollout, each on all of its candidates. With 1 no ratio is "
        "clipped.",
    )
    dynamic_sampling: int = Field(
        0,
        ge=0,
        description="Extra batches of prompts per step, at most, whose groups replace "
        "zero-advantage groups (DAPO's dynamic sampling). 0: none.",
    )
    beta: float = Field(
        1e-3, ge=0, description="Weight of the KL penalty to the reference model; 0: no penalty."
    )
    kl: Literal["k2", "k3"] = Field("k3", description="Estimator of the KL (Schulman 2020).")
    sync_interval: int | None = Field(
        None,
        ge=1,
        description="Steps between updates of the reference model. None: it stays the initial "
        "model, as it must with LoRA.",
    )
    sync_mix: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Weight of the policy in an updated reference; the old one has the rest.",
    )
    skip_zero_advantage: Literal["exact", "approximate", "never"] = Field(
        "exact",
        description="Leave zero-advantage groups out of the update. exact: only with `beta` 0, "
        "where they change nothing. approximate: always, losing their KL. never: keep them.",
    )
    collapse_steps: int | None = Field(
        20,
        ge=1,
        description="Fail after this many steps in a row without a hit and with one distinct item "
        "per group. None: never.",
    )
    validations: int = Field(5, ge=1, description=NDCG_VALIDATIONS)

    @property
    def is_constrained(self) -> bool:
        """Whether all candidates are items."""
        return not self.rollout.startswith("unconstrained")

    @field_validator("reward")
    @classmethod
    def check_reward_names(cls, rewards: list[str]) -> list[str]:
        reward_weights(rewards)
        return rewards

    @model_validator(mode="after")
    def check_rows_per_pass(self) -> Self:
        if self.prompts % self.rows_per_pass:
            raise ValueError("prompts must be a multiple of rows_per_pass")
        return self

    @model_validator(mode="after")
    def check_scoring(self) -> Self:
        needed = "catalogue" if self.is_constrained else "vocabulary"
        if self.rollout != "beam" and self.scoring != needed:
            raise ValueError(f"rollout: {self.rollout} needs scoring: {needed}")
        return self

    @model_validator(mode="after")
    def check_embeddings(self) -> Self:
        if self.embeddings is not None and "semantic" not in reward_weights(self.reward):
            raise ValueError("embeddings are for the semantic reward; add it or leave them out")
        return self

    @model_validator(mode="after")
    def check_objective(self) -> Self:
        if self.objective.startswith("released_"):
            if self.clip is not None:
                raise ValueError(f"objective: {self.objective} does not clip; leave clip out")
            if self.updates > 1:
                raise ValueError(
                    f"objective: {self.objective} takes one update per rollout; write updates: 1"
                )
        clip = self.clip
        if clip is not None and not (len(clip) == 2 and 0 < clip[0] <= 1 and clip[1] > 0):
            raise ValueError("clip takes two numbers above 0, the first at most 1")
        if self.dynamic_sampling and self.advantage == "global":
            raise ValueError(
                "dynamic_sampling would replace groups that a global advantage needs; write 0"
            )
        return self

    @model_validator(mode="after")
    def check_reference(self) -> Self:
        if self.sync_interval is not None and self.beta == 0:
            raise ValueError("sync_interval updates the reference, which needs beta above 0")
        if self.sync_interval is not None and self.lora_rank is not None:
            raise ValueError(
                "sync_interval needs lora_rank: null; with adapters the reference is the model "
                "without them"
            )
        return self
