"""A run of a study and its folder."""

from pydantic import BaseModel, ConfigDict, Field

NO_BACKBONE = "none"
"""The backbone in the path of a run without a language model."""


class Run(BaseModel):
    """One method, trained and evaluated with one seed: a folder below results/runs."""

    model_config = ConfigDict(frozen=True)

    dataset: str = Field(description="Name of the data set.")
    backbone: str = Field(
        description="Name of the backbone, `none` for a method without a language model."
    )
    method: str = Field(description="Name of the method.")
    seed: int = Field(description="Seed of the run.")

    @property
    def folder(self) -> str:
        return f"results/runs/{self.dataset}/{self.backbone}/{self.method}/seed{self.seed}"
