"""A study: data sets, backbones and methods, and the tables that compare them."""

import itertools
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from rere.config.backbones import Backbone
from rere.config.baselines import Baseline, Deterministic
from rere.config.benchmarks import Benchmark
from rere.config.claims import Claim, Compared
from rere.config.data import Dataset
from rere.config.decoding import D3, Decode
from rere.config.evaluation import (
    Evaluation,
    Metric,
    Ranking,
    Recommend,
    applicable,
    spell,
    subfolder,
)
from rere.config.options import MethodName, Name, Options, read_words
from rere.config.rl import RlOptions, reward_weights
from rere.config.run import NO_BACKBONE, Run
from rere.config.training import PreferenceOptions, SftOptions, Training

Grid = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]


METHOD_STAGES = ("baseline", "sft", "preference", "rl", "decode")


class Method(Options):
    """A row of a table: exactly one stage, with its options under the stage's key."""

    baseline: Baseline | None = Field(
        None, description="Options of a baseline without a language model."
    )
    sft: SftOptions | None = Field(None, description="Options of supervised fine-tuning.")
    preference: PreferenceOptions | None = Field(
        None, description="Options of preference optimisation."
    )
    rl: RlOptions | None = Field(None, description="Options of reinforcement learning.")
    decode: Decode | None = Field(
        None,
        description="Options of a ranking by the model of `init`, or by the backbone, without "
        "training.",
    )
    extends: str | None = Field(
        None,
        description="Method whose keys this one has where it gives none itself. None: no method.",
    )
    init: str | None = Field(
        None, description="Method whose model this one starts from. None: the backbone."
    )
    collaborative: str | None = Field(
        None,
        description="Method, a sequential baseline, whose scores the collaborative reward or d3 "
        "needs.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="The only seed of this method, whatever the seeds of tables and of methods "
        "that start from it. None: the seeds of the tables; of a baseline without random "
        "numbers, 0.",
    )
    grid: Grid | None = Field(
        None,
        description="Options of the stage, each with a list of values: one method per combination.",
    )

    @model_validator(mode="after")
    def check_stage(self) -> Self:
        given = [stage for stage in METHOD_STAGES if stage in self.model_fields_set]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(METHOD_STAGES)}")
        if getattr(self, given[0]) is None:
            raise ValueError(f"{given[0]} is empty; write `{given[0]}: {{}}` for its defaults")
        if self.baseline is not None and self.init is not None:
            raise ValueError("a baseline takes no init")
        return self

    @property
    def needs_baseline(self) -> bool:
        """Whether its reward or ranking uses the scores of a sequential baseline."""
        if isinstance(self.decode, D3):
            return self.decode.alpha < 1
        return self.rl is not None and "collaborative" in reward_weights(self.rl.reward)

    @property
    def trains_model(self) -> bool:
        """Whether it trains a language model, which other methods may start from."""
        return self.stage not in ("baseline", "decode")

    @property
    def stage(self) -> str:
        return next(stage for stage in METHOD_STAGES if getattr(self, stage) is not None)

    @property
    def options(self) -> Options:
        options: Options = getattr(self, self.stage)
        return options


