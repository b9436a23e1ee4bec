"""Advantages: values worked out by hand, and plain loops over groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rere.training.advantages import (
    ADVANTAGES,
    dr_grpo,
    global_baseline,
    grpo,
    has_zero_advantage,
    rloo,
)

GROUPWISE = {name: function for name, function in ADVANTAGES.items() if name != "global"}


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def mask(rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_grpo_advantage_by_hand():
    # Mean 1/4, deviations 3/4 and -1/4: variance (9/16 + 3/16) / 3 = 1/4, deviation 1/2.
    advantage = grpo(tensor([[1.0, 0.0, 0.0, 0.0]]), mask([[1, 1, 1, 1]]))
    expected = [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]
    assert advantage[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_empty_slots_do_not_count():
    # 2, 0 and two empty slots: mean 1, variance (1 + 1) / 1 = 2.
    advantage = grpo(tensor([[2.0, 0.0, 7.0, 7.0]]), mask([[1, 1, 0, 0]]))
    unit = 1 / (math.sqrt(2) + 1e-4)
    assert advantage[0].tolist() == pytest.approx([unit, -unit, 0.0, 0.0], abs=1e-12)


def test_single_candidate_has_zero_advantage():
    advantage = grpo(tensor([[1.0, 0.0, 0.0]]), mask([[1, 0, 0]]))
    assert advantage.tolist() == [[0.0] * 3]


def test_dr_grpo_by_hand():
    # 1, 0, 0 and an empty slot: mean 1/3.
    advantage = dr_grpo(tensor([[1.0, 0.0, 0.0, 9.0]]), mask([[1, 1, 1, 0]]))
    assert advantage[0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0.0])


def test_rloo_by_hand():
    # Means of the others: (1 + 2) / 2, (3 + 2) / 2 and (3 + 1) / 2.
    advantage = rloo(tensor([[3.0, 1.0, 2.0, 9.0]]), mask([[1, 1, 1, 0]]))
    assert advantage[0].tolist() == pytest.approx([1.5, -1.5, 0.0, 0.0])


def test_global_baseline_by_hand():
    # All six candidates: mean 1/3, sum of squared deviations 2 * 4/9 + 4 * 1/9 = 4/3, over 5.
    advantage = global_baseline(
        tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 9.0, 9.0]]), mask([[1, 1, 1, 1], [1, 1, 0, 0]])
    )
    unit = 1 / (math.sqrt(4 / 15) + 1e-4)
    low, high = -unit / 3, 2 * unit / 3
    expected = [[high, low, low, low], [high, low, 0.0, 0.0]]
    assert advantage.tolist() == [pytest.approx(row) for row in expected]


def test_global_baseline_compares_groups_of_equal_rewards():
    reward, exists = tensor([[1.0, 1.0], [0.0, 0.0]]), mask([[1, 1], [1, 1]])
    assert has_zero_advantage(grpo(reward, exists)).tolist() == [True, True]
    assert has_zero_advantage(global_baseline(reward, exists)).tolist() == [False, False]


# In floating point 3 * .1 / 3 is not .1.
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.3])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_have_exactly_zero_advantage(name, value):
    for count in range(1, 12):
        reward = torch.full((2, 12), value)  # f32, as rewards are
        exists = torch.arange(12).expand(2, 12) < count
        assert has_zero_advantage(ADVANTAGES[name](reward, exists)).all()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_group_without_candidates_has_zero_advantage(name):
    advantage = ADVANTAGES[name](tensor([[1.0, 2.0], [1.0, 0.0]]), mask([[0, 0], [1, 1]]))
    assert advantage[0].tolist() == [0.0, 0.0]
    assert (advantage[1] != 0).all()


def test_has_zero_advantage_by_hand():
    advantage = tensor([[0.0, 0.0], [0.5, -0.5], [0.0, 1e-30]])
    assert has_zero_advantage(advantage).tolist() == [True, False, False]


GROUPS = st.lists(
    st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


def looped(name: str, groups: list[list[float]]) -> list[list[float]]:
    """Advantages by their definitions, one candidate at a time."""
    everything = [value for group in groups for value in group]
    rows = []
    for group in groups:
        row = []
        for position, value in enumerate(group):
            pool = everything if name == "global" else group
            mean = sum(pool) / len(pool)
            squares = sum((other - mean) ** 2 for other in pool)
            deviation = math.sqrt(squares / max(1, len(pool) - 1))
            others = group[:position] + group[position + 1 :]
            row.append(
                {
                    "grpo": (value - mean) / (deviation + 1e-4),
                    "global": (value - mean) / (deviation + 1e-4),
                    "dr_grpo": value - mean,
                    "rloo": value - sum(others) / len(others) if others else 0.0,
                }[name]
            )
        rows.append(row)
    return rows


@given(GROUPS)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_equal_a_loop(name, groups):
    size = max(map(len, groups))
    reward = tensor([group + [9.0] * (size - len(group)) for group in groups])
    exists = mask([[1] * len(group) + [0] * (size - len(group)) for group in groups])
    advantage = ADVANTAGES[name](reward, exists)
    for row, expected in zip(advantage.tolist(), looped(name, groups), strict=True):
        padded = expected + [0.0] * (size - len(expected))
        assert row == pytest.approx(padded, abs=1e-7, rel=1e-7)


@given(GROUPS)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", GROUPWISE)
def test_advantages_of_a_group_sum_to_zero(name, groups):
    for group in groups:
        advantage = GROUPWISE[name](tensor([group]), mask([[1] * len(group)]))
        assert advantage.sum().item() == pytest.approx(0.0, abs=1e-9 * len(group) + 1e-9)


@pytest.mark.parametrize("name", GROUPWISE)
def test_only_the_global_baseline_depends_on_other_groups(name):
    reward = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exists = torch.ones(4, 5, dtype=torch.bool)
    whole = GROUPWISE[name](reward, exists)
    parts = torch.cat([GROUPWISE[name](reward[i : i + 1], exists[:1]) for i in range(4)])
    torch.testing.assert_close(parts, whole)
    alone = torch.cat([global_baseline(reward[i : i + 1], exists[:1]) for i in range(4)])
    assert not torch.allclose(alone, global_baseline(reward, exists))
