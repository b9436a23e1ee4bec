"""Every option of every stage, declared once: typed, documented, checked.

The option models here are three things at a time: the flags of the command line (`rere.cli`
adds only the paths a stage reads and writes), the keys of a study's config, and the JSON schema
that editors use. Nothing heavy is imported: Snakemake reads this module to plan.
"""

import itertools
import math
import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rere.errors import InputError, hint, unknown

CUTOFFS = (1, 3, 5, 10, 20)
"""The K of every HR@K and NDCG@K."""

NO_BACKBONE = "none"
"""Stands in a run's path where a method has no language model."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME)]
Day = Annotated[date, Field(strict=False)]  # YAML's own dates, and text
Source = Literal[
    "ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m", "amazon-2018", "amazon-2023", "yelp"
]


class Options(BaseModel):
    # Strict, so that YAML's `3e-4` (a string to YAML 1.1) is an error and not a guess.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def keys_are_known(cls, values: Any) -> Any:
        """Tell a misspelt key which one was meant, as `extra="forbid"` does not."""
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                context = {"key": str(key), "hint": hint(str(key), cls.model_fields)}
                raise PydanticCustomError("unknown_key", "unknown key; {hint}", context)
        return values


# ---------------------------------------------------------------------------------------- data


class Fetch(Options):
    """Download a public data set, or say where it is to be had; checked by sha256."""

    source: Source = Field(description="Which data set.")
    category: Name | None = Field(None, description="Category of Amazon's, as its files spell it.")


class Rules(Options):
    """How events become samples and splits, whatever they are read from."""

    tolerance: float = Field(
        1e-3, ge=0, lt=1, description="Share of a file's lines that may be unreadable."
    )
    start: Day | None = Field(None, description="First day of the events (UTC).")
    end: Day | None = Field(None, description="Day after the last one of the events (UTC).")
    least_items: int | None = Field(
        None, ge=1, description="While fewer items are left, start moves back by a year."
    )
    max_title_words: int | None = Field(
        None, ge=1, description="Items whose title has more words go."
    )
    repeats: Literal["keep", "merge"] = Field(
        "keep", description="All events of a user with the same item, or the first alone."
    )
    core: int = Field(5, ge=1, description="Keep users and items with at least this many events.")
    max_history: int = Field(10, ge=1, description="Items of a history at most, the latest ones.")
    split: Literal["chronological", "leave_one_out"] = Field(
        "chronological",
        description="All samples 8:1:1 in time, or of each user the last two for valid and test.",
    )

    @model_validator(mode="after")
    def the_window_is_one(self):
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"end must be after start, {self.start}")
        return self


class MovieLens(Rules):
    """Turn MovieLens' raw files into items and train, valid and test splits."""

    source: Literal["ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m"] = "ml-100k"


class Amazon2018(Rules):
    """Turn reviews and metadata of Amazon's 2018 release into items and splits."""

    source: Literal["amazon-2018"] = "amazon-2018"
    category: Name = Field(description="Category as the files spell it, Toys_and_Games.")
    start: Day | None = Field(date(2016, 10, 1), description="First day of the events (UTC).")
    end: Day | None = Field(
        date(2018, 11, 1), description="Day after the last one of the events (UTC)."
    )
    least_items: int | None = Field(
        3000, ge=1, description="While fewer items are left, start moves back by a year."
    )
    max_title_words: int | None = Field(20, ge=1, description="Items with longer titles go.")


class Amazon2023(Rules):
    """Turn reviews and metadata of Amazon's 2023 release into items and splits."""

    source: Literal["amazon-2023"] = "amazon-2023"
    category: Name = Field(description="Category as the files spell it, Toys_and_Games.")
    max_title_words: int | None = Field(20, ge=1, description="Items with longer titles go.")


class Yelp(Rules):
    """Turn reviews and businesses of the Yelp Open Dataset into items and splits."""

    source: Literal["yelp"] = "yelp"
    start: Day | None = Field(date(2021, 1, 1), description="First day of the events (UTC).")
    end: Day | None = Field(
        date(2022, 1, 1), description="Day after the last one of the events (UTC)."
    )
    max_title_words: int | None = Field(20, ge=1, description="Businesses with longer names go.")
    title: Literal["address", "name"] = Field(
        "address", description="`Name (Address, City, ST)`, or the name alone."
    )


