"""The stages of `rere`: the options and paths of each, and the function that does its work.

A stage's flags are its options of `rere.config` and the paths that it reads and writes. What does
the work is imported when it runs, so that `rere --help` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, DirectoryPath, Field, create_model, model_validator

from rere import config
from rere.provenance import provenance

Data = Annotated[Path, Field(description="Folder that `rere preprocess` wrote.")]
Seed = Annotated[int, Field(ge=0, description="Seed of everything random.")]
Init = Annotated[
    DirectoryPath, Field(description="Folder of the model and tokenizer to start from.")
]
RunFolder = Annotated[Path, Field(description="Run folder: gets model/, log.jsonl and run.json.")]
Predictions = Annotated[Path, Field(description="predictions.parquet of a run.")]


class Fetch(config.data.Fetch):
    """Download a public data set, or say where it is to be had; checked by sha256."""

    output: Path = Field(description="Folder for the raw files; replaced as a whole.")

    def run(self) -> None:
        from rere.data.fetch import fetch

        fetch(self.source, self.output, self.category)


class Preprocess(config.options.Options):
    raw: Path = Field(description="Folder with the raw files.")
    output: Path = Field(description="Folder for the splits; replaced as a whole.")

    def run(self) -> None:
        from rere.data.preprocess import preprocess

        preprocess(self, self.raw, self.output)


def preprocess_stages() -> dict[str, type[BaseModel]]:
    """`preprocess SOURCE` for each source that `config.data.SOURCES` has options for."""
    return {
        f"preprocess {source}": create_model(
            f"Preprocess_{source}",
            __base__=(Preprocess, options),
            __doc__=options.__doc__,
            source=(Literal[source], source),
        )
        for options in config.data.SOURCES
        for source in get_args(options.model_fields["source"].annotation)
    }


class Audit(config.options.Options):
    """Print what `rere preprocess` found easy, strange or leaking in data sets."""

    data: list[Path] = Field(min_length=1, description="Folders that `rere preprocess` wrote.")

    def run(self) -> None:
        from rere.data.audit import table

        print(table(self.data))


class TokenLengths(config.options.Options):
    """Count the tokens of a data set's titles and prompts under a backbone's tokenizer."""

    backbone: DirectoryPath = Field(description="Folder that `rere backbone` wrote.")
    data: Data
    rows: int | None = Field(None, ge=1, description="Sample of the test rows; None for all.")
    output: Path = Field(description="The .json to write.")

    def run(self) -> None:
        from rere.token_lengths import token_lengths

        token_lengths(self.backbone, self.data, self.rows, self.output)


class Tiny(config.backbones.Tiny):
    """A small Qwen2 from scratch, its tokenizer trained on one data set's training text."""

    corpus: Data
    output: Path = Field(description="Folder for weights and tokenizer; replaced as a whole.")

    def run(self) -> None:
        from rere.backbones import backbone

        backbone(self, self.corpus, self.output)


class Pretrained(config.backbones.Pretrained):
    """A published model: a hub id or a local folder."""

    output: Path = Field(description="Folder for weights and tokenizer; replaced as a whole.")

    def run(self) -> None:
        from rere.backbones import backbone

        backbone(self, None, self.output)


class Sft(config.training.SftOptions):
    """Fine-tune a language model on the training split's titles."""

    init: Init
    data: Data
    seed: Seed = 0
    output: RunFolder

    def run(self) -> None:
        from rere.training.sft import sft

        sft(self, self.init, self.data, self.seed, self.output)


class Preference(config.training.PreferenceOptions):
    """Train a language model to prefer targets to negatives: DPO, S-DPO, SPRec."""

    init: Init
    data: Data
    seed: Seed = 0
    output: RunFolder

    def run(self) -> None:
        from rere.training.preference import preference

        preference(self, self.init, self.data, self.seed, self.output)


class Rl(config.training.RlOptions):
    """Train a language model with ReRe's reinforcement learning."""

    init: Init
    data: Data
    factors: Path | None = Field(
        None,
        description="factors.safetensors of a sequential baseline, for the collaborative reward.",
    )
    seed: Seed = 0
    output: RunFolder

    @model_validator(mode="after")
    def the_collaborative_reward_has_factors(self):
        if ("collaborative" in config.training.reward_weights(self.reward)) != (
            self.factors is not None
        ):
            raise ValueError("the collaborative reward and --factors need each other")
        return self

    def run(self) -> None:
        from rere.training.rl import rl

        rl(self, self.init, self.data, self.seed, self.output, self.factors)


