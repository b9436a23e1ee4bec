"""Benchmarks: speed against plain implementations, and the quality of rollout strategies."""

from typing import Annotated, Literal

from pydantic import Field

from rere.config.options import MAX_BEAMS, Options
from rere.config.run import Run


class BenchmarkedModel(Options):
    """A backbone, or a method's model, and the number of its test rows."""

    backbone: str = Field(description="Name of the backbone.")
    method: str | None = Field(
        None, description="Method whose trained model is used. None: the untrained backbone."
    )
    seed: int = Field(0, ge=0, description="Seed of the method's run.")
    rows: int = Field(200, ge=1, description="Test rows, all of them timed.")

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.backbone, self.method)))

    def folder(self, dataset: str) -> str:
        """Return the folder of the model trained on a data set, or of the backbone."""
        if self.method is None:
            return f"results/backbones/{self.backbone}"
        run = Run(dataset=dataset, backbone=self.backbone, method=self.method, seed=self.seed)
        return f"{run.folder}/model"


class SpeedOptions(Options):
    """Sizes at which search, training and preprocessing are timed."""

    seed: int = Field(0, ge=0, description="Seed of the prompts' wording and the synthetic data.")
    beams: list[Annotated[int, Field(ge=2, le=MAX_BEAMS)]] = Field(
        [16, 50], min_length=1, description="Numbers of beams; the figure uses the first."
    )
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [4, 16, 32],
        min_length=1,
        description="Rows per pass of a search, ascending; each side uses its fastest, the figure "
        "the first.",
    )
    training_rows: int = Field(
        24,
        ge=0,
        description="Test rows, of all lengths, for scoring, S-DPO and RL. 0: training is not "
        "timed.",
    )
    training_batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 2, 4],
        min_length=1,
        description="Prompts per training pass, of SFT 8 times as many rows; each side uses its "
        "fastest. RL also tries a whole step per pass, plain RL half a prompt's candidates.",
    )
    sft_rows: int = Field(
        768,
        ge=32,
        description="Training rows for SFT; with many, passes have rows of similar length, as in "
        "a run.",
    )
    catalogue_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [1000, 10_000, 100_000, 1_000_000],
        min_length=1,
        description="Numbers of synthetic titles in the figure, ascending; the table's prefix tree "
        "has the last.",
    )
    sweep_beams: list[Annotated[int, Field(ge=1, le=MAX_BEAMS)]] = Field(
        [1, 5, 10, 20, 50, 100, 200],
        min_length=1,
        description="Numbers of beams in the figure, ascending.",
    )
    prompt_lengths: list[Annotated[int, Field(ge=1)]] = Field(
        [64, 128, 256, 512],
        min_length=1,
        description="Prompt lengths in the figure in tokens, ascending.",
    )
    reviews: list[Annotated[int, Field(ge=1000)]] = Field(
        [],
        description="Numbers of synthetic reviews in the figure, ascending; the table has the last "
        "one. Empty: preprocessing is not timed.",
    )
    curve_batches: int = Field(6, ge=1, description="Timed batches per point of the figure.")
    curve_seconds: float = Field(
        5.0,
        gt=0,
        description="A curve of the figure ends when a batch, or preprocessing, takes longer.",
    )


class SpeedBenchmark(SpeedOptions):
    """Time and memory of search, training and preprocessing, against plain implementations."""

    measures: Literal["speed"] = Field("speed", description="What is measured.")
    dataset: str = Field(description="Name of the data set.")
    models: list[BenchmarkedModel] = Field(
        min_length=1, description="Models of the table; the figure uses the first."
    )

    @property
    def folders(self) -> list[str]:
        return [model.folder(self.dataset) for model in self.models]


class GpuOptions(Options):
    """Sizes at which a GPU is compared with the CPU and timed."""

    seconds: float = Field(
        220.0,
        gt=0,
        description="Time to spend; parts left over are listed as not measured.",
    )
    device: str = Field("auto", description="Device of torch. auto: a GPU, or an error.")
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="Peak bfloat16 TFLOP/s of the device, dense. None: looked up for known GPUs.",
    )
    seed: int = Field(0, ge=0, description="Seed of the weights, the titles and the prompts.")
    scale: int = Field(
        1, ge=1, le=16, description="Divides widths, layers and vocabulary, to try the command."
    )
    titles: int = Field(10_000, ge=50, description="Synthetic titles of 6 to 15 tokens.")
    prompt_tokens: int = Field(
        250,
        ge=5,
        description="Tokens of the longest prompt; prompts have 60 to 100 percent of this.",
    )
    prompts: int = Field(32, ge=1, description="Prompts of a search and of an RL step.")
    sft_rows: int = Field(128, ge=1, description="Rows of an SFT step.")
    beams: list[Annotated[int, Field(ge=2, le=MAX_BEAMS)]] = Field(
        [16, 50], min_length=1, description="Numbers of beams; the first is timed before training."
    )
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [8, 32],
        min_length=1,
        description="Prompts per pass of a search, ascending; each side uses its fastest.",
    )
    training_batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 4, 16, 32],
        min_length=1,
        description="Prompts with their candidates per training pass of RL, ascending; each side "
        "uses its fastest.",
    )
    sft_batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [8, 32, 128],
        min_length=1,
        description="Rows per pass of SFT, ascending; each side uses its fastest.",
    )
    repeats: int = Field(3, ge=1, description="Timed steps or searches of each side.")


class RolloutOptions(Options):
    """Sizes at which rollout strategies are measured."""

    seed: int = Field(0, ge=0, description="Seed of the run, the prompts' wording and sampling.")
    rows: int = Field(400, ge=1, description="Test rows, all of them timed.")
    group_sizes: list[Annotated[int, Field(ge=1, le=MAX_BEAMS)]] = Field(
        [8, 16, 32], min_length=1, description="Candidates per prompt, for every strategy."
    )
    beams: list[Annotated[int, Field(ge=10, le=MAX_BEAMS)]] = Field(
        [16, 50, 200],
        min_length=1,
        description="Numbers of beams that are compared with the true top 10.",
    )
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [2, 8, 32],
        min_length=1,
        description="Rows per pass, ascending; each strategy uses its fastest.",
    )
    max_nodes: int = Field(
        1024,
        ge=1,
        description="Nodes that the proof of a row's top 10 may expand; rows that need more are "
        "left out of the comparison.",
    )


class RolloutBenchmark(RolloutOptions, BenchmarkedModel):
    """Distinct items, hits and seconds of every rollout strategy, and what beam search misses."""

    measures: Literal["rollouts"] = Field("rollouts", description="What is measured.")
    dataset: str = Field(description="Name of the data set.")

    @property
    def folders(self) -> list[str]:
        return [self.folder(self.dataset)]


Benchmark = Annotated[SpeedBenchmark | RolloutBenchmark, Field(discriminator="measures")]
