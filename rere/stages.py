"""The stages of `rere`: options, paths read and written, and the function that does the work.

A stage combines the options that `rere.config` declares with the paths below, and has the
docstring of its options. `run` imports the function, so that `rere --help` loads nothing heavy.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    DirectoryPath,
    Field,
    FilePath,
    create_model,
    field_validator,
    model_validator,
)

from rere import config
from rere.config.options import MAX_BEAMS, MAX_INTEGER, Options, Precision
from rere.errors import InputError
from rere.provenance import provenance

if TYPE_CHECKING:
    from rere.planning.plan import Plan, Target

Data = Annotated[Path, Field(description="Folder that `rere preprocess` wrote.")]
Model = Annotated[DirectoryPath, Field(description="Folder of a model and its tokenizer.")]
Seed = Annotated[int, Field(ge=0, le=MAX_INTEGER, description="Seed of all random numbers.")]
Predictions = Annotated[Path, Field(description="predictions.parquet of a run.")]
PredictionFolder = Annotated[
    Path, Field(description="Run folder: gets predictions.parquet and run.json.")
]
ScoredRuns = Annotated[
    list[Path], Field(min_length=1, description="Run folders with metrics.json.")
]
DataFolders = Annotated[
    list[Path], Field(min_length=1, description="Data folders, named after the data sets.")
]
Starts = Annotated[dict[str, list[str]], BeforeValidator(config.options.read_words)]
STARTS = Field({}, description="Methods whose models a method starts from or uses, as method:JSON.")
Figures = Annotated[list[Path], Field(min_length=1, description="Files to write, .pdf or .png.")]


class Fetch(Options):
    output: Path | None = Field(
        None,
        description="Folder for the raw files; replaced as a whole. None: only say where Yelp's "
        "can be found.",
    )

    def run(self) -> None:
        from rere.data.fetch import YELP_INSTRUCTIONS, fetch

        if self.output is None:
            if self.source != "yelp":
                raise InputError("--output: missing; name the folder for the raw files")
            print(YELP_INSTRUCTIONS)
        else:
            fetch(self.source, self.output, self.category)


class Preprocess(Options):
    raw: Path = Field(description="Folder with the raw files.")
    output: Path = Field(description="Folder for the splits; replaced as a whole.")

    def run(self) -> None:
        from rere.data.preprocess import preprocess

        preprocess(self, self.raw, self.output)


class Audit(Options):
    """Print which test rows of data sets are easy, unusual or known from training."""

    data: list[Path] = Field(min_length=1, description="Folders that `rere preprocess` wrote.")

    def run(self) -> None:
        from rere.data.audit import audit_table

        print(audit_table(self.data))


class TokenLengths(Options):
    """Count the tokens of a data set's titles and prompts under a backbone's tokenizer."""

    backbone: DirectoryPath = Field(description="Folder that `rere backbone` wrote.")
    data: Data
    rows: int | None = Field(None, ge=1, description="Number of test rows; None for all.")
    output: Path = Field(description="The .json to write.")

    def run(self) -> None:
        from rere.token_lengths import token_lengths

        token_lengths(self.backbone, self.data, self.rows, self.output)


class Backbone(Options):
    output: Path = Field(description="Folder for weights and tokenizer; replaced as a whole.")

    def run(self) -> None:
        from rere.backbones import backbone

        corpus, lock = (getattr(self, name, None) for name in ("corpus", "lock"))
        backbone(self, corpus, self.output, lock)


class TinyBackbone(Backbone):
    corpus: Data


class PretrainedBackbone(Backbone):
    lock: Path | None = Field(
        None,
        description="YAML file of commits by Hugging Face id: that of `model` is taken, or the "
        "newest is added. None: no file.",
    )


class Training(Options):
    many_processes: ClassVar[bool] = True

    init: DirectoryPath = Field(description="Folder of the initial model and its tokenizer.")
    data: Data
    seed: Seed = 0
    output: Path = Field(description="Run folder: gets model/, log.jsonl and run.json.")


class Sft(Training):
    def run(self) -> None:
        from rere.training.sft import sft

        sft(self, self.init, self.data, self.seed, self.output)


class Preference(Training):
    def run(self) -> None:
        from rere.training.preference import preference

        preference(self, self.init, self.data, self.seed, self.output)


class Rl(Training):
    factors: Path | None = Field(
        None,
        description="factors.safetensors of a sequential baseline, for the collaborative reward.",
    )

    @model_validator(mode="after")
    def collaborative_reward_needs_factors(self):
        if ("collaborative" in config.rl.reward_weights(self.reward)) != (self.factors is not None):
            raise ValueError("the collaborative reward and --factors need each other")
        return self

    def run(self) -> None:
        from rere.training.rl import rl

        rl(self, self.init, self.data, self.seed, self.output, self.factors)


class Baseline(config.evaluation.Evaluation):
    data: Data
    seed: Seed = 0
    output: PredictionFolder

    def run(self) -> None:
        from rere.baselines.baseline import baseline

        predictions = self.output / "predictions.parquet"
        with provenance(self.output / "run.json", self, self.seed, [self.data]):
            baseline(self, self, self.data, self.seed, predictions)


class Decode(config.evaluation.Decoding):
    many_processes: ClassVar[bool] = True

    model: Model
    data: Data
    seed: Seed = 0
    output: PredictionFolder

    def run(self) -> None:
        from rere.evaluation.decode import decode
        from rere.ranks import join

        factors, is_first = getattr(self, "factors", None), join().is_first
        predictions = self.output / "predictions.parquet"
        inputs = [self.model, self.data, *filter(None, [factors])]
        with provenance(self.output / "run.json", self, self.seed, inputs, is_first) as run:
            run.chosen = decode(self, self, self.model, self.data, self.seed, predictions, factors)


class D3(Decode):
    factors: Path | None = Field(
        None, description="factors.test.safetensors of a sequential baseline, on these test rows."
    )

    @model_validator(mode="after")
    def alpha_below_1_needs_factors(self):
        if (self.alpha < 1) != (self.factors is not None):
            raise ValueError("--alpha below 1 and --factors need each other")
        return self


class Recommend(Options):
    many_processes: ClassVar[bool] = True

    model: Model
    data: Data
    seed: Seed = 0
    output: Predictions

    def run(self) -> None:
        from rere.evaluation.recommend import recommend

        recommend(self, self.model, self.data, self.seed, self.output)


def given_search(command: config.evaluation.BeamSearch) -> config.evaluation.BeamSearch | None:
    """The options of the search that a command was given; None if none, as a baseline needs."""
    fields = config.evaluation.BeamSearch.model_fields.keys() & command.model_fields_set
    given = command.model_dump(include=fields)
    return config.evaluation.BeamSearch(**given) if given else None


class Lists(config.evaluation.BeamSearch):
    """What the commands for histories share."""

    model: DirectoryPath = Field(description="model/ folder of a run.")
    top: int = Field(10, ge=1, le=MAX_BEAMS, description="Items per list.")
    exclude_seen: bool = Field(False, description="Leave out the items of the history.")
    within: FilePath | None = Field(
        None, description="File with an id per line: only these items are recommended. None: all."
    )
    device: str = Field("auto", description="Device of torch. auto: a GPU if there is one.")

    def recommend(self, histories: Sequence[Sequence[str]]) -> Iterator[list[dict[str, Any]]]:
        """Yield the list of each history; an item has id, title and score."""
        from rere.history_files import read_ids
        from rere.recommender import Recommender

        recommender = Recommender(self.model, given_search(self), self.device)
        if self.within is not None:
            recommender = recommender.within(read_ids(self.within))
        for ranked in recommender.recommend_many(histories, self.top, self.exclude_seen):
            yield [item._asdict() for item in ranked]


class RecommendHistory(Lists):
    """Print what a model recommends after a history."""

    history: list[str] = Field(min_length=1, description="Ids or titles of items, oldest first.")
    json_: bool = Field(False, description="Print the list as one line of JSON.")

    def run(self) -> None:
        (ranked,) = self.recommend([self.history])
        if self.json_:
            print(json.dumps(ranked, ensure_ascii=False))
            return
        ids, titles = ([on_one_line(item[key]) for item in ranked] for key in ("id", "title"))
        rank_width, id_width = len(str(len(ranked))), max(map(len, ids), default=0)
        for rank, (item, name, title) in enumerate(zip(ranked, ids, titles, strict=True), start=1):
            print(f"{rank:{rank_width}}  {item['score']:8.3f}  {name:{id_width}}  {title}")


def on_one_line(text: str) -> str:
    """The text as a terminal can show it; quoted and escaped if it has control characters."""
    return text if text.isprintable() else repr(text)


class RecommendHistories(Lists):
    """Print what a model recommends after many histories, one line of JSON for each."""

    histories: FilePath = Field(
        description="File with a list of JSON per line: ids or titles of items, oldest first."
    )

    def run(self) -> None:
        from rere.history_files import read_lists

        for ranked in self.recommend(read_lists(self.histories)):
            print(json.dumps(ranked, ensure_ascii=False))


class Serve(config.evaluation.BeamSearch):
    """Answer requests over HTTP with a model, and show a page at /."""

    model: DirectoryPath = Field(description="model/ folder of a run.")
    device: str = Field("auto", description="Device of torch. auto: a GPU if there is one.")
    host: str = Field("127.0.0.1", description="Address to listen at. 0.0.0.0: all of the machine.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen at. 0: a free one.")
    max_queue: int = Field(256, ge=1, description="Requests that may wait; more get status 503.")
    max_batch: int = Field(64, ge=1, description="Requests that share a search.")
    timeout: float = Field(
        30, gt=0, le=3600, description="Seconds until a request gets status 504."
    )

    def run(self) -> None:
        from rere.serve.server import serve

        serve(
            self.model,
            given_search(self),
            self.device,
            self.host,
            self.port,
            self.max_queue,
            self.max_batch,
            self.timeout,
        )


class Lease(Options):
    """Run a command with GPUs of this machine that no other such command has.

    It waits until as many are free, and has them until its last process ends.
    """

    gpus: int = Field(1, ge=0, description="Number of GPUs. 0: the command sees none.")
    command: list[str] = Field(
        min_length=1, description="Command and its arguments; all that follows `--`."
    )

    def run(self) -> None:
        from rere.lease import lease

        lease(self.gpus, self.command)


class Planned(Options):
    """What `rere plan` asks beside the options of the planned stage."""

    data: Data
    seed: Seed = 0
    device: str = Field("auto", description="Device of the run. auto: a GPU if there is one.")
    memory: float | None = Field(
        None,
        gt=0,
        description="Memory of the device in GB. None: what is free on this machine's GPU, or "
        "all of its RAM.",
    )
    processes: int = Field(
        1, ge=1, description="Processes that `torchrun` starts, each with such a device."
    )
    json_: bool = Field(False, description="Print JSON, in bytes.")

    def target(self, dtype: str) -> "Target":
        from rere.devices import choose_device
        from rere.planning.plan import Target

        memory = None if self.memory is None else self.memory * 1e9
        return Target.choose(choose_device(self.device), dtype, memory, self.processes)

    def print(self, plan: "Plan", target: "Target") -> None:
        from rere.planning.plan import as_json, as_text

        print(as_json(plan, target) if self.json_ else as_text(plan, target, self))


class PlanTraining(Planned):
    init: str = Field(description="Folder or Hugging Face id of the initial model.")

    def run(self) -> None:
        from rere.planning.plan import plan_training

        target = self.target(self.dtype)
        self.print(plan_training(self, self.init, self.data, self.seed, target), target)


class PlanRecommend(Planned):
    model: str = Field(description="Folder or Hugging Face id of the model.")

    def run(self) -> None:
        from rere.planning.plan import plan_recommend

        target = self.target(self.dtype)
        self.print(plan_recommend(self, self.model, self.data, self.seed, target), target)


class PlanStudy(Options):
    """Estimate memory, operations, hours and disk of each job of a study's tables."""

    config: list[str] = Field(
        min_length=1,
        description="Config files, each laid over those before it; a text in braces is a config.",
    )
    results: DirectoryPath = Field(
        Path("results"), description="Folder with the study's data/ and backbones/."
    )
    budget: float | None = Field(
        None, gt=0, description="Hours of the machine `on`. Names the tables that they pay for."
    )
    on: Literal["H200", "A100", "RTX 4090", "cpu"] = Field(
        "A100", description="What the budget is of: GPU-hours, or hours of this CPU."
    )
    output: Path = Field(description="The .json to write, for the study's rules and for scripts.")

    def run(self) -> None:
        from rere.files import write_json
        from rere.overlays import read_configs
        from rere.planning.price import affordable, as_text
        from rere.planning.study import plan_study
        from rere.study import load_study

        study = load_study(read_configs(self.config))
        rows, tables = plan_study(study, self.results), list(study.tables)
        write_json(self.output, {"jobs": rows})
        print(as_text(rows, tables))
        if self.budget is not None:
            paid = affordable(rows, tables, self.on, self.budget)
            print(f"{self.budget:g} hours ({self.on}) pay for: {', '.join(paid)}.")