class Baseline(config.evaluation.Evaluation):
    """Rank the test rows without a language model."""

    data: Data
    seed: Seed = 0
    output: Path = Field(description="Run folder: gets predictions.parquet and run.json.")

    def run(self) -> None:
        from rere.baselines.baseline import baseline

        predictions = self.output / "predictions.parquet"
        with provenance(self.output / "run.json", self, self.seed, [self.data]):
            baseline(self, self, self.data, self.seed, predictions)


class Popularity(Baseline, config.baselines.Popularity):
    """Rank by how often an item is a target of the training split."""


class RepeatLast(Baseline, config.baselines.RepeatLast):
    """Rank the user's own history, latest first, then by popularity."""


class ItemKnn(Baseline, config.baselines.ItemKnn):
    """Rank by similarity to the items of the user's history."""


class Gru4rec(Baseline, config.baselines.Gru4rec):
    """Recurrent sequential recommendation."""


class Caser(Baseline, config.baselines.Caser):
    """Convolutional sequential recommendation."""


class Sasrec(Baseline, config.baselines.Sasrec):
    """Self-attentive sequential recommendation."""


class Recommend(config.evaluation.Recommend):
    """Rank the test rows by constrained beam search over the catalogue."""

    model: DirectoryPath = Field(description="Folder of a model and its tokenizer.")
    data: Data
    seed: Seed = 0
    output: Predictions

    def run(self) -> None:
        from rere.evaluation.recommend import recommend

        recommend(self, self.model, self.data, self.seed, self.output)


class Decode(config.evaluation.Decoding):
    """Rank the test rows with a trained model in another way."""

    model: DirectoryPath = Field(description="Folder of a model and its tokenizer.")
    data: Data
    seed: Seed = 0
    output: Path = Field(description="Run folder: gets predictions.parquet and run.json.")

    def decode(self, factors: Path | None = None) -> None:
        from rere.evaluation.decode import decode

        predictions = self.output / "predictions.parquet"
        inputs = [self.model, self.data, *filter(None, [factors])]
        with provenance(self.output / "run.json", self, self.seed, inputs):
            decode(self, self, self.model, self.data, self.seed, predictions, factors)


class Bigrec(Decode, config.decoding.Bigrec):
    """Let the model write titles, and rank items by how near theirs are."""

    def run(self) -> None:
        self.decode()


class D3(Decode, config.decoding.D3):
    """Search by decisions, with the help of a sequential model."""

    factors: Path | None = Field(
        None, description="factors.test.safetensors of a sequential baseline, on these test rows."
    )

    @model_validator(mode="after")
    def a_share_has_factors(self):
        if (self.alpha < 1) != (self.factors is not None):
            raise ValueError("--alpha below 1 and --factors need each other")
        return self

    def run(self) -> None:
        self.decode(self.factors)


class RecommendTitles(config.evaluation.BeamSearch):
    """Print what a model recommends after a history of titles."""

    model: DirectoryPath = Field(description="Folder of a model that `rere sft` or `rl` wrote.")
    history: list[str] = Field(min_length=1, description="Titles of the catalogue, oldest first.")
    top: int = Field(10, ge=1, description="Titles to print.")
    seed: Seed = 0

    def run(self) -> None:
        from rere.evaluation.recommend import recommend_titles

        ranked = recommend_titles(self, self.model, self.history, self.top, self.seed)
        for rank, (title, score) in enumerate(ranked, start=1):
            shown = title if title.isprintable() else repr(title)
            print(f"{rank:{len(str(len(ranked)))}}  {score:8.3f}  {shown}")


class Metrics(config.run.Run):
    """Score a run's predictions: HR@K and NDCG@K over the whole catalogue."""

    predictions: Predictions
    data: Data
    output: Path = Field(description="metrics.json to write.")

    def run(self) -> None:
        from rere.evaluation.metrics import metrics

        run = config.run.Run(**self.model_dump(include=set(config.run.Run.model_fields)))
        metrics(self.predictions, self.data, run, self.output)


class Table(config.options.Options):
    """Gather runs into a table: .csv, .runs.csv, .md and .tex."""

    runs: list[Path] = Field(min_length=1, description="Run folders with metrics.json.")
    data: list[Path] = Field(min_length=1, description="Data folders, named after the data sets.")
    reference: str | None = Field(None, description="Method that paired tests compare with.")
    output: Path = Field(description="The .csv to write; the others lie beside it.")

    def run(self) -> None:
        from rere.reporting.tables import table

        table(self.runs, self.data, self.output, self.reference)


