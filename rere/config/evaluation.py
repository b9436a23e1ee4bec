"""How test rows are ranked."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from rere.config.options import MAX_BEAMS, Options, Precision, Scoring
from rere.errors import unknown

CUTOFFS = (1, 3, 5, 10, 20)
"""The K of every HR@K and NDCG@K."""
METRICS = [f"{name}@{k}" for name in ("HR", "NDCG") for k in CUTOFFS]


def known_metric(name: str) -> str:
    """Return the name of a metric; raises ValueError if it is none of METRICS."""
    if name not in METRICS:
        raise ValueError(unknown(name, METRICS))
    return name


Metric = Annotated[
    str, AfterValidator(known_metric), WithJsonSchema({"type": "string", "enum": METRICS})
]


class Evaluation(Options):
    """Test rows and length of the lists, the same for every method."""

    rows: int | None = Field(
        None,
        ge=1,
        description="Number of test rows: a fixed sample, the same for every method. None: all.",
    )
    list_length: int = Field(50, ge=max(CUTOFFS), le=100_000, description="Items kept per row.")


class Arithmetic(Options):
    """Precision of a trained model's arithmetic."""

    dtype: Precision = Field(
        "auto",
        description="Precision of forward passes. auto: bfloat16 on a GPU, else float32. Logits "
        "and log-probabilities are float32.",
    )


class Inference(Arithmetic):
    """Precision and batch size."""

    batch_size: int | None = Field(
        None,
        ge=1,
        description="Rows per forward pass. Changes memory and speed; results differ by rounding "
        "only. None: as many as fit in memory.",
    )


class BeamSearch(Arithmetic):
    """Constrained beam search over the catalogue."""

    num_beams: int = Field(50, ge=1, le=MAX_BEAMS, description="Beams of the search.")
    scoring: Scoring = Field(
        "catalogue",
        description="Tokens over which probabilities are normalised: those that continue a title "
        "of the catalogue, or the whole vocabulary.",
    )
    length_penalty: float = Field(
        0.0,
        ge=0,
        description="Scores are divided by the number of the title's tokens to this power.",
    )


class Ranking(BeamSearch, Evaluation):
    """The options of `evaluation` that change results."""


class Recommend(Inference, Ranking):
    """Rank the catalogue for the test rows by constrained beam search."""


class Decoding(Inference, Evaluation):
    """The options of `evaluation` that `decode` methods use."""


def applicable(evaluation: Evaluation, stage: str) -> Evaluation:
    """Return the options of `evaluation` that methods of a stage use."""
    kind = {"baseline": Evaluation, "decode": Decoding}.get(stage, Recommend)
    return kind(**evaluation.model_dump(include=set(kind.model_fields)))


def spell(evaluation: Evaluation) -> str:
    """Return all options that change results as one text: `rows=None-list_length=50`."""
    values = evaluation.model_dump(exclude={"batch_size"})
    return "-".join(f"{name}={value}" for name, value in values.items())


def read_spelling(text: str) -> dict[str, str]:
    """Return the options in a text of `spell`, by name."""
    pairs = (each.partition("=") for each in re.split("-(?=[a-z_]+=)", text) if each)
    return {name: value for name, _, value in pairs}


DEFAULTS = read_spelling(spell(Ranking()))


def subfolder(text: str) -> str:
    """Return the options in a text of `spell` that are not at their defaults, as part of a path.

    It is `/rows=40-num_beams=20`, or empty if all have their defaults.
    """
    given = read_spelling(text).items()
    changed = "-".join(f"{name}={value}" for name, value in given if DEFAULTS.get(name) != value)
    return f"/{changed}" if changed else ""