class Check(Planned):
    """Say whether a backbone fits a data set and a device, from its tokenizer and config alone."""

    backbone: str = Field(description="Folder or Hugging Face id of the backbone.")
    revision: str | None = Field(
        None, description="Commit, branch or tag of a Hugging Face id. None: the newest."
    )
    dtype: Precision = Field("auto", description="Precision of the run. auto: the device's.")

    def run(self) -> None:
        from rere.planning.check import as_json, as_text, check, raise_if_failing

        target = self.target(self.dtype)
        answers = check(self.backbone, self.revision, self.data, self.seed, target)
        print(as_json(answers) if self.json_ else as_text(answers))
        raise_if_failing(answers)


class Metrics(config.run.Run):
    """Score a run's predictions: HR@K and NDCG@K over the whole catalogue."""

    predictions: Predictions
    data: Data
    output: Path = Field(description="metrics.json to write.")

    def run(self) -> None:
        from rere.evaluation.metrics import metrics

        run = config.run.Run(**self.model_dump(include=set(config.run.Run.model_fields)))
        metrics(self.predictions, self.data, run, self.output)


class Table(config.study.Comparison):
    """Gather runs into a table: .csv, .runs.csv, .md and .tex."""

    runs: ScoredRuns
    data: DataFolders
    output: Path = Field(description="The .csv to write; the others are written beside it.")

    def run(self) -> None:
        from rere.reporting.tables import table

        table(self.runs, self.data, self.output, self)


