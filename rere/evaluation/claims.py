"""The verdict on a claim, by a rule that is written down before any number is known."""

from collections.abc import Sequence
from typing import NamedTuple

from rere.evaluation.significance import Difference

LIMIT = 0.05
SUPPORTED, CONTRADICTED = "supported", "contradicted"
NOT_DECIDED, NOT_RUN = "not decided", "not run"
RULE = {
    NOT_RUN: "A run that the claim needs is missing, or no table of the study speaks to it.",
    CONTRADICTED: "At least one of its comparisons is lost.",
    SUPPORTED: "All of its comparisons are won, on all of their data sets.",
    NOT_DECIDED: "Anything else.",
}
"""The verdicts and when each holds; the first that holds counts."""
COMPARISON_RULE = (
    "A comparison is won if the 95 % interval of the difference lies above 0 and the adjusted p is "
    "below .05. It is lost if the interval lies below 0 and the adjusted p is below .05. Else it "
    "is open. Intervals are over users and seeds, two-way clustered. A comparison of one seed, or "
    "of seeds that do not pair, has an interval over users alone. That says nothing of other "
    "seeds, so it is open. p values are Holm-adjusted over all comparisons of all claims."
)
WON, LOST, OPEN = "won", "lost", "open"


class AdjustedDifference(NamedTuple):
    """A method's difference from another one, with a p value adjusted over all comparisons."""

    difference: Difference
    adjusted: float
    is_over_seeds: bool  # and users, else over users alone

    @property
    def outcome(self) -> str:
        """`won`, `lost` or `open`, by COMPARISON_RULE."""
        if not self.is_over_seeds or not self.adjusted < LIMIT:
            return OPEN
        if self.difference.low > 0:
            return WON
        return LOST if self.difference.high < 0 else OPEN


def decide(comparisons: Sequence[AdjustedDifference], num_missing: int) -> str:
    """The verdict on a claim with these comparisons, of which `num_missing` more lack a run.

    A claim without comparisons is not run.
    """
    if num_missing or not comparisons:
        return NOT_RUN
    outcomes = {each.outcome for each in comparisons}
    if LOST in outcomes:
        return CONTRADICTED
    return SUPPORTED if outcomes == {WON} else NOT_DECIDED
