"""Rankings by a language model that do not train it."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rere.config.evaluation import BeamSearch
from rere.config.options import Options, Scoring, refuse_renamed, same


class Beam(Options):
    """Beam search over the catalogue, as of trained models: the backbone itself."""

    algorithm: Literal["beam"] = "beam"
    num_beams: int = same(BeamSearch, "num_beams")
    scoring: Scoring = same(BeamSearch, "scoring")


class Bigrec(Options):
    """Generate a title freely and rank items by similarity to it (arXiv 2308.08434)."""

    algorithm: Literal["bigrec"] = "bigrec"


class D3(Options):
    """Search in which forced tokens score 0, perhaps with a baseline (arXiv 2406.14900)."""

    algorithm: Literal["d3"] = "d3"
    alpha: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Weight of the language model's log-probabilities; the rest is that of the "
        "sequential baseline. 1: no baseline.",
    )
    num_beams: int = same(BeamSearch, "num_beams")


Decode = Annotated[
    Beam | Bigrec | D3,
    Field(discriminator="algorithm"),
    BeforeValidator(lambda values: refuse_renamed(values, D3.model_fields)),
]
