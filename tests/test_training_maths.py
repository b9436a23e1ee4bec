"""Rewards, advantages and objectives: numbers worked out by hand, and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rere.engine.packing import pack
from rere.training import advantages, objectives
from rere.training.rewards import REWARDS, ranking, rule, total_reward

NONE = -torch.inf
"""The log-probability of a place that a small catalogue left empty."""

# 1 / log2(rank + 1) for ranks 1 .. 4, and their sum.
DISCOUNTS = [1.0, 0.6309298, 0.5, 0.4306766]
TOTAL = 2.5616064


def tensor(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


def hits(rows):
    return torch.tensor(rows, dtype=torch.bool)


# -------------------------------------------------------------------------------------- rewards


def test_rule_is_one_for_the_target():
    reward = rule(hits([[0, 1, 0], [0, 0, 0]]), tensor([[-1, -2, -3], [-1, -2, NONE]]))
    assert reward.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_ranking_by_hand():
    log_prob = tensor([[-1.0, -2.0, -3.0, -4.0]])
    for place in range(4):
        hit = torch.arange(4)[None] == place
        expected = [-discount / TOTAL for discount in DISCOUNTS]
        expected[place] = 0.0
        assert ranking(hit, log_prob)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_ranking_divides_by_all_sixteen_places():
    total = sum(1 / math.log2(rank + 1) for rank in range(1, 17))
    assert total == pytest.approx(6.106, abs=5e-4)
    reward = ranking(torch.arange(16)[None] == 2, -torch.arange(16.0)[None])[0]
    # The best wrong candidate: -1 / 6.106. The target, third, gives up its 1 / log2(4) = 1/2:
    # the group's penalties add up to -(6.106 - 0.5) / 6.106.
    assert reward[0].item() == pytest.approx(-1 / total)
    assert reward[2].item() == 0.0
    assert reward[15].item() == pytest.approx(-1 / math.log2(17) / total)
    assert reward.sum().item() == pytest.approx(-(total - 0.5) / total)


def test_ranking_is_zero_in_a_group_without_the_target():
    reward = ranking(hits([[0, 0, 0], [1, 0, 0]]), tensor([[-1, -2, -3], [-1, -2, -3]]))
    assert reward[0].tolist() == [0.0, 0.0, 0.0]
    assert (reward[1, 1:] < 0).all()


def test_ranking_ranks_by_log_probability():
    # -2 is rank 2, -4 rank 4, -1 rank 1 (the target), -3 rank 3.
    reward = ranking(hits([[0, 0, 1, 0]]), tensor([[-2.0, -4.0, -1.0, -3.0]]))[0]
    expected = [-DISCOUNTS[1] / TOTAL, -DISCOUNTS[3] / TOTAL, 0.0, -DISCOUNTS[2] / TOTAL]
    assert reward.tolist() == pytest.approx(expected, abs=1e-6)


def test_an_empty_place_has_no_reward_and_keeps_its_share():
    hit, log_prob = hits([[0, 1, 0, 0]]), tensor([[-1.0, -2.0, NONE, NONE]])
    # Two empty places rank last; the sum is still over all four.
    expected = [-1 / TOTAL, 0.0, 0.0, 0.0]
    assert ranking(hit, log_prob)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert total_reward(["rule", "ranking"], hit, log_prob)[0].tolist() == pytest.approx(
        [-1 / TOTAL, 1.0, 0.0, 0.0], abs=1e-6
    )


GROUPS = st.integers(2, 16).flatmap(
    lambda size: st.tuples(
        st.permutations(range(size)),
        st.integers(0, size),
        st.lists(st.integers(-500, 0), min_size=size, max_size=size, unique=True),
    )
)


@given(GROUPS)
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("name", REWARDS)
def test_the_order_of_candidates_is_irrelevant(name, group):
    order, place, log_probs = group
    hit = torch.arange(len(order))[None] == place  # none where `place` is one past the last
    log_prob = tensor([log_probs])
    reward = REWARDS[name](hit, log_prob)
    shuffled = REWARDS[name](hit[:, order], log_prob[:, order])
    torch.testing.assert_close(shuffled, reward[:, order], atol=1e-6, rtol=0)


def test_the_total_adds_the_named_rewards():
    hit, log_prob = hits([[0, 1, 0]]), tensor([[-1.0, -2.0, -3.0]])
    assert torch.equal(total_reward(["rule"], hit, log_prob), rule(hit, log_prob))
    assert torch.equal(total_reward(["ranking"], hit, log_prob), ranking(hit, log_prob))
    assert torch.equal(
        total_reward(["ranking", "rule"], hit, log_prob),
        rule(hit, log_prob) + ranking(hit, log_prob),
    )


# ----------------------------------------------------------------------------------- advantages


def test_grpo_advantage_by_hand():
    # Mean 1/4, deviations 3/4 and -1/4: variance (9/16 + 3/16) / 3 = 1/4, deviation 1/2.
    advantage = advantages.grpo(tensor([[1.0, 0.0, 0.0, 0.0]]), hits([[1, 1, 1, 1]]))
    expected = [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]
    assert advantage[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_empty_places_do_not_count():
    # Of 2, 0 and two empty places: mean 1, variance (1 + 1) / 1 = 2.
    advantage = advantages.grpo(tensor([[2.0, 0.0, 7.0, 7.0]]), hits([[1, 1, 0, 0]]))
    unit = 1 / (math.sqrt(2) + 1e-4)
    assert advantage[0].tolist() == pytest.approx([unit, -unit, 0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_equal_rewards_have_no_advantage_at_all(value):
    advantage = advantages.grpo(tensor([[value] * 4]), hits([[1, 1, 1, 1]]))
    assert advantage.tolist() == [[0.0] * 4]


def test_one_candidate_alone_has_no_advantage():
    advantage = advantages.grpo(tensor([[1.0, 0.0, 0.0]]), hits([[1, 0, 0]]))
    assert advantage.tolist() == [[0.0] * 3]


@given(
    st.lists(
        st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=2, max_size=16),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_grpo_advantage_is_that_of_torch(groups):
    size = max(map(len, groups))
    reward = tensor([group + [9.0] * (size - len(group)) for group in groups])
    exists = hits([[1] * len(group) + [0] * (size - len(group)) for group in groups])
    advantage = advantages.grpo(reward, exists)
    for row, group in zip(advantage, groups, strict=True):
        values = tensor(group)
        expected = (values - values.mean()) / (values.std() + 1e-4)
        torch.testing.assert_close(row[: len(group)], expected, atol=1e-9, rtol=1e-9)
        assert (row[len(group) :] == 0).all()


# ----------------------------------------------------------------------------------- objectives


def test_k3_by_hand():
    # d = ref - lp: 0, 1 and -1 give e^0 - 0 - 1 = 0, e - 2 and 1/e.
    kl = objectives.k3(tensor([-1.0, -2.0, -1.0]), tensor([-1.0, -1.0, -2.0]))
    assert kl.tolist() == pytest.approx([0.0, math.e - 2, 1 / math.e])


def test_k3_is_an_unbiased_estimate_that_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    estimate = objectives.k3(policy, reference)
    assert (estimate >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * estimate).sum().item() == pytest.approx(exact.item())


CANDIDATES = [[[4, 5, 1], [4, 1], [1]], [[6, 7, 8, 9, 1]], [[2, 1], [3, 1]]]
PACKED = pack([[3], [3, 4], [5]], CANDIDATES)


def made_up(seed=0):
    """Log-probs and references (B, N), 0 where padded, and advantages (B, G)."""
    generator = torch.Generator().manual_seed(seed)
    real = PACKED.candidate < PACKED.num_candidates
    log_prob, reference = -torch.rand(2, *real.shape, generator=generator, dtype=torch.float64)
    advantage = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return log_prob * real, reference * real, advantage


def looped(log_prob, advantage, reference, beta):
    """The GRPO loss, one sequence and one token at a time."""
    sequences = []
    for row, group in enumerate(CANDIDATES):
        place = 0
        for g, candidate in enumerate(group):
            tokens = []
            for _ in candidate:
                lp, ref = log_prob[row, place], reference[row, place]
                ratio = (lp - lp.detach()).exp()
                kl = (ref - lp).exp() - (ref - lp) - 1
                tokens.append(-(ratio * advantage[row, g] - beta * kl))
                place += 1
            sequences.append(sum(tokens) / len(tokens))
    return sum(sequences) / len(sequences)


@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.5])
def test_grpo_equals_a_loop_over_sequences(beta):
    log_prob, reference, advantage = made_up()
    losses, grads = [], []
    for form in ("packed", "looped"):
        weights = log_prob.clone().requires_grad_()
        if form == "looped":
            loss = looped(weights, advantage, reference, beta)
        else:
            kl = objectives.k3(weights, reference) if beta else None
            loss = objectives.grpo(weights, advantage, kl, beta, PACKED)
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss, weights)[0])
    torch.testing.assert_close(losses[0], losses[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-12, rtol=0)


def test_grpo_by_hand():
    packed = pack([[3], [5]], [[[4, 1], [1]], [[6, 7, 1]]])
    advantage = tensor([[2.0, -3.0], [0.5, 0.0]])
    kl = tensor([[0.1, 0.3, 1.0], [0.2, 0.2, 0.2]])
    log_prob = tensor([[-1.0, -2.0, -3.0]] * 2)
    # Sequences: -2 + mean(.1, .3) * 10 = 0, 3 + 1.0 * 10 = 13, -0.5 + 0.2 * 10 = 1.5.
    loss = objectives.grpo(log_prob, advantage, kl, 10.0, packed)
    assert loss.item() == pytest.approx((0 + 13 + 1.5) / 3)
    # Without the KL: (-2 + 3 - 0.5) / 3.
    loss = objectives.grpo(log_prob, advantage, None, 10.0, packed)
    assert loss.item() == pytest.approx(0.5 / 3)


def test_the_gradient_is_that_of_reinforce():
    log_prob, _, advantage = made_up(seed=1)
    weights = log_prob.clone().requires_grad_()
    (actual,) = torch.autograd.grad(objectives.grpo(weights, advantage, None, 0.0, PACKED), weights)
    weights = log_prob.clone().requires_grad_()
    per_sequence = [
        -advantage[row, g] * weights[row][PACKED.candidate[row] == g].mean()
        for row, group in enumerate(CANDIDATES)
        for g in range(len(group))
    ]
    (expected,) = torch.autograd.grad(sum(per_sequence) / len(per_sequence), weights)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    assert (actual[PACKED.candidate == PACKED.num_candidates] == 0).all()


def test_what_padding_holds_does_not_matter():
    log_prob, reference, advantage = made_up(seed=2)
    expected = objectives.grpo(log_prob, advantage, objectives.k3(log_prob, reference), 0.5, PACKED)
    padded = PACKED.candidate == PACKED.num_candidates
    kl = objectives.k3(log_prob, reference).masked_fill(padded, 77.0)
    actual = objectives.grpo(log_prob.masked_fill(padded, -9.0), advantage, kl, 0.5, PACKED)
    torch.testing.assert_close(actual, expected)


def test_empty_places_of_the_advantage_do_not_matter():
    """A group of four over a catalogue of three: the fourth place is empty in every row."""
    log_prob, _, advantage = made_up(seed=3)
    wider = torch.cat([advantage, advantage.new_zeros(3, 1)], dim=1)
    torch.testing.assert_close(
        objectives.grpo(log_prob, wider, None, 0.0, PACKED),
        objectives.grpo(log_prob, advantage, None, 0.0, PACKED),
    )
