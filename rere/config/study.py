"""A study: what is compared, and on what."""

import itertools
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from rere.config.backbones import Backbone
from rere.config.baselines import Baseline
from rere.config.benchmarks import Candidates, Speed
from rere.config.data import Dataset
from rere.config.decoding import D3, Decode
from rere.config.evaluation import Recommend
from rere.config.options import Name, Options
from rere.config.run import NO_BACKBONE, Run
from rere.config.training import PreferenceOptions, RlOptions, SftOptions, reward_weights

Grid = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
STAGES = ("baseline", "sft", "preference", "rl", "decode")


class Method(Options):
    """A named row of a table: the stage that makes it, under that stage's own key."""

    baseline: Baseline | None = Field(None, description="A model without a language model.")
    sft: SftOptions | None = Field(None, description="Supervised fine-tuning.")
    preference: PreferenceOptions | None = Field(None, description="Preference optimisation.")
    rl: RlOptions | None = Field(None, description="Reinforcement learning.")
    decode: Decode | None = Field(None, description="Another way to recommend with a model.")
    init: str | None = Field(None, description="Method to start from; without one the backbone.")
    collaborative: str | None = Field(
        None, description="Sequential baseline that the collaborative reward, or d3, asks."
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
        """Whether its reward, or its ranking, is in part a sequential baseline's."""
        if isinstance(self.decode, D3):
            return self.decode.alpha < 1
        return self.rl is not None and "collaborative" in reward_weights(self.rl.reward)

    @property
    def leaves_model(self) -> bool:
        """Whether others may start from it."""
        return self.stage not in ("baseline", "decode")

    @property
    def stage(self) -> str:
        return next(stage for stage in STAGES if getattr(self, stage) is not None)

    @property
    def options(self) -> Options:
        return getattr(self, self.stage)


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
