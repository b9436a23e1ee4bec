"""Coverage of intervals, levels of tests, and Holm's correction by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rere.evaluation import significance
from rere.evaluation.significance import (
    bootstrap_interval,
    holm,
    paired_permutation_test,
    sum_by_user,
    two_way_clustered_test,
)


def clustered(rng, users, mean=0.0):
    """Values and users of rows, one to five per user, with a random effect of each user."""
    user = np.repeat(np.arange(users), rng.integers(1, 6, users))
    return mean + rng.normal(size=users)[user] + rng.normal(size=len(user)), user


def test_interval_of_a_constant_is_the_constant():
    low, high = bootstrap_interval(np.full((6, 2), [0.25, 1.0]), np.array([4, 4, 9, 9, 9, 2]))
    assert low == pytest.approx([0.25, 1.0])
    assert high == pytest.approx([0.25, 1.0])


def test_interval_of_two_users_spans_both():
    # Users 0 (0, 0) and 1 (1): resamples 00, 01, 10, 11 with means 0, 1/3, 1/3, 1, each p = 1/4.
    values, users = np.array([[0.0], [0.0], [1.0]]), np.array([0, 0, 1])
    assert [bound.item() for bound in bootstrap_interval(values, users)] == [0, 1]
    middle = bootstrap_interval(values, users, level=0.4)  # quantiles .3 and .7: both 1/3
    assert [bound.item() for bound in middle] == pytest.approx([1 / 3, 1 / 3])


def test_interval_covers_the_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = {"users": 0, "rows": 0}
    for _ in range(400):
        values, users = clustered(rng, users=80)
        for name, clusters in {"users": users, "rows": np.arange(len(users))}.items():
            low, high = bootstrap_interval(values[:, None], clusters, resamples=300)
            covered[name] += bool(low[0] <= 0 <= high[0])
    # Binomial(400, .95) has a standard deviation of 1.1 %; a percentile interval is a bit short.
    assert 0.915 <= covered["users"] / 400 <= 0.975
    # With rows as clusters it covers less often: rows of a user are not independent.
    assert covered["rows"] / 400 < 0.88


def test_interval_does_not_depend_on_chunks_or_user_ids(monkeypatch):
    values, users = clustered(np.random.default_rng(1), users=50)
    whole = bootstrap_interval(values[:, None], users, resamples=100)
    monkeypatch.setattr(significance, "MAX_WEIGHTS", 50 * 7)
    chunked = bootstrap_interval(values[:, None], users * 10 + 3, resamples=100)
    assert np.allclose(whole, chunked, atol=1e-12)
    other = bootstrap_interval(values[:, None], users, resamples=100, seed=1)
    assert not np.allclose(whole, other)


def test_permutation_equals_all_sign_flips():
    differences = np.array([0.5, 0.2, -0.1, 0.4, 0.3, 0.6])
    users = np.array([0, 0, 1, 2, 3, 4])
    sums = [0.7, -0.1, 0.4, 0.3, 0.6]  # observed 1.9; of 32 flips those with |sum| >= 1.9:
    flips = [abs(np.dot(signs, sums)) for signs in itertools.product([1, -1], repeat=5)]
    exact = np.mean(np.array(flips) >= 1.9 - 1e-9)  # 2.1 and 1.9, either sign: 4 / 32
    assert exact == pytest.approx(4 / 32)
    assert paired_permutation_test(differences, users, resamples=40000) == pytest.approx(
        exact, abs=0.01
    )


def test_permutation_equals_scipys_on_sums_by_user():
    differences, users = clustered(np.random.default_rng(3), users=30, mean=0.3)
    theirs = stats.permutation_test(
        (sum_by_user(differences, users),),
        lambda sums, axis: np.abs(sums.sum(axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=20000,
        rng=0,
    )
    ours = paired_permutation_test(differences, users, resamples=20000)
    assert 0.01 < ours < 0.9
    # Two samples of 20,000: standard deviations of at most .0035.
    assert ours == pytest.approx(theirs.pvalue, abs=0.015)


def test_permutation_is_two_sided_and_never_zero():
    users = np.arange(40)
    better = paired_permutation_test(np.full(40, 0.1), users, resamples=999)
    assert better == paired_permutation_test(np.full(40, -0.1), users, resamples=999) == 1 / 1000
    assert paired_permutation_test(np.zeros(40), users) == 1


def test_two_way_test_by_hand():
    # Two seeds, two users of one row each: mean 2. Means of seeds are 1 and 3, of users 1.5 and
    # 2.5. The residuals are 1 - 1 - 1.5 + 2 = .5, then -.5, -.5, .5. Variances of the mean: seeds
    # 2 * (1 + 1) / 1 / 4 = 1, users 2 * (.25 + .25) / 4 = .25, pairs 4 * .25 / 4 = .25. Together
    # 1 + .25 - .25 = 1, with 1 / (1 + .0625 + .0625) = .8889 degrees of freedom.
    result = two_way_clustered_test(np.array([[1.0, 1.0], [2.0, 4.0]]), np.array([5, 8]))
    assert result.mean == pytest.approx(2.0)
    assert result.p_value == pytest.approx(2 * stats.t.sf(2 / 1, 1 / 1.125))
    half = stats.t.ppf(0.975, 1 / 1.125)
    assert (result.low, result.high) == pytest.approx((2 - half, 2 + half))


def test_two_way_test_of_equal_seeds_is_a_t_test():
    """With equal seeds, only the variance of users remains, with their degrees of freedom."""
    values = np.random.default_rng(0).normal(0.3, 1.0, size=20)
    result = two_way_clustered_test(np.stack([values] * 4), np.arange(20))
    expected = stats.ttest_1samp(values, 0.0)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_two_way_test_weighs_users_by_their_rows():
    users = np.array([0, 0, 0, 1])
    result = two_way_clustered_test(np.array([[1.0, 1.0, 1.0, 5.0], [1.0, 1.0, 1.0, 5.0]]), users)
    assert result.mean == pytest.approx((3 * 1 + 5) / 4)


def test_two_way_test_of_constant_differences():
    users = np.array([0, 1, 1])
    assert two_way_clustered_test(np.zeros((2, 3)), users) == (0.0, 0.0, 0.0, 1.0)
    assert two_way_clustered_test(np.full((2, 3), 0.5), users) == (0.5, 0.5, 0.5, 0.0)


@pytest.mark.parametrize("shape", [(1, 3), (3, 1)])
def test_two_way_test_needs_two_of_each(shape):
    with pytest.raises(ValueError, match="two seeds and two users"):
        two_way_clustered_test(np.ones(shape), np.arange(shape[1]))


@pytest.mark.parametrize(
    ("of_user", "of_seed"), [(1.0, 0.0), (1.0, 0.1), (1.0, 0.3), (0.3, 0.3), (0.0, 0.3)]
)
def test_two_way_test_rejects_a_true_null_about_5_times_in_100(of_user, of_seed):
    """Three seeds and 100 users, each with a random effect on a difference whose mean is 0."""
    rng = np.random.default_rng(0)
    rejected, covered, over_users = 0, 0, 0
    for _ in range(400):
        users = np.repeat(np.arange(100), rng.integers(1, 6, 100))
        differences = of_user * rng.normal(size=100)[users] + rng.normal(size=(3, len(users)))
        differences += of_seed * rng.normal(size=(3, 1))
        result = two_way_clustered_test(differences, users)
        rejected += result.p_value <= 0.05
        covered += result.low <= 0 <= result.high
        over_users += (
            paired_permutation_test(differences.mean(axis=0), users, resamples=199) <= 0.05
        )
    # Binomial(400, .05) has a standard deviation of 1.1 %.
    assert 0.005 <= rejected / 400 <= 0.085
    assert rejected + covered == 400
    # A test over users alone keeps its level where seeds agree, not where they differ.
    if of_seed == 0:
        assert over_users / 400 <= 0.085
    if of_seed == 0.3:
        assert over_users / 400 > 0.15


def test_two_way_test_finds_a_true_difference():
    users = np.arange(200)
    rng = np.random.default_rng(1)
    differences = 0.2 + 0.02 * rng.normal(size=(3, 1)) + rng.normal(size=200)[users] * 0.5
    assert two_way_clustered_test(differences, users).p_value < 0.01


def test_permutation_rejects_a_true_null_about_5_times_in_100():
    rng = np.random.default_rng(0)
    rejected = {"users": 0, "rows": 0}
    for _ in range(500):
        differences, users = clustered(rng, users=50)
        for name, clusters in {"users": users, "rows": np.arange(len(users))}.items():
            rejected[name] += paired_permutation_test(differences, clusters, resamples=299) <= 0.05
    # Binomial(500, .05) has a standard deviation of 1 %.
    assert 0.02 <= rejected["users"] / 500 <= 0.08
    assert rejected["rows"] / 500 > 0.12


def test_permutation_finds_a_true_difference():
    differences, users = clustered(np.random.default_rng(0), users=100, mean=0.6)
    assert paired_permutation_test(differences, users) < 0.001


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, made monotone: .04 .06 .06 .06.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.3]) == pytest.approx([0.3])
    assert holm([]).shape == (0,)
