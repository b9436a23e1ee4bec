"""Claims about methods, and the comparisons of a study's tables that decide them."""

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from rere.config.evaluation import Metric
from rere.config.options import Name, Options, read_words


class Compared(Options):
    """Comparisons of a method with others, on each data set and backbone of a table."""

    table: str = Field(description="Name of the table that has the runs.")
    method: str = Field(description="Method that the claim calls better.")
    than: list[str] = Field(
        min_length=1,
        description="Methods that it must be better than, each of them; the name of a grid stands "
        "for all of its methods.",
    )
    datasets: list[str] | None = Field(
        None, min_length=1, description="Names of data sets. None: those of the table."
    )
    backbones: list[str] | None = Field(
        None,
        min_length=1,
        description="Names of backbones, on which both methods are compared; one without a "
        "backbone is compared with the other on each. None: those of the table.",
    )


class Claim(Options):
    """A sentence, and the comparisons that decide it."""

    sentence: str = Field(description="What is claimed, in one line.")
    metric: Metric = Field(
        "NDCG@10", description="Metric of the comparisons: HR@K or NDCG@K for K of 1, 3, 5, 10, 20."
    )
    comparisons: list[Compared] = Field(
        [], description="Comparisons, all of which must be won. Empty: not run in this study."
    )
    each_dataset: bool = Field(
        False,
        description="Give each data set a verdict of its own, instead of one on which all of them "
        "must agree.",
    )

    @field_validator("sentence")
    @classmethod
    def check_sentence(cls, sentence: str) -> str:
        if not sentence.strip() or not sentence.isprintable():
            raise ValueError("write a sentence in one line")
        return sentence


class Claims(Options):
    """Claims by name."""

    claims: Annotated[dict[Name, Claim], BeforeValidator(read_words)] = Field(
        {}, description="Claims by name, as name:JSON."
    )
