"""The `rere` command: one thin subcommand a stage.

A stage's flags are its options of `rere.config` and the paths that it reads and writes. The
stages themselves are imported when they run, so that `rere --help` answers at once.
"""

import contextlib
import difflib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro
from pydantic import Field

from rere import config
from rere.errors import InputError
from rere.provenance import provenance

Data = Annotated[Path, Field(description="Folder that `rere preprocess` wrote.")]
Seed = Annotated[int, Field(ge=0, description="Seed of everything random.")]
Init = Annotated[Path, Field(description="Folder of the model and tokenizer to start from.")]
RunFolder = Annotated[Path, Field(description="Run folder: gets model/, log.jsonl and run.json.")]
Predictions = Annotated[Path, Field(description="predictions.parquet of a run.")]


class Fetch(config.Fetch):
    """Download a public data set, checked against its sha256."""

    output: Path = Field(description="Folder for the raw files; replaced as a whole.")

    def run(self) -> None:
        from rere.data.fetch import fetch

        fetch(self.source, self.output)


class Preprocess(config.Preprocess):
    """Turn raw interactions into a catalogue and train, valid and test splits."""

    raw: Path = Field(description="Folder with the raw files.")
    output: Path = Field(description="Folder for the splits; replaced as a whole.")

    def run(self) -> None:
        from rere.data.preprocess import preprocess

        preprocess(self, self.raw, self.output)


class Tiny(config.Tiny):
    """A small Qwen2 from scratch, its tokenizer trained on one data set's training text."""

    source: tyro.conf.Suppress[Literal["tiny"]] = "tiny"
    corpus: Data
    output: Path = Field(description="Folder for weights and tokenizer; replaced as a whole.")

    def run(self) -> None:
        from rere.backbones import backbone

        backbone(self, self.corpus, self.output)


class Pretrained(config.Pretrained):
    """A published model: a hub id or a local folder."""

    source: tyro.conf.Suppress[Literal["pretrained"]] = "pretrained"
    output: Path = Field(description="Folder for weights and tokenizer; replaced as a whole.")

    def run(self) -> None:
        from rere.backbones import backbone

        backbone(self, None, self.output)


class Sft(config.SftOptions):
    """Fine-tune a language model on the training split's titles."""

    init: Init
    data: Data
    seed: Seed = 0
    output: RunFolder

    def run(self) -> None:
        from rere.training.sft import sft

        with provenance(self.output / "run.json", self, self.seed, [self.init, self.data]):
            sft(self, self.init, self.data, self.seed, self.output)


class Rl(config.RlOptions):
    """Train a language model with ReRe's reinforcement learning."""

    init: Init
    data: Data
    seed: Seed = 0
    output: RunFolder

    def run(self) -> None:
        from rere.training.rl import rl

        with provenance(self.output / "run.json", self, self.seed, [self.init, self.data]):
            rl(self, self.init, self.data, self.seed, self.output)


class Baseline(config.Evaluation):
    """Rank the test rows without a language model."""

    data: Data
    seed: Seed = 0
    output: Path = Field(description="Run folder: gets predictions.parquet and run.json.")

    def run(self) -> None:
        from rere.baselines.baseline import baseline

        predictions = self.output / "predictions.parquet"
        with provenance(self.output / "run.json", self, self.seed, [self.data]):
            baseline(self, self, self.data, self.seed, predictions)


class Popularity(Baseline, config.Popularity):
    """Rank by how often an item is a target of the training split."""

    model: tyro.conf.Suppress[Literal["popularity"]] = "popularity"


class RepeatLast(Baseline, config.RepeatLast):
    """Rank the user's own history, latest first, then by popularity."""

    model: tyro.conf.Suppress[Literal["repeat_last"]] = "repeat_last"


class Sasrec(Baseline, config.Sasrec):
    """Self-attentive sequential recommendation."""

    model: tyro.conf.Suppress[Literal["sasrec"]] = "sasrec"