class Explorer(config.study.Comparison):
    """Write a page to look into a table's runs: lists side by side, hits and misses, subsets."""

    runs: ScoredRuns
    data: DataFolders
    rows: int | None = Field(
        20_000,
        ge=1,
        description="Test rows whose lists the page holds: a fixed sample. None: all. Subsets "
        "are of all rows.",
    )
    output: Path = Field(description="The .html to write.")

    def run(self) -> None:
        from rere.reporting.explorer import explorer

        explorer(self.runs, self.data, self.output, self, self.rows)


class Claims(config.claims.Claims):
    """Decide claims from the runs of tables, by a rule: .md with verdicts and comparisons."""

    runs: list[str] = Field(
        [],
        description="Run folders with the table that each belongs to, as table:folder. One without "
        "metrics.json is not made yet.",
    )
    data: list[Path] = Field([], description="Data folders, named after the data sets.")
    output: Path = Field(description="The .md to write.")

    @field_validator("runs")
    @classmethod
    def check_runs(cls, runs: list[str]) -> list[str]:
        for text in runs:
            if not all(text.partition(":")):
                raise ValueError(f"{text!r} has no table and folder; write table:folder")
        return runs

    def run(self) -> None:
        from rere.reporting.claims import claims

        pairs = (text.partition(":")[::2] for text in self.runs)
        runs = [(table, Path(folder)) for table, folder in pairs]
        claims(self.claims, runs, self.data, self.output)


