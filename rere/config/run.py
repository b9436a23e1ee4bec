"""A run of a study and its folder."""

from pydantic import BaseModel, ConfigDict, Field

from rere.config.evaluation import subfolder
from rere.config.options import MAX_INTEGER

NO_BACKBONE = "none"
"""The backbone in the path of a run without a language model."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files of a stored language model and its tokenizer."""

TRAINED_FILES = (*MODEL_FILES, "catalogue.safetensors")
"""The files of a trained one."""

ADAPTED_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "base.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "catalogue.safetensors",
)
"""The files of one that is stored as adapters of another model."""

MAX_CHECKPOINTS = 4
"""A training run has at most so many on disk."""

CARD = "README.md"
"""The model card beside them, which nothing is made from: no input or output of a rule."""

BASELINE_FILES = ("baseline.json", "baseline.safetensors", "items.parquet")
"""The files of the model of a baseline."""


def stored_files(is_adapters: bool) -> tuple[str, ...]:
    """The files of a trained model, stored as adapters or as a whole."""
    return ADAPTED_FILES if is_adapters else TRAINED_FILES


class Run(BaseModel):
    """One method, trained and evaluated with one seed: a folder below results/runs."""

    model_config = ConfigDict(frozen=True)

    dataset: str = Field(description="Name of the data set.")
    backbone: str = Field(
        description="Name of the backbone, `none` for a method without a language model."
    )
    method: str = Field(description="Name of the method.")
    seed: int = Field(ge=0, le=MAX_INTEGER, description="Seed of the run.")
    evaluation: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.+=-]*$",
        description="How its test rows are ranked: options of `evaluation` that change results, as "
        "in rows=40-list_length=50. Empty: unknown.",
    )

    @property
    def seed_folder(self) -> str:
        """The folder of what it trains, which does not depend on `evaluation`."""
        return f"results/runs/{self.dataset}/{self.backbone}/{self.method}/seed{self.seed}"

    @property
    def folder(self) -> str:
        """The folder of its predictions and metrics."""
        return f"{self.seed_folder}{subfolder(self.evaluation)}"
