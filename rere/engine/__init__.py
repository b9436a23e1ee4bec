"""Many candidates behind one prompt: one forward pass, scoring with gradient, and search."""

from typing import Literal

from rere.config.options import Scoring

SearchScoring = Scoring | Literal["decisions"]
"""`decisions` predicts the same tokens as `catalogue`, but normalises over all tokens."""
