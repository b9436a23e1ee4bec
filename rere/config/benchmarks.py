"""Tables of measurements: of speed, and of the ways to get candidates."""

from typing import Annotated

from pydantic import Field

from rere.config.options import Options
from rere.config.run import Run


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
    """How the search, training and preprocessing are measured."""

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
        24,
        ge=0,
        description="Test rows, of all lengths, that scoring and steps of S-DPO and RL are "
        "measured on; 0: none is.",
    )
    training_batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 2, 4],
        min_length=1,
        description="Prompts a pass of them: each side takes what it is fastest with, a plain RL "
        "step also half a prompt's group.",
    )
    sft_rows: int = Field(
        768,
        ge=32,
        description="Training rows that supervised fine-tuning is measured on; of many, ours has "
        "some of like length for a pass, as in a run.",
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
    reviews: list[Annotated[int, Field(ge=1000)]] = Field(
        [],
        description="Synthetic reviews of the figure that preprocessing is measured on, ascending; "
        "the last is the table's; none: it is not measured.",
    )
    curve_batches: int = Field(
        6, ge=1, description="Timed batches a point of the figure, of the smallest size."
    )
    curve_seconds: float = Field(
        5.0,
        gt=0,
        description="A curve of the figure ends where a batch, or preprocessing, takes longer.",
    )


class Speed(Measurement):
    """Measurements of search, training and preprocessing, beside `generate` and plain versions."""

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