class Recommend(config.Recommend):
    """Rank the test rows by constrained beam search over the catalogue."""

    model: Path = Field(description="Folder of a model and its tokenizer.")
    data: Data
    seed: Seed = 0
    output: Predictions

    def run(self) -> None:
        from rere.evaluation.recommend import recommend

        recommend(self, self.model, self.data, self.seed, self.output)


class Metrics(config.Run):
    """Score a run's predictions: HR@K and NDCG@K over the whole catalogue."""

    predictions: Predictions
    data: Data
    output: Path = Field(description="metrics.json to write.")

    def run(self) -> None:
        from rere.evaluation.metrics import metrics

        run = config.Run(**self.model_dump(include=set(config.Run.model_fields)))
        metrics(self.predictions, self.data, run, self.output)


class Table(config.Options):
    """Gather runs into a table: .csv, .runs.csv, .md and .tex."""

    runs: list[Path] = Field(min_length=1, description="Run folders with metrics.json.")
    data: list[Path] = Field(min_length=1, description="Data folders, named after the data sets.")
    reference: str | None = Field(None, description="Method that paired tests compare with.")
    output: Path = Field(description="The .csv to write; the others lie beside it.")

    def run(self) -> None:
        from rere.reporting.tables import table

        table(self.runs, self.data, self.output, self.reference)


class Figure(config.Options):
    """Draw a table's methods as bars with intervals."""

    table: Path = Field(description="The table's .csv.")
    output: list[Path] = Field(min_length=1, description="Files to write, .pdf or .png.")

    def run(self) -> None:
        from rere.reporting.figures import figure

        figure(self.table, self.output)


class Schema(config.Options):
    """Print the JSON schema of a study's config, for editors."""

    def run(self) -> None:
        print(json.dumps(config.Study.model_json_schema(), indent=2))


def named(command: type, name: str) -> Any:
    return Annotated[command, tyro.conf.subcommand(name=name)]


COMMANDS: dict[str, Any] = {
    "fetch": Fetch,
    "preprocess": Preprocess,
    "backbone": named(Tiny, "tiny") | named(Pretrained, "pretrained"),
    "sft": Sft,
    "rl": Rl,
    "baseline": (
        named(Popularity, "popularity") | named(RepeatLast, "repeat_last") | named(Sasrec, "sasrec")
    ),
    "recommend": Recommend,
    "metrics": Metrics,
    "table": Table,
    "figure": Figure,
    "schema": Schema,
}
SUMMARIES = {
    name: "Store a language model: tiny or pretrained."
    if name == "backbone"
    else Baseline.__doc__
    if name == "baseline"
    else command.__doc__
    for name, command in COMMANDS.items()
}


def main() -> None:
    """Run one stage; bad input ends in one line on standard error and status 1 (usage: 2)."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    stage, *arguments = arguments
    if stage not in COMMANDS:
        close = difflib.get_close_matches(stage, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else "see rere --help"
        fail(f"rere: there is no stage {stage!r}; {hint}", 2)
    command = parse(stage, arguments)
    try:
        command.run()
    except InputError as error:
        fail(f"rere {stage}: {error}", 1)
    except OSError as error:
        fail(f"rere {stage}: {error.filename or ''}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        fail(f"rere {stage}: interrupted", 130)


def parse(stage: str, arguments: list[str]) -> Any:
    """The stage's command with its options; tyro's boxed errors become one line."""
    errors = io.StringIO()
    # tyro folds to the terminal's width, which would cut words of the line in two.
    width = os.environ.get("COLUMNS")
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(COMMANDS[stage], prog=f"rere {stage}", args=arguments)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    text = re.sub(r"[─-╿]+", " ", errors.getvalue()).split("For full helptext")[0]
    fail(f"rere {stage}: {' '.join(text.split())}; see rere {stage} --help", 2)


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in SUMMARIES.items()]
    return "\n".join(
        ["usage: rere STAGE [OPTIONS]", "", *lines, "", "`rere STAGE --help` lists its options."]
    )


def fail(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(status)