class OwnTables(Rules):
    """Turn tables of your own, events and items, into items and splits."""

    source: Literal["table"] = "table"
    events: str = Field(
        "events.csv", min_length=1, description="Events: csv, tsv, jsonl or parquet in the folder."
    )
    items: str = Field("items.csv", min_length=1, description="Items and titles, likewise.")
    user: str = Field("user", min_length=1, description="Column of the user, in events.")
    item: str = Field("item", min_length=1, description="Column of the item, in both files.")
    timestamp: str = Field("timestamp", min_length=1, description="Column of the time, in events.")
    title: str = Field("title", min_length=1, description="Column of the title, in items.")
    time_unit: Literal["s", "ms", "us", "text"] = Field(
        "s", description="What times count since 1970, or text as in 2021-03-04 05:06:07 (UTC)."
    )


class Splits(Options):
    """Check splits that others made and take them as they are."""

    source: Literal["splits"] = "splits"


SOURCES = (MovieLens, Amazon2018, Amazon2023, Yelp, OwnTables, Splits)
"""The options of each kind of source, as `rere preprocess` takes them."""


class Fetched(Options):
    """A data set that can be fetched."""

    folder: str | None = Field(
        None, min_length=1, description="Folder with the raw files; without one they are fetched."
    )


class Given(Options):
    """A data set that its user has."""

    folder: str = Field(min_length=1, description="Folder with the files.")


class MovieLensDataset(Fetched, MovieLens):
    """MovieLens in a study."""


class Amazon2018Dataset(Fetched, Amazon2018):
    """A category of Amazon's 2018 release in a study."""


class Amazon2023Dataset(Fetched, Amazon2023):
    """A category of Amazon's 2023 release in a study."""


class YelpDataset(Fetched, Yelp):
    """The Yelp Open Dataset in a study."""


class OwnTablesDataset(Given, OwnTables):
    """Tables of your own in a study."""


class SplitsDataset(Given, Splits):
    """Ready-made splits in a study."""


Dataset = Annotated[
    MovieLensDataset
    | Amazon2018Dataset
    | Amazon2023Dataset
    | YelpDataset
    | OwnTablesDataset
    | SplitsDataset,
    Field(discriminator="source"),
]

# ----------------------------------------------------------------------------------- backbones


class Tiny(Options):
    """A small Qwen2 from scratch, its tokenizer trained on one data set's training text."""

    source: Literal["tiny"] = "tiny"
    vocab_size: int = Field(4096, ge=300, description="Tokens of the byte-level BPE, at most.")
    hidden_size: int = Field(128, ge=8, description="Width of the residual stream.")
    num_layers: int = Field(2, ge=1, description="Transformer layers.")
    num_heads: int = Field(4, ge=1, description="Attention heads; divides the hidden size.")
    max_positions: int = Field(1024, ge=16, description="Longest sequence in tokens.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights.")

    @model_validator(mode="after")
    def heads_divide_the_width(self):
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError("hidden_size must be a multiple of twice num_heads")
        return self


class Pretrained(Options):
    """A published model: a hub id or a local folder, stored with its tokenizer."""

    source: Literal["pretrained"] = "pretrained"
    model: str = Field(min_length=1, description="Hub id (Qwen/Qwen2-0.5B) or local folder.")
    revision: str | None = Field(None, description="Commit, branch or tag of a hub id.")
    gguf_file: str | None = Field(
        None, description="Quantised weights and tokenizer in it, stored dequantised."
    )


class TinyBackbone(Tiny):
    """`tiny` as the study names it: with the data set whose training text it reads."""

    corpus: str = Field(description="Data set whose training text trains the tokenizer.")


Backbone = Annotated[TinyBackbone | Pretrained, Field(discriminator="source")]

# ------------------------------------------------------------------------------------- methods


class Popularity(Options):
    """Rank by how often an item is a target of the training split."""

    model: Literal["popularity"] = "popularity"


class RepeatLast(Options):
    """Rank the user's own history, latest first, then by popularity."""

    model: Literal["repeat_last"] = "repeat_last"


class ItemKnn(Options):
    """Rank by cosine similarity to the items of the history (Sarwar et al., WWW 2001)."""

    model: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(100, ge=1, description="Most similar items that an item votes for.")


