"""A run of a study and its place."""

from pydantic import BaseModel, ConfigDict, Field

NO_BACKBONE = "none"
"""Stands in a run's path where a method has no language model."""


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