class Figure(config.study.Shown):
    """Draw a table's methods as bars with intervals."""

    table: Path = Field(description="The table's .csv.")
    output: Figures

    def run(self) -> None:
        from rere.reporting.figures import figure

        figure(self.table, self.output, self)


class FigureBackbones(config.study.Shown):
    """Draw a table's last metric by the size of the backbone, with 95 % intervals."""

    table: Path = Field(description="The table's .csv.")
    backbones: list[DirectoryPath] = Field(
        min_length=1, description="Folders of its backbones, named after them."
    )
    output: Figures

    def run(self) -> None:
        from rere.reporting.backbones import backbones_figure

        backbones_figure(self.table, self.backbones, self.output, self)


class FigureAxes(config.study.DesignSpace):
    """Draw a table's last metric on each axis of its design space, with 95 % intervals."""

    table: Path = Field(description="The table's .csv.")
    output: Figures

    def run(self) -> None:
        from rere.reporting.axes import axes_figure

        axes_figure(self.table, self.output, self)


class FigureHits(config.study.Shown):
    """Draw the gain of RL runs over their initial models by the hits of their rollouts."""

    table: Path = Field(description="The table's .runs.csv.")
    runs: list[Path] = Field(
        min_length=1, description="Run folders of RL from another method's model, with log.jsonl."
    )
    starts: Starts = STARTS
    output: Figures

    def run(self) -> None:
        from rere.reporting.costs import hits_figure

        hits_figure(self.table, self.runs, self.starts, self.output, self)