class Sequential(Options):
    """What the sequential networks share."""

    hidden_size: int = Field(64, ge=1, description="Width of item embeddings and layers.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout probability.")
    loss: Literal["softmax", "bce"] = Field(
        "softmax",
        description="Over the whole catalogue, or binary with one sampled negative a target.",
    )
    learning_rate: float = Field(2e-3, gt=0, description="Learning rate of Adam.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of Adam.")
    batch_size: int = Field(256, ge=1, description="Training rows a step.")
    epochs: int = Field(40, ge=1, description="Epochs at most; one predicts as many items as rows.")
    patience: int = Field(5, ge=1, description="Epochs without a better validation NDCG@10.")


class Gru4rec(Sequential):
    """Recurrent sequential recommendation (Hidasi et al., ICLR 2016)."""

    model: Literal["gru4rec"] = "gru4rec"
    num_layers: int = Field(1, ge=1, description="GRU layers.")


class Caser(Sequential):
    """Convolutional sequential recommendation (Tang & Wang, WSDM 2018)."""

    model: Literal["caser"] = "caser"
    window: int = Field(5, ge=1, description="Latest items that are read (L).")
    horizontal_filters: int = Field(16, ge=1, description="Filters of each height from 1 to L.")
    vertical_filters: int = Field(4, ge=1, description="Filters over the whole window.")


class Sasrec(Sequential):
    """Self-attentive sequential recommendation (Kang & McAuley, ICDM 2018)."""

    model: Literal["sasrec"] = "sasrec"
    num_layers: int = Field(2, ge=1, description="Self-attention blocks.")
    num_heads: int = Field(2, ge=1, description="Attention heads; divides the hidden size.")

    @model_validator(mode="after")
    def heads_divide_the_width(self):
        if self.hidden_size % self.num_heads:
            raise ValueError("hidden_size must be a multiple of num_heads")
        return self


REWARDS = ("rule", "ranking", "ranking_literal", "semantic", "collaborative")
OWN_REWARD = r"\w+(\.\w+)*:\w+"
"""The user's own reward, `module:function`."""

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
    """What SFT and RL share."""

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


class SftOptions(Training):
    """Supervised fine-tuning: the loss of the target's title given the prompt."""

    learning_rate: float = Field(3e-4, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(128, ge=1, description="Training rows a step.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training split at most.")
    evaluations: int = Field(20, ge=1, description="Validations over the whole run.")
    patience: int = Field(3, ge=1, description="Validations in a row without a lower loss.")

    @model_validator(mode="after")
    def passes_fill_the_step(self):
        if self.batch_size % self.rows_per_pass:
            raise ValueError("batch_size must be a multiple of rows_per_pass")
        return self


class RlOptions(Training):
    """Reinforcement learning: rollout, reward, advantage and objective; ReRe's by default."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    max_grad_norm: float = Field(0.3, gt=0, description="Gradients are clipped to this norm.")
    steps: int = Field(100, ge=1, description="Steps, each of them a rollout and its updates.")
    prompts: int = Field(32, ge=1, description="Prompts a step.")
    rows_per_pass: int = Field(
        8, ge=1, description="Prompts a pass; divides a step's. Memory and speed, not results."
    )
    group_size: int = Field(16, ge=2, description="Candidates a prompt (G).")
    rollout: Literal[
        "beam",
        "common",
        "dynamic",
        "dynamic_with_target",
        "stochastic_beam",
        "unconstrained",
        "unconstrained_beam",
    ] = Field("beam", description="How candidates are found.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Of the policy that is rolled out, updated and held to the reference.",
    )
    ground_truth: bool = Field(
        False, description="Put the target in the place of a group's last candidate if it lacks it."
    )
    scoring: Literal["catalogue", "vocabulary"] = Field(
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
    redraw: int = Field(
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
    skip_silent: Literal["exact", "approximate", "never"] = Field(
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
    evaluations: int = Field(5, ge=1, description="Validations (NDCG@10) over the whole run.")

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
        if self.redraw and self.advantage == "global":
            raise ValueError("redraw replaces groups that a global advantage learns from, too")
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


Baseline = Annotated[
    Popularity | RepeatLast | ItemKnn | Gru4rec | Caser | Sasrec, Field(discriminator="model")
]
Grid = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
STAGES = ("baseline", "sft", "rl")


class Method(Options):
    """A named row of a table: the stage that makes it, under that stage's own key."""

    baseline: Baseline | None = Field(None, description="A model without a language model.")
    sft: SftOptions | None = Field(None, description="Supervised fine-tuning.")
    rl: RlOptions | None = Field(None, description="Reinforcement learning.")
    init: str | None = Field(None, description="Method to start from; without one the backbone.")
    collaborative: str | None = Field(
        None, description="Sequential baseline that the collaborative reward asks."
    )
    seed: int | None = Field(
        None, ge=0, description="Its one seed, whatever those of a table or of what starts from it."
    )
    grid: Grid | None = Field(
        None, description="Options of the stage with lists of values: a method a combination."
    )

    @model_validator(mode="after")
    def one_stage(self):
        given = [stage for stage in STAGES if stage in self.model_fields_set]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(STAGES)}")
        if getattr(self, given[0]) is None:
            raise ValueError(f"{given[0]} is empty; write `{given[0]}: {{}}` for its defaults")
        if self.baseline is not None and self.init is not None:
            raise ValueError("a baseline takes no init")
        return self

    @property
    def asks_baseline(self) -> bool:
        """Whether its reward is in part a sequential baseline's."""
        return self.rl is not None and "collaborative" in reward_weights(self.rl.reward)

    @property
    def stage(self) -> str:
        return next(stage for stage in STAGES if getattr(self, stage) is not None)

    @property
    def options(self) -> Options:
        return getattr(self, self.stage)