class Shown(Options):
    """What the files to read of a table show."""

    metrics: list[Metric] = Field(
        ["HR@10", "NDCG@10"],
        min_length=1,
        description="Columns of .md and .tex, panels of the figure: HR@K and NDCG@K for K of 1, 3, "
        "5, 10 and 20. The explorer opens with the last one.",
    )
    labels: dict[str, str] = Field(
        {},
        description="Names that .md, .tex, figure, explorer and report show instead of those of "
        "methods, data sets and backbones. On a command line: name:label.",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def read_labels(cls, labels: Any) -> Any:
        """Labels as a mapping; a command line has them as a list of name:label.

        No name has a colon.
        """
        if not isinstance(labels, list):
            return labels
        return dict(str(each).partition(":")[::2] for each in labels)

    @field_validator("labels")
    @classmethod
    def check_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for name, label in labels.items():
            if not label or not label.isprintable():
                raise ValueError(f"{name} has no label of printable characters; write name:label")
        return labels

    def label(self, name: str) -> str:
        """Return the label of a name, or the name."""
        return self.labels.get(name, name)

    @field_validator(
        "metrics", "datasets", "backbones", "methods", "seeds", "figures", check_fields=False
    )
    @classmethod
    def check_repeats(cls, values: list[Any]) -> list[Any]:
        seen: set[Any] = set()
        for value in values:
            if value in seen:
                raise ValueError(f"{value} comes twice")
            seen.add(value)
        return values


class Comparison(Shown):
    """What a table shows beside the runs' metrics."""

    reference: str | None = Field(
        None, description="Method that paired tests compare the others with. None: no tests."
    )
    highlight: str | None = Field(
        None,
        description="Method whose relative improvement over the best other one is the last row of "
        ".md and .tex. None: no such row. The explorer opens with its hits that the reference "
        "misses.",
    )


FigureKind = Literal["methods", "curves", "backbones", "axes", "hits", "cost", "popularity"]
PLAIN_FIGURES: tuple[FigureKind, ...] = ("methods", "curves")
"""The figures of a table that names none; those of other kinds have stages `rere figure KIND`."""


class DesignSpace(Comparison):
    """The axes on which methods of a table differ."""

    axes: Annotated[
        dict[str, Annotated[list[str], Field(min_length=1)]], BeforeValidator(read_words)
    ] = Field(
        {},
        description="Panels of the figure `axes`: titles with the methods of each; the name of a "
        "grid stands for all of its methods. On a command line: title:JSON.",
    )

    @field_validator("axes")
    @classmethod
    def check_axes(cls, axes: dict[str, list[str]]) -> dict[str, list[str]]:
        for title in axes:
            if not title or not title.isprintable() or ":" in title:
                raise ValueError(f"{title!r} is no title; write printable characters without :")
        return axes


class Table(DesignSpace):
    """A table of the study: the runs of all combinations of the lists."""

    datasets: list[str] = Field(min_length=1, description="Names of data sets.")
    backbones: list[str] = Field(
        min_length=1, description="Names of backbones; baselines appear once, without one."
    )
    methods: list[str] = Field(
        min_length=1, description="Names of methods; that of a grid stands for all of its methods."
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="Seeds of the runs.")
    evaluation: Ranking = Field(
        Ranking(),
        description="Options of the study's `evaluation` that differ in this table. One that is "
        "not given has the study's value.",
    )
    figures: list[FigureKind] = Field(
        list(PLAIN_FIGURES),
        description="Figures of the table. methods: metrics as bars. curves: training of its RL "
        "methods, if it has any. backbones: by model size. axes: one panel for each of `axes`. "
        "hits: gains of RL by its hits. cost: by seconds of training. popularity: on popular and "
        "rare targets.",
    )


def allow_null(schema: dict[str, Any]) -> None:
    """Let each entry of a section be null in the JSON schema, which removes it."""
    for section in schema["properties"].values():
        for name, entry in section.get("patternProperties", {}).items():
            section["patternProperties"][name] = {"anyOf": [entry, {"type": "null"}]}


class Study(Options):
    """A study: mappings that define by name, and tables that select by name."""

    model_config = ConfigDict(json_schema_extra=allow_null)

    datasets: dict[Name, Dataset] = Field(description="Data sets by name.")
    backbones: dict[Name, Backbone] = Field(description="Language models by name.")
    methods: dict[MethodName, Method] = Field(description="Methods by name.")
    evaluation: Recommend = Field(
        Recommend(),
        description="How test rows are ranked, the same for every method of a table. A table may "
        "have other options.",
    )
    tables: dict[Name, Table] = Field(description="Tables by name.")
    claims: dict[Name, Claim] = Field(
        {}, description="Claims by name, which results/claims.md decides."
    )
    benchmarks: dict[Name, Benchmark] = Field({}, description="Benchmarks by name.")
    overwrite: bool = Field(
        False,
        description="Let this file change entries of the files it is laid over, and so overwrite "
        "their results.",
    )

    def seed_of(self, method: str, seed: int) -> int:
        """Return the only seed of the method if it has one, else `seed`.

        That is its own seed, or 0 for a baseline that uses no random numbers.
        """
        fixed = self.methods[method].seed
        if fixed is None and isinstance(self.methods[method].baseline, Deterministic):
            return 0
        return seed if fixed is None else fixed

    def options_of(self, method: str, backbone: str) -> Options:
        """Return a method's options, of training those that the backbone gives in their place.

        Raises ValidationError if a method of training cannot have them.
        """
        options = self.methods[method].options
        if not isinstance(options, Training) or backbone == NO_BACKBONE:
            return options
        given = self.backbones[backbone].training.model_dump(exclude_unset=True)
        return type(options)(**options.model_dump() | given) if given else options

    def evaluation_of(self, table: str) -> Recommend:
        """Return the study's evaluation with the options that differ in a table."""
        given = self.tables[table].evaluation.model_dump(exclude_unset=True)
        return self.evaluation.model_copy(update=given)

    def evaluations(self, stage: str) -> dict[str, Evaluation]:
        """Return each evaluation of methods of a stage by its part of a run's path.

        They are those of the defaults, of the study and of its tables.
        """
        plain = Recommend(batch_size=self.evaluation.batch_size)
        every = [plain, self.evaluation, *map(self.evaluation_of, self.tables)]
        used = [applicable(each, stage) for each in every]
        return {subfolder(spell(each)): each for each in used}

    def runs(self, table: str) -> list[Run]:
        """Return a table's runs in row order; baselines have no backbone.

        A method with an only seed has one run per data set and backbone.
        """
        selected = self.tables[table]
        runs = [
            Run(
                dataset=dataset,
                backbone=NO_BACKBONE if self.methods[method].stage == "baseline" else backbone,
                method=method,
                seed=self.seed_of(method, seed),
                evaluation=spell(applicable(self.evaluation_of(table), self.methods[method].stage)),
            )
            for dataset, backbone, method, seed in itertools.product(
                selected.datasets, selected.backbones, selected.methods, selected.seeds
            )
        ]
        return list(dict.fromkeys(runs))

    def resolved_claims(self) -> dict[str, Claim]:
        """Return the claims, with the data sets and backbones of each comparison.

        They are those of its table where it names none, and unknown if the table is not there.
        """
        return {
            name: claim.model_copy(update={"comparisons": [*map(self.resolved, claim.comparisons)]})
            for name, claim in self.claims.items()
        }

    def resolved(self, compared: Compared) -> Compared:
        """Return comparisons with the data sets and backbones of their table, if it is there."""
        if compared.table not in self.tables:
            return compared
        table = self.tables[compared.table]
        axes = {
            "datasets": compared.datasets or table.datasets,
            "backbones": compared.backbones or table.backbones,
        }
        return compared.model_copy(update=axes)

    def compared_runs(self) -> list[tuple[str, Run]]:
        """Return the runs that claims compare, each with the table that has it."""
        compared = [each for claim in self.resolved_claims().values() for each in claim.comparisons]
        runs = [
            (each.table, run)
            for each in compared
            if each.table in self.tables
            for run in self.runs(each.table)
            if run.method in (each.method, *each.than)
            and run.dataset in (each.datasets or [])
            and run.backbone in (NO_BACKBONE, *(each.backbones or []))
        ]
        return list(dict.fromkeys(runs))

    def starts(self, method: str) -> list[str]:
        """Return the methods whose models a method starts from or uses, but for the backbone."""
        used = self.methods[method]
        return [name for name in (used.init, used.collaborative) if name is not None]

    def starts_rl(self, method: str) -> bool:
        """Whether a method is RL from another method's model."""
        return self.methods[method].rl is not None and self.methods[method].init is not None

    def figures(self, table: str) -> list[str]:
        """Return the names of a table's figures below results/figures/, without their endings."""
        names = []
        for kind in self.tables[table].figures:
            has_rl = any(self.methods[run.method].stage == "rl" for run in self.runs(table))
            if kind == "methods":
                names.append(table)
            elif kind != "curves" or has_rl:
                names.append(f"{table}.{kind}")
        return names
