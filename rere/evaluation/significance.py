"""How sure a number is: intervals and paired tests over users and seeds, corrected for many tests.

Rows of one user depend on each other, so users are what is resampled and sign-flipped, with all
their rows. Several seeds are no more users. Averaged over them, a row's values say how these very
models do on other users; `crossed_test` says how the method does with other seeds, too. (scipy's
permutation_test and bootstrap know no clusters; on sums by user they give the same, slower.)
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

CHUNK = 2**22
"""Resampling weights in memory at a time (32 MB of float64)."""


def bootstrap_interval(
    values: np.ndarray,
    users: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of each column's mean over rows, clustered by user.

    Users are drawn with replacement, as many as there are; a resample's mean is the sum over
    its rows divided by their number (Efron & Tibshirani 1993, section 13.3; Field & Welsh 2007
    for clusters).

    values (rows, metrics) floats, users (rows,) integers -> low, high, both (metrics,) float64.
    """
    sums, rows = user_sums(values, users), user_sums(np.ones(len(users)), users)
    count = len(rows)
    rng = np.random.default_rng(seed)
    means = []
    for size in chunks(resamples, count):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(float)
        means.append(weights @ sums / (weights @ rows)[:, None])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low, high


def paired_permutation(
    differences: np.ndarray, users: np.ndarray, resamples: int = 9999, seed: int = 0
) -> float:
    """Two-sided p that the mean difference of two methods on the same rows is zero.

    Under the null a user's differences are as likely with the opposite sign, all together; the
    statistic is their absolute sum. p = (1 + b) / (1 + resamples) with b the random sign flips
    at least as extreme as what was observed, so it is never 0 (Phipson & Smyth 2010).

    differences (rows,) floats, users (rows,) integers.
    """
    sums = user_sums(differences, users)
    sums = sums[sums != 0]
    rng = np.random.default_rng(seed)
    # The same sums in another order differ in the last bits; they are ties, not misses.
    observed = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    extreme = 0
    for size in chunks(resamples, len(sums)):
        kept = rng.integers(0, 2, size=(size, len(sums)), dtype=np.int8).astype(float)
        extreme += int((np.abs(2 * kept @ sums - sums.sum()) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


class Difference(NamedTuple):
    """A mean difference of two methods, its interval, and the p that it is zero."""

    mean: float
    low: float
    high: float
    p_value: float


def crossed_test(differences: np.ndarray, users: np.ndarray, level: float = 0.95) -> Difference:
    """Mean difference of two methods over users and seeds, both drawn from many.

    A seed meets every user and a user every seed, so a difference has a part of each and one of
    the pair. The variance of the mean is the seeds' plus the users' less the pairs', which both
    hold (Cameron, Gelbach & Miller 2011), and no less than either; t has Satterthwaite's (1946)
    degrees of freedom. Rows are the weights of their user's mean.

    With few seeds a bootstrap over seeds and users rejects a true null too often (three seeds:
    up to 18 % of the time at 5 %), one over users alone far too often where seeds differ (57 %).

    differences (seeds, rows) floats, paired by seed, users (rows,) integers; raises ValueError
    for fewer than two seeds or users.
    """
    sums = user_sums(np.asarray(differences).T, users).T  # (S, U)
    rows = user_sums(np.ones(len(users)), users)
    num_seeds, num_users = sums.shape
    if min(num_seeds, num_users) < 2:
        raise ValueError("needs two seeds and two users at least")
    mean = sums.sum() / rows.sum() / num_seeds
    # What each pair adds to the mean, as if all users had as many rows: a table of mean 0.
    cell = (sums - mean * rows) * num_users / rows.sum()
    of_seed, of_user = cell.mean(axis=1), cell.mean(axis=0)
    rest = cell - of_seed[:, None] - of_user
    degrees = np.array([num_seeds - 1, num_users - 1, (num_seeds - 1) * (num_users - 1)])
    squares = [num_users * (of_seed**2).sum(), num_seeds * (of_user**2).sum(), (rest**2).sum()]
    seeds, per_user, pairs = np.array(squares) / degrees / cell.size  # variances of the mean
    variance = max(seeds + per_user - pairs, seeds, per_user)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    freedom = variance**2 / (np.array([seeds, per_user, pairs]) ** 2 / degrees).sum()
    error = np.sqrt(variance)
    half = student.ppf((1 + level) / 2, freedom) * error
    p_value = 2 * student.sf(abs(mean) / error, freedom)
    return Difference(*map(float, (mean, mean - half, mean + half, p_value)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p values that control the family-wise error rate (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1; none falls below a smaller one's, none
    exceeds 1. Shape (m,) in and out, in the order given.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def user_sums(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Sums of the rows of each user: (rows, ...) -> (distinct users, ...) float64."""
    _, index = np.unique(users, return_inverse=True)
    sums = np.zeros((index.max(initial=-1) + 1, *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def chunks(resamples: int, width: int) -> list[int]:
    """Sizes that add up to `resamples`, each with at most CHUNK weights of `width` a resample."""
    size = max(1, CHUNK // max(1, width))
    return [min(size, resamples - start) for start in range(0, resamples, size)]
