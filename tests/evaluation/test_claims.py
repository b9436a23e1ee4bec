"""Verdicts on claims, by hand."""

import numpy as np
import pytest

from rere.evaluation.claims import LOST, OPEN, RULE, WON, AdjustedDifference, decide
from rere.evaluation.significance import (
    Difference,
    bootstrap_interval,
    has_paired_seeds,
    paired_permutation_test,
    user_clustered_test,
)

ABOVE, BELOW, ACROSS = (0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2)


def difference_of(interval, adjusted=0.01, is_over_seeds=True):
    low, high = interval
    difference = Difference((low + high) / 2, low, high, adjusted)
    return AdjustedDifference(difference, adjusted, is_over_seeds)


@pytest.mark.parametrize(
    ("comparison", "outcome"),
    [
        (difference_of(ABOVE), WON),
        (difference_of(BELOW), LOST),
        (difference_of(ACROSS), OPEN),
        (difference_of((0.0, 0.2)), OPEN),
        (difference_of((-0.2, 0.0)), OPEN),
        (difference_of(ABOVE, 0.05), OPEN),
        (difference_of(BELOW, 0.05), OPEN),
        (difference_of(ABOVE, 0.0499), WON),
        (difference_of(ABOVE, is_over_seeds=False), OPEN),
        (difference_of(BELOW, is_over_seeds=False), OPEN),
    ],
)
def test_a_comparison_is_won_or_lost_by_interval_and_adjusted_p(comparison, outcome):
    assert comparison.outcome == outcome


@pytest.mark.parametrize(
    ("comparisons", "num_missing", "verdict"),
    [
        ([], 0, "not run"),
        ([], 1, "not run"),
        ([ABOVE, BELOW], 1, "not run"),
        ([ABOVE, ABOVE], 0, "supported"),
        ([ABOVE, ACROSS], 0, "not decided"),
        ([ACROSS, ACROSS], 0, "not decided"),
        ([ABOVE, ACROSS, BELOW], 0, "contradicted"),
    ],
)
def test_a_claim_needs_all_of_its_comparisons(comparisons, num_missing, verdict):
    assert decide([difference_of(each) for each in comparisons], num_missing) == verdict
    assert verdict in RULE


def test_a_difference_over_users_alone():
    # Users 0 (1, 1) and 1 (-1): the mean is 1/3; resamples 00, 01, 10, 11 have 1, 1/3, 1/3, -1.
    differences, users = np.array([1.0, 1.0, -1.0]), np.array([0, 0, 1])
    mean, low, high, p_value = user_clustered_test(differences, users)
    assert (mean, low, high) == (pytest.approx(1 / 3), -1, 1)
    # Sums 2 and -1: flipped, they are 1, 3, -3 or -1, all at least as far from 0 as 1.
    assert p_value == 1
    rng = np.random.default_rng(0)
    differences, users = rng.normal(0.3, 1, 90), rng.integers(0, 20, 90)
    low, high = bootstrap_interval(differences[:, None], users)
    expected = (differences.mean(), low[0], high[0], paired_permutation_test(differences, users))
    assert user_clustered_test(differences, users) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seeds", "others", "is_paired"),
    [
        ([0, 1, 2], [0, 1, 2], True),
        ([0, 1, 2], [5], True),
        ([5], [0, 1], True),
        ([0], [0], False),
        ([0], [1], False),
        ([0, 1], [1, 2], False),
        ([0, 1], [0, 1, 2], False),
    ],
)
def test_seeds_pair_if_they_are_the_same_or_one_run_serves_all(seeds, others, is_paired):
    assert has_paired_seeds(seeds, others) is is_paired