class FigureCost(config.study.Shown):
    """Draw a table's last metric by the seconds of training, with those of initial models."""

    table: Path = Field(description="The table's .runs.csv.")
    starts: Starts = STARTS
    output: Figures

    def run(self) -> None:
        from rere.reporting.costs import cost_figure

        cost_figure(self.table, self.starts, self.output, self)


class FigurePopularity(config.study.Shown):
    """Draw a table's last metric on rows of popular and rare targets, with 95 % intervals."""

    runs: ScoredRuns
    data: DataFolders
    output: Figures

    def run(self) -> None:
        from rere.reporting.popularity import popularity_figure

        popularity_figure(self.runs, self.data, self.output, self)


class Curves(Options):
    """Draw RL training curves: validation NDCG, reward, hit rate, distinct items and KL."""

    runs: list[Path] = Field(min_length=1, description="Run folders with log.jsonl.")
    output: Figures

    def run(self) -> None:
        from rere.reporting.curves import curves

        curves(self.runs, self.output)


class BenchmarkSpeed(config.benchmarks.SpeedOptions):
    """Time search, training and preprocessing against plain implementations."""

    models: list[DirectoryPath] = Field(min_length=1, description="Folders of the models.")
    names: list[str] = Field(description="Their names in the table, one each.")
    test_rows: list[int] = Field(description="Numbers of test rows to time, one each.")
    data: Data
    output: Path = Field(description="The .csv to write, with an .md beside it.")

    @model_validator(mode="after")
    def check_numbers(self):
        if not len(self.models) == len(self.names) == len(self.test_rows):
            raise ValueError("give as many --names and --test-rows as --models")
        return self

    def run(self) -> None:
        from rere.benchmarks.speed.table import benchmark_speed

        benchmark_speed(self, self.models, self.names, self.test_rows, self.data, self.output)


class BenchmarkSpeedCurves(config.benchmarks.SpeedOptions):
    """Time searches by catalogue size, beams and prompt length, preprocessing by reviews."""

    model: Model
    data: Data
    output: Path = Field(description="The .csv to write.")

    def run(self) -> None:
        from rere.benchmarks.speed.curves import benchmark_speed_curves

        benchmark_speed_curves(self, self.model, self.data, self.output)


class BenchmarkSpeedFigure(Options):
    """Draw the times of searches and preprocessing as curves."""

    table: Path = Field(description="The .csv that `rere benchmark speed-curves` wrote.")
    output: Figures

    def run(self) -> None:
        from rere.benchmarks.figures import draw_speed

        draw_speed(self.table, self.output)


class BenchmarkRollouts(config.benchmarks.RolloutOptions):
    """Measure what each rollout strategy finds and costs, and what beam search misses."""

    model: Model
    name: str = Field(description="The model's name in the table.")
    data: Data
    output: Path = Field(description="The .csv to write, with an .md beside it.")

    def run(self) -> None:
        from rere.benchmarks.rollouts import benchmark_rollouts

        benchmark_rollouts(self, self.name, self.model, self.data, self.output)


class BenchmarkGpu(config.benchmarks.GpuOptions):
    """Compare a GPU with the CPU, and time it beside plain code, in about four minutes."""

    model: DirectoryPath | None = Field(
        None, description="Folder with the weights of SmolLM2-135M. None: random ones."
    )
    output: Path = Field(description="The .json to write, with an .md beside it.")

    def run(self) -> None:
        from rere.benchmarks.gpu.command import benchmark_gpu

        benchmark_gpu(self, self.model, self.output)


