"""Options of reinforcement learning."""

import math
import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from rere.config.options import MAX_BEAMS, MAX_STEPS, Scoring
from rere.config.training import LEARNING_RATE, NDCG_VALIDATIONS, Stepped
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


class RlOptions(Stepped):
    """Train a language model by reinforcement learning: ReRe and its variants."""

    rows_option: ClassVar[str] = "prompts"

    learning_rate: float = Field(1e-5, gt=0, description=LEARNING_RATE)
    max_grad_norm: float = Field(
        0.3, gt=0, description="Gradients with a larger L2 norm are scaled down to this one."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Steps, each a rollout and its updates. None: 100, or by `epochs`.",
    )
    prompts: int = Field(32, ge=1, description="Prompts per step, each of one training row.")
    rows_per_pass: int = Field(
        8,
        ge=1,
        description="Prompts per pass of the update; must divide `prompts`. Changes memory and "
        "speed; results differ by rounding only. Rollouts take as many as memory holds.",
    )
    group_size: int = Field(
        16,
        ge=2,
        le=MAX_BEAMS,
        description="Candidates per prompt (G), and beams of the validation's search.",
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
        description="Fail after this many steps in a row in which all groups have zero advantage, "
        "so that nothing is learnt. None: never. Does not change results.",
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
