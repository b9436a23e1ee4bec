"""Claims about methods, and the comparisons of a study's tables that decide them."""

import json
from typing import Any

from pydantic import Field, field_validator

from rere.config.evaluation import Metric
from rere.config.options import Name, Options


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

    claims: dict[Name, Claim] = Field({}, description="Claims by name, as name:JSON.")

    @field_validator("claims", mode="before")
    @classmethod
    def read_claims(cls, claims: Any) -> Any:
        """Claims as a mapping; a command line has them as a list of name:JSON."""
        if not isinstance(claims, list):
            return claims
        pairs = [str(each).partition(":")[::2] for each in claims]
        try:
            return {name: json.loads(text) for name, text in pairs}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"write name:JSON ({error})") from None