class BenchmarkRolloutsFigure(Options):
    """Draw distinct items and hits by group size, and what beam search misses by beams."""

    table: Path = Field(description="The .csv that `rere benchmark rollouts` wrote.")
    output: Figures

    def run(self) -> None:
        from rere.benchmarks.figures import draw_rollouts

        draw_rollouts(self.table, self.output)


class Push(Options):
    """Upload a trained model to the Hugging Face hub, with its test metrics in its card."""

    model: DirectoryPath = Field(description="model/ folder of a trained method's run.")
    repo: str = Field(description="Repository, owner/name; made if it is missing.")
    private: bool = Field(False, description="Make the repository a private one.")
    revision: str | None = Field(
        None, description="Branch to upload to; made if it is missing. None: main."
    )

    def run(self) -> None:
        from rere.push import push

        print(push(self.model, self.repo, self.private, self.revision))


class Schema(Options):
    """Print the JSON schema of a study's config, for editors."""

    def run(self) -> None:
        print(json.dumps(config.study.Study.model_json_schema(), indent=2))


def combine(paths: type[BaseModel], options: type[BaseModel], **fields: Any) -> type[BaseModel]:
    """A stage with the fields and `run` of `paths` and the fields and docstring of `options`."""
    return create_model(
        options.__name__, __base__=(paths, options), __doc__=options.__doc__, **fields
    )


def plan_for(stage: str, plan: type[BaseModel], options: type[BaseModel]) -> type[BaseModel]:
    """The stage that says what a run of another one takes, with the same options."""
    planned = combine(plan, options)
    planned.__doc__ = f"Estimate the peak memory of `rere {stage}` without running it."
    return planned


def per_choice(
    stage: str, key: str, paths: type[BaseModel], *options: type[BaseModel]
) -> dict[str, type[BaseModel]]:
    """`STAGE CHOICE` for each choice that one of the `options` has for the option `key`."""
    return {
        f"{stage} {choice}": combine(paths, each, **{key: (Literal[choice], choice)})
        for each in options
        for choice in get_args(each.model_fields[key].annotation)
    }


BASELINES = get_args(get_args(config.baselines.Baseline)[0])  # the members of the union

STAGES: dict[str, type[BaseModel]] = {
    "fetch": combine(Fetch, config.data.Fetch),
    **per_choice("preprocess", "source", Preprocess, *config.data.SOURCES),
    "audit": Audit,
    "token-lengths": TokenLengths,
    **per_choice("backbone", "source", TinyBackbone, config.backbones.Tiny),
    **per_choice("backbone", "source", PretrainedBackbone, config.backbones.Pretrained),
    "sft": combine(Sft, config.training.SftOptions),
    "preference": combine(Preference, config.training.PreferenceOptions),
    "rl": combine(Rl, config.rl.RlOptions),
    **per_choice("baseline", "model", Baseline, *BASELINES),
    **per_choice("decode", "algorithm", Decode, config.decoding.Beam, config.decoding.Bigrec),
    **per_choice("decode", "algorithm", D3, config.decoding.D3),
    "recommend": combine(Recommend, config.evaluation.Recommend),
    "recommend --history": RecommendHistory,
    "recommend --histories": RecommendHistories,
    "serve": Serve,
    "plan sft": plan_for("sft", PlanTraining, config.training.SftOptions),
    "plan preference": plan_for("preference", PlanTraining, config.training.PreferenceOptions),
    "plan rl": plan_for("rl", PlanTraining, config.rl.RlOptions),
    "plan recommend": plan_for("recommend", PlanRecommend, config.evaluation.Recommend),
    "plan study": PlanStudy,
    "lease": Lease,
    "check": Check,
    "metrics": Metrics,
    "push": Push,
    "table": Table,
    "explorer": Explorer,
    "claims": Claims,
    "figure": Figure,
    "figure backbones": FigureBackbones,
    "figure axes": FigureAxes,
    "figure hits": FigureHits,
    "figure cost": FigureCost,
    "figure popularity": FigurePopularity,
    "curves": Curves,
    "benchmark speed": BenchmarkSpeed,
    "benchmark speed-curves": BenchmarkSpeedCurves,
    "benchmark speed-figure": BenchmarkSpeedFigure,
    "benchmark rollouts": BenchmarkRollouts,
    "benchmark rollouts-figure": BenchmarkRolloutsFigure,
    "benchmark gpu": BenchmarkGpu,
    "schema": Schema,
}
