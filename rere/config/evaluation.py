"""How test rows are scored."""

from typing import Literal

from pydantic import Field

from rere.config.options import Options, Scoring

CUTOFFS = (1, 3, 5, 10, 20)
"""The K of every HR@K and NDCG@K."""


class Evaluation(Options):
    """What every method's test run shares."""

    rows: int | None = Field(
        None, ge=1, description="Seeded sample of the test split, the same for all; None for all."
    )
    list_length: int = Field(
        50, ge=max(CUTOFFS), description="Items kept a row, more than the largest K asks for."
    )


class Arithmetic(Options):
    """How a trained model computes."""

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Arithmetic of the pass.")


class Passes(Arithmetic):
    """How it does on many rows."""

    batch_size: int | None = Field(
        None, ge=1, description="Rows a pass; None for what memory takes. Memory, not results."
    )


class Search(Arithmetic):
    """Constrained beam search over the catalogue."""

    num_beams: int = Field(50, ge=1, description="Beams of the search.")
    scoring: Scoring = Field(
        "catalogue",
        description="Probabilities over the tokens that the catalogue allows, or over all.",
    )
    length_penalty: float = Field(
        0.0, ge=0, description="Scores are divided by the title's tokens to this power."
    )


class Recommend(Passes, Search, Evaluation):
    """Constrained beam search for the rows of the test split."""


class Decoding(Passes, Evaluation):
    """What methods that recommend in a way of their own share with the others' test run."""
