"""Training of a language model: supervised, by preferences and by reinforcement."""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from rere.config.options import Options, Scoring
from rere.errors import InputError, unknown

REWARDS = ("rule", "ranking", "ranking_literal", "semantic", "collaborative")
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
    """Names and weights of rewards written `name` (a weight of 1) or `name=weight`, in order.

    A name is one of REWARDS or the user's own `module:function`. Raises InputError for any other,
    one that comes twice, and a weight that is no number.
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


class Training(Options):
    """What SFT, preference methods and RL share."""

    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW.")
    warmup: float = Field(0.03, ge=0, le=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of the passes; weights and optimiser stay float32."
    )
    rows_per_pass: int = Field(
        32,
        ge=1,
        description="Rows a forward pass; divides a step's. Memory and speed, not results.",
    )
    train_part: list[float] = Field(
        [0.0, 1.0],
        description="The training rows that are used: from one share of them to another, in their "
        "order, which is that of time.",
    )
    valid_rows: int = Field(
        1000, ge=1, description="Seeded sample of the validation split that selects checkpoints."
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Rank of low-rank adapters in all linear layers; None trains all."
    )
    lora_alpha: float = Field(
        32.0, gt=0, description="What adapters add is multiplied by this over their rank."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute layers again in the backward pass: less memory, more time."
    )
    checkpoint_seconds: float = Field(
        300.0, ge=0, description="Time between checkpoints, from which a killed run goes on."
    )
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="Where the step log goes, too: run folder/tensorboard, Weights & Biases."
    )

    @field_validator("train_part")
    @classmethod
    def part_is_a_part(cls, part: list[float]) -> list[float]:
        if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
            raise ValueError("takes two shares, 0 <= from < to <= 1")
        return part


class SftOptions(Training):
    """Supervised fine-tuning: the loss of the target's title given the prompt."""

    learning_rate: float = Field(3e-4, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(128, ge=1, description="Training rows a step.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training split at most.")
    validations: int = Field(20, ge=1, description="Validations over the whole run.")
    patience: int = Field(3, ge=1, description="Validations in a row without a lower loss.")

    @model_validator(mode="after")
    def passes_fill_the_step(self):
        if self.batch_size % self.rows_per_pass:
            raise ValueError("batch_size must be a multiple of rows_per_pass")
        return self


class PreferenceOptions(Training):
    """Preference optimisation: the target's title is to be likelier, against its negatives' titles,
    than it was to the model that training started from.
    """

    algorithm: Literal["dpo", "s_dpo", "sprec"] = Field(
        "s_dpo",
        description="dpo and s_dpo: random negatives; sprec: self-play, the model's own.",
    )
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    steps: int = Field(100, ge=1, description="Steps; of sprec SFT steps count, too.")
    batch_size: int = Field(128, ge=1, description="Training rows a step.")
    beta: float = Field(
        0.1, gt=0, description="Weight of the log-ratios to the reference model in the loss."
    )
    negatives: int | None = Field(
        None, ge=1, description="Negatives a row; None: 3 of s_dpo, 1 of the others."
    )
    iterations: int | None = Field(
        None,
        ge=1,
        description="Times that sprec turns from SFT to preferences, on the same rows; None: 5.",
    )
    num_beams: int = Field(
        16, ge=1, description="Beams of the searches for validation and for sprec's negatives."
    )
    scoring: Scoring = Field(
        "vocabulary",
        description="Probabilities of loss and searches: over the tokens that the catalogue "
        "allows, or over all.",
    )
    validations: int = Field(5, ge=1, description="Validations (NDCG@10) over the whole run.")

    @property
    def num_negatives(self) -> int:
        return self.negatives or (3 if self.algorithm == "s_dpo" else 1)

    @property
    def steps_per_turn(self) -> int:
        """Steps of SFT, and as many with preferences, of an iteration of sprec."""
        return self.steps // (2 * (self.iterations or 5))

    @model_validator(mode="after")
    def passes_fill_the_step(self):
        if self.batch_size % self.rows_per_pass:
            raise ValueError("batch_size must be a multiple of rows_per_pass")
        return self

    @model_validator(mode="after")
    def negatives_fit_the_method(self):
        if self.algorithm == "dpo" and self.num_negatives > 1:
            raise ValueError("algorithm: dpo has one negative; with more it is s_dpo")
        if self.algorithm == "sprec" and self.num_beams <= self.num_negatives:
            raise ValueError("num_beams must be above negatives: one beam may be the target")
        return self

    @model_validator(mode="after")
    def iterations_fill_the_run(self):
        if self.algorithm != "sprec":
            if self.iterations is not None:
                raise ValueError(
                    f"iterations is for algorithm: sprec; leave it out of {self.algorithm}"
                )
        elif self.steps_per_turn * 2 * (self.iterations or 5) != self.steps:
            raise ValueError("steps must be a multiple of twice the iterations (5 by default)")
        elif self.lora_rank is not None:
            raise ValueError(
                "algorithm: sprec needs lora_rank: null; with adapters the reference is the model "
                "without them, and sprec's moves"
            )
        return self


class RlOptions(Training):
    """Reinforcement learning: rollout, reward, advantage and objective; ReRe's by default."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    max_grad_norm: float = Field(0.3, gt=0, description="Gradients are clipped to this norm.")
    steps: int = Field(100, ge=1, description="Steps, each of them a rollout and its updates.")
    prompts: int = Field(32, ge=1, description="Prompts a step.")
    rows_per_pass: int = Field(
        8,
        ge=1,
        description="Prompts a pass; divides a step's. Memory and speed, not results: a step that "
        "is one pass, with a KL and nothing redrawn, skipped or checkpointed, computes its prompts "
        "once.",
    )
    group_size: int = Field(16, ge=2, description="Candidates a prompt (G).")
    rollout: RolloutStrategy = Field("beam", description="How candidates are found.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Of the policy that is rolled out, updated and held to the reference.",
    )
    ground_truth: bool = Field(
        False, description="Put the target in the place of a group's last candidate if it lacks it."
    )
    scoring: Scoring = Field(
        "vocabulary",
        description="Probabilities of rollout, update and validation: over the tokens that the "
        "catalogue allows, or over all.",
    )
    reward: list[Reward] = Field(
        ["rule", "ranking"],
        min_length=1,
        description="Rewards, added up: rule, ranking, ranking_literal, semantic, collaborative or "
        "your own module:function, each with a weight if written name=weight.",
    )
    embeddings: str | None = Field(
        None,
        description="Folder of the sentence-embedding model of the semantic reward; None: TF-IDF.",
    )
    advantage: Literal["grpo", "dr_grpo", "rloo", "global"] = Field(
        "grpo", description="What a candidate's reward is held against."
    )
    objective: Literal[
        "grpo", "dapo", "gspo", "dr_grpo", "released_token_mean", "released_sequence_mean"
    ] = Field("grpo", description="What an update minimises.")
    clip: list[float] | None = Field(
        None,
        description="How far ratios may fall below 1 and rise above it; None: the objective's own.",
    )
    updates: int = Field(1, ge=1, description="Updates a rollout, each with all of it.")
    dynamic_sampling: int = Field(
        0,
        ge=0,
        description="Batches of other prompts a step at most, whose groups replace those without "
        "any advantage.",
    )
    beta: float = Field(
        1e-3, ge=0, description="Weight of the KL to the reference model; without one at 0."
    )
    kl: Literal["k1", "k2", "k3"] = Field("k3", description="How the KL is estimated.")
    sync_interval: int | None = Field(
        None, ge=1, description="Steps after which the reference moves to the policy; None: never."
    )
    sync_mix: float = Field(
        0.6, gt=0, le=1, description="The policy's share in the reference when it moves."
    )
    skip_zero_advantage: Literal["exact", "approximate", "never"] = Field(
        "exact",
        description="Leave groups without any advantage out of the update: where it changes "
        "nothing (beta = 0), or always, their KL included.",
    )
    collapse_steps: int | None = Field(
        20,
        ge=1,
        description="Stop after so many steps without a hit and with one item a group; None: "
        "never.",
    )
    validations: int = Field(5, ge=1, description="Validations (NDCG@10) over the whole run.")

    @property
    def is_constrained(self) -> bool:
        """Whether the rollout keeps to the catalogue."""
        return not self.rollout.startswith("unconstrained")

    @field_validator("reward")
    @classmethod
    def rewards_are_known(cls, rewards: list[str]) -> list[str]:
        reward_weights(rewards)
        return rewards

    @model_validator(mode="after")
    def passes_fill_the_step(self):
        if self.prompts % self.rows_per_pass:
            raise ValueError("prompts must be a multiple of rows_per_pass")
        return self

    @model_validator(mode="after")
    def scores_are_those_of_the_rollout(self):
        drawn_by = "catalogue" if self.is_constrained else "vocabulary"
        if self.rollout != "beam" and self.scoring != drawn_by:
            raise ValueError(f"rollout: {self.rollout} needs scoring: {drawn_by}, what it draws by")
        return self

    @model_validator(mode="after")
    def rewards_have_what_they_need(self):
        if self.embeddings is not None and "semantic" not in reward_weights(self.reward):
            raise ValueError("embeddings are for the semantic reward; name it, or leave them out")
        return self

    @model_validator(mode="after")
    def updates_fit_the_objective(self):
        if self.objective.startswith("released_"):
            if self.clip is not None:
                raise ValueError(f"objective: {self.objective} does not clip; leave clip out")
            if self.updates > 1:
                raise ValueError(
                    f"objective: {self.objective} knows no older policy; write updates: 1"
                )
        clip = self.clip
        if clip is not None and not (len(clip) == 2 and 0 < clip[0] <= 1 and clip[1] > 0):
            raise ValueError("clip takes two numbers above 0, how far ratios fall (to 1) and rise")
        if self.dynamic_sampling and self.advantage == "global":
            raise ValueError(
                "dynamic_sampling replaces groups that a global advantage learns from, too"
            )
        return self

    @model_validator(mode="after")
    def the_reference_is_of_use(self):
        if self.beta > 0 and self.kl == "k1":
            raise ValueError("kl: k1 has a gradient of mean 0; write k2 or k3, or beta: 0.0")
        if self.sync_interval is not None and self.beta == 0:
            raise ValueError("sync_interval moves the reference, and beta = 0 has none")
        if self.sync_interval is not None and self.lora_rank is not None:
            raise ValueError(
                "sync_interval needs lora_rank: null; with adapters the reference is the model "
                "without them"
            )
        return self