class Figure(config.options.Options):
    """Draw a table's methods as bars with intervals."""

    table: Path = Field(description="The table's .csv.")
    output: list[Path] = Field(min_length=1, description="Files to write, .pdf or .png.")

    def run(self) -> None:
        from rere.reporting.figures import figure

        figure(self.table, self.output)


class Curves(config.options.Options):
    """Draw how RL runs trained: validation, reward, hits, distinct items and KL."""

    runs: list[Path] = Field(min_length=1, description="Run folders with log.jsonl.")
    output: list[Path] = Field(min_length=1, description="Files to write, .pdf or .png.")

    def run(self) -> None:
        from rere.reporting.curves import curves

        curves(self.runs, self.output)


class Speed(config.benchmarks.Measurement):
    """Measure search, training and preprocessing: time, memory, results, beside plain versions."""

    models: list[DirectoryPath] = Field(min_length=1, description="Folders of the models.")
    names: list[str] = Field(description="What the table calls each of them.")
    test_rows: list[int] = Field(description="Test rows that each of them is timed on.")
    data: Data
    output: Path = Field(description="The .csv to write; .md lies beside it.")

    @model_validator(mode="after")
    def one_each(self):
        if not len(self.models) == len(self.names) == len(self.test_rows):
            raise ValueError("give as many --names and --test-rows as --models")
        return self

    def run(self) -> None:
        from rere.benchmarks.speed.table import speed

        speed(self, self.models, self.names, self.test_rows, self.data, self.output)


class SpeedCurves(config.benchmarks.Measurement):
    """Time the search against titles, beams and prompt length, preprocessing against reviews."""

    model: DirectoryPath = Field(description="Folder of the model and its tokenizer.")
    data: Data
    output: Path = Field(description="The .csv to write.")

    def run(self) -> None:
        from rere.benchmarks.speed.curves import speed_curves

        speed_curves(self, self.model, self.data, self.output)


class SpeedFigure(config.options.Options):
    """Draw the time of the search and of preprocessing as curves."""

    curves: Path = Field(description="The .csv that `rere speed-curves` wrote.")
    output: list[Path] = Field(min_length=1, description="Files to write, .pdf or .png.")

    def run(self) -> None:
        from rere.benchmarks.speed.figure import figure

        figure(self.curves, self.output)


class Search(config.benchmarks.Candidates):
    """Measure the ways to get candidates, and what beam search misses of the true top 10."""

    model: DirectoryPath = Field(description="Folder of the trained model and its tokenizer.")
    data: Data
    output: Path = Field(description="The .csv to write; the .md lies beside it.")

    def run(self) -> None:
        from rere.benchmarks.rollouts.table import search

        search(self, self.model, self.data, self.output)


class SearchFigure(config.options.Options):
    """Draw distinct candidates and hits against group size, and the error of beam search."""

    table: Path = Field(description="The .csv that `rere search` wrote.")
    output: list[Path] = Field(min_length=1, description="Files to write, .pdf or .png.")

    def run(self) -> None:
        from rere.benchmarks.rollouts.figure import figure

        figure(self.table, self.output)


class Schema(config.options.Options):
    """Print the JSON schema of a study's config, for editors."""

    def run(self) -> None:
        print(json.dumps(config.study.Study.model_json_schema(), indent=2))


STAGES: dict[str, type[BaseModel]] = {
    "fetch": Fetch,
    **preprocess_stages(),
    "audit": Audit,
    "token-lengths": TokenLengths,
    "backbone tiny": Tiny,
    "backbone pretrained": Pretrained,
    "sft": Sft,
    "preference": Preference,
    "rl": Rl,
    "baseline popularity": Popularity,
    "baseline repeat_last": RepeatLast,
    "baseline item_knn": ItemKnn,
    "baseline gru4rec": Gru4rec,
    "baseline caser": Caser,
    "baseline sasrec": Sasrec,
    "decode bigrec": Bigrec,
    "decode d3": D3,
    "recommend": Recommend,
    "recommend --history": RecommendTitles,
    "metrics": Metrics,
    "table": Table,
    "figure": Figure,
    "curves": Curves,
    "speed": Speed,
    "speed-curves": SpeedCurves,
    "speed-figure": SpeedFigure,
    "search": Search,
    "search-figure": SearchFigure,
    "schema": Schema,
}