# ---------------------------------------------------------------------------------- evaluation


class Evaluation(Options):
    """What every method's test run shares."""

    rows: int | None = Field(
        None, ge=1, description="Seeded sample of the test split, the same for all; None for all."
    )
    list_length: int = Field(
        50, ge=max(CUTOFFS), description="Items kept a row, more than the largest K asks for."
    )


class Search(Options):
    """Constrained beam search over the catalogue."""

    num_beams: int = Field(50, ge=1, description="Beams of the search.")
    scoring: Literal["catalogue", "vocabulary"] = Field(
        "catalogue",
        description="Probabilities over the tokens that the catalogue allows, or over all.",
    )
    length_penalty: float = Field(
        0.0, ge=0, description="Scores are divided by the title's tokens to this power."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Arithmetic of the pass.")


class Recommend(Search, Evaluation):
    """Constrained beam search for the rows of the test split."""

    batch_size: int | None = Field(
        None, ge=1, description="Rows a pass; None for what memory takes. Memory, not results."
    )


class Table(Options):
    """A table of the study: each list selects by name."""

    datasets: list[str] = Field(min_length=1, description="Data sets.")
    backbones: list[str] = Field(min_length=1, description="Backbones.")
    methods: list[str] = Field(min_length=1, description="Methods, or grids for all of theirs.")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="Run seeds.")
    reference: str | None = Field(None, description="Method that paired tests compare with.")

    @field_validator("datasets", "backbones", "methods", "seeds")
    @classmethod
    def once_each(cls, values: list) -> list:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value} comes twice")
        return values


class Run(BaseModel):
    """One trained and evaluated method: a folder below results/runs."""

    model_config = ConfigDict(frozen=True)

    dataset: str = Field(description="Name of the data set.")
    backbone: str = Field(description="Name of the backbone; `none` without a language model.")
    method: str = Field(description="Name of the method.")
    seed: int = Field(description="Seed of the run.")

    @property
    def folder(self) -> str:
        return f"results/runs/{self.dataset}/{self.backbone}/{self.method}/seed{self.seed}"


class Measured(Options):
    """A model whose search is measured."""

    backbone: str = Field(description="Backbone of the model.")
    method: str | None = Field(
        None, description="Method that trained it; null for the backbone as it is."
    )
    seed: int = Field(0, ge=0, description="Seed of the run.")
    rows: int = Field(200, ge=1, description="Test rows, all of them timed.")

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.backbone, self.method)))

    def folder(self, dataset: str) -> str:
        """The folder of the model on a data set."""
        if self.method is None:
            return f"results/backbones/{self.backbone}"
        run = Run(dataset=dataset, backbone=self.backbone, method=self.method, seed=self.seed)
        return f"{run.folder}/model"


class Measurement(Options):
    """How the search is measured."""

    seed: int = Field(0, ge=0, description="Seed of everything random.")
    beams: list[Annotated[int, Field(ge=2)]] = Field(
        [16, 50], min_length=1, description="Beams of the table's searches."
    )
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [4, 16, 32],
        min_length=1,
        description="Rows a pass, ascending: each side takes the size that it is fastest at.",
    )
    training_rows: int = Field(
        24, ge=0, description="Test rows that scoring and steps of RL are measured on; 0: none is."
    )
    catalogue_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [1000, 10_000, 100_000, 1_000_000],
        min_length=1,
        description="Synthetic titles of the figure, ascending; the last is the tree's to build.",
    )
    sweep_beams: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 5, 10, 20, 50, 100, 200], min_length=1, description="Beams of the figure, ascending."
    )
    prompt_lengths: list[Annotated[int, Field(ge=1)]] = Field(
        [64, 128, 256, 512],
        min_length=1,
        description="Tokens of the figure's prompts, ascending.",
    )
    curve_batches: int = Field(
        6, ge=1, description="Timed batches a point of the figure, of the smallest size."
    )
    curve_seconds: float = Field(
        5.0, gt=0, description="A curve of the figure ends where a batch takes longer than this."
    )


class Speed(Measurement):
    """Measurements of the search: time, memory and results, beside transformers' `generate`."""

    dataset: str = Field(description="Data set that is searched.")
    models: list[Measured] = Field(
        min_length=1, description="Models of the table; the first is the figure's."
    )

    @property
    def folders(self) -> list[str]:
        """The folders of the models."""
        return [model.folder(self.dataset) for model in self.models]


class Candidates(Measured):
    """Measurements of the ways to get candidates, and of what beam search misses."""

    dataset: str = Field(description="Data set that is searched.")
    seed: int = Field(0, ge=0, description="Seed of the run, and of prompts and draws.")
    rows: int = Field(400, ge=1, description="Test rows, all of them timed.")
    group_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [8, 16, 32], min_length=1, description="Candidates a prompt."
    )
    beams: list[Annotated[int, Field(ge=10)]] = Field(
        [16, 50, 200], min_length=1, description="Beams that are held against the true top 10."
    )
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [2, 8, 32],
        min_length=1,
        description="Rows a pass, ascending: each way takes the size that it is fastest at.",
    )
    max_nodes: int = Field(
        1024, ge=1, description="Nodes that the proof of a row's top 10 may expand."
    )


class Study(Options):
    """A study: mappings that define, tables that select."""

    datasets: dict[Name, Dataset] = Field(description="Data sets by name.")
    backbones: dict[Name, Backbone] = Field(description="Language models by name.")
    methods: dict[Name, Method] = Field(description="Methods by name.")
    evaluation: Recommend = Field(Recommend(), description="How test rows are scored.")
    tables: dict[Name, Table] = Field(description="Tables by name.")
    speed: dict[Name, Speed] = Field({}, description="Tables of measurements by name.")
    search: dict[Name, Candidates] = Field({}, description="Tables of candidates by name.")

    def seed_of(self, method: str, seed: int) -> int:
        """The seed of a method's run where others run with `seed`."""
        own = self.methods[method].seed
        return seed if own is None else own

    def runs(self, table: str) -> list[Run]:
        """The runs of a table, row after row; those without a backbone once a data set."""
        chosen = self.tables[table]
        runs = [
            Run(
                dataset=dataset,
                backbone=NO_BACKBONE if self.methods[method].stage == "baseline" else backbone,
                method=method,
                seed=self.seed_of(method, seed),
            )
            for dataset, backbone, method, seed in itertools.product(
                chosen.datasets, chosen.backbones, chosen.methods, chosen.seeds
            )
        ]
        return list(dict.fromkeys(runs))


def flags(options: BaseModel, skip: tuple[str, ...] = ()) -> list[str]:
    """Options as command-line arguments, all of them, so that a log shows the whole command."""
    values = options.model_dump(exclude=set(skip))
    return [word for name, value in values.items() for word in (flag(name), *words(value))]


def flag(name: str) -> str:
    """The command line's spelling of an option."""
    return f"--{name.replace('_', '-')}"


def words(value: Any) -> list[str]:
    """An option's value as the command line takes it."""
    return [str(each) for each in (value if isinstance(value, list) else [value])]
