"""Objectives: values worked out by hand, plain loops, finite differences, passes of a step."""

import math

import pytest
import torch

from rere.engine.candidates.packing import PackedBatch, pack
from rere.engine.candidates.scoring import sum_by_candidate
from rere.training.objectives import KL, OBJECTIVES, policy_loss, spread_to_tokens

CANDIDATES = [[[4, 5, 1], [4, 1], [1]], [[6, 7, 8, 9, 1]], [[2, 1], [3, 1]]]
PACKED = pack([[3], [3, 4], [5]], CANDIDATES)
LONGEST = 5
CLIPPED = [name for name, objective in OBJECTIVES.items() if objective.clip is not None]


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_inputs(seed=0, distance=0.3):
    """log_prob, old and reference (B, N), 0 at padding, and advantage (B, G)."""
    generator = torch.Generator().manual_seed(seed)
    is_token = PACKED.candidate < PACKED.num_candidates
    log_prob, reference = -torch.rand(2, *is_token.shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(is_token.shape, generator=generator, dtype=torch.float64)
    old = log_prob + distance * noise
    advantage = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return log_prob * is_token, old * is_token, reference * is_token, advantage


def lengths(packed: PackedBatch) -> torch.Tensor:
    return sum_by_candidate(torch.ones_like(packed.candidate), packed)


def loss_of(name, log_prob, advantage, penalty=None, packed=PACKED, old=None, count=None):
    objective = OBJECTIVES[name]
    if count is None:
        count = objective.divisor(lengths(packed), LONGEST)
    return policy_loss(objective, log_prob, old, advantage, penalty, packed, count)


def looped_loss(name, log_prob, old, advantage, penalty):
    """The loss by its definition, token by token."""
    objective, total, count = OBJECTIVES[name], 0.0, 0
    for row, group in enumerate(CANDIDATES):
        start = 0
        for g, candidate in enumerate(group):
            span = range(start, start + len(candidate))
            start += len(candidate)
            log_ratios = [log_prob[row, t] - old[row, t] for t in span]
            ratios = [each.exp() for each in log_ratios]
            if objective.ratio == "sequence":
                ratios = [(sum(log_ratios) / len(log_ratios)).exp()] * len(log_ratios)
            a, losses = advantage[row, g], []
            for t, ratio in zip(span, ratios, strict=True):
                surrogate = ratio * a
                if objective.clip is not None:
                    low, high = objective.clip
                    surrogate = min(surrogate, min(max(ratio, 1 - low), 1 + high) * a)
                losses.append(-surrogate + penalty[row, t])
            if objective.mean == "sequences":
                total, count = total + sum(losses) / len(losses), count + 1
            elif objective.mean == "tokens":
                total, count = total + sum(losses), count + len(losses)
            else:
                total, count = total + sum(losses), count + LONGEST
    return total / count


# ---------------------------------------------------------------------------------- by hand

TWO = pack([[3], [5]], [[[4, 1], [1]], [[6, 7, 1]]])
"""Candidates of two tokens and one, and of three."""
LOG_PROB = [[-1.0, -2.0, -3.0]] * 2
UP, DOWN = math.log(1.5), math.log(0.5)
# Ratios 1.5, .5 | 1.5 and .5, 1, 1.5.
OLD = [[-1.0 - UP, -2.0 - DOWN, -3.0 - UP], [-1.0 - DOWN, -2.0, -3.0 - UP]]
ADVANTAGE = [[2.0, -1.0], [4.0, 0.0]]


def loss_of_two(name, sign=1, old=OLD):
    old = None if old is None else tensor(old)
    return loss_of(name, tensor(LOG_PROB), sign * tensor(ADVANTAGE), packed=TWO, old=old).item()


def test_grpo_by_hand():
    # A = 2: min(3, 1.2 * 2) and min(1, .8 * 2), so 2.4 and 1. A = -1: min(-1.5, -1.2) = -1.5.
    # A = 4: min(2, 3.2) = 2, 4, min(6, 4.8) = 4.8.
    assert loss_of_two("grpo") == pytest.approx(-((2.4 + 1) / 2 - 1.5 + (2 + 4 + 4.8) / 3) / 3)


def test_dapo_by_hand():
    # The upper bound is 1.28: 2.56 and 5.12 instead of 2.4 and 4.8. There are six tokens.
    assert loss_of_two("dapo") == pytest.approx(-(2.56 + 1 - 1.5 + 2 + 4 + 5.12) / 6)


def test_dr_grpo_by_hand():
    # Tokens as in GRPO, divided by three candidates of at most five tokens.
    assert loss_of_two("dr_grpo") == pytest.approx(-(2.4 + 1 - 1.5 + 2 + 4 + 4.8) / 15)


def test_gspo_by_hand():
    # Sequence ratios: sqrt(1.5 * .5) = .866, 1.5, and (.5 * 1 * 1.5)^(1/3) = .9086. With A = 2:
    # min(1.732, .9997 * 2), with A = -1: min(-1.5, -1.0004), with A = 4: min(3.634, 3.9988).
    first, third = 2 * math.sqrt(0.75), 4 * 0.75 ** (1 / 3)
    assert loss_of_two("gspo") == pytest.approx(-(first - 1.5 + third) / 3)
    # Advantages of the opposite sign are clipped: -.9997 * 2, 1.0004 and -.9997 * 4.
    expected = (0.9997 * 2 - 1.0004 + 0.9997 * 4) / 3
    assert loss_of_two("gspo", sign=-1) == pytest.approx(expected)


def test_released_objectives_by_hand():
    # With ratios of 1: -(2 + 2 - 1 + 4 + 4 + 4) / 6, and -(2 - 1 + 4) / 3.
    assert loss_of_two("released_token_mean", old=None) == pytest.approx(-15 / 6)
    assert loss_of_two("released_sequence_mean", old=None) == pytest.approx(-5 / 3)


def test_penalty_by_hand():
    penalty = tensor([[1.0, 3.0, 10.0], [2.0, 2.0, 5.0]])
    zero = torch.zeros(2, 2, dtype=torch.float64)
    losses = {
        name: loss_of(name, tensor(LOG_PROB), zero, penalty, TWO).item() for name in OBJECTIVES
    }
    by_sequence, by_token = (2 + 10 + 3) / 3, 23 / 6
    assert losses == pytest.approx(
        {
            "grpo": by_sequence,
            "gspo": by_sequence,
            "released_sequence_mean": by_sequence,
            "dapo": by_token,
            "released_token_mean": by_token,
            "dr_grpo": 23 / 15,
        }
    )


def test_counts_by_hand():
    # Candidates of 3, 2, 1 | 5 | 2, 2 tokens.
    length = lengths(PACKED)
    assert length.tolist() == [[3, 2, 1], [5, 0, 0], [2, 2, 0]]
    counts = {
        name: objective.divisor(length, LONGEST).item() for name, objective in OBJECTIVES.items()
    }
    assert counts == {
        "grpo": 6,
        "gspo": 6,
        "released_sequence_mean": 6,
        "dapo": 15,
        "released_token_mean": 15,
        "dr_grpo": 30,
    }


# ---------------------------------------------------------------------------- value and gradient


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_a_loop(name, beta, seed):
    log_prob, old, reference, advantage = random_inputs(seed)
    results = []
    for form in ("packed", "looped"):
        weights = log_prob.clone().requires_grad_()
        penalty = beta * KL["k3"](weights, reference)
        if form == "packed":
            loss = loss_of(name, weights, advantage, penalty if beta else None, old=old)
        else:
            loss = looped_loss(name, weights, old, advantage, penalty)
        results.append((loss.detach(), torch.autograd.grad(loss, weights)[0]))
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("distance", [1e-4, 0.05, 0.3])
def test_gradients_equal_finite_differences(name, distance):
    """Ratios within the bounds, near them and far beyond, none within a step of a bound."""
    log_prob, old, reference, advantage = random_inputs(4, distance)
    weights = log_prob.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: loss_of(name, w, advantage, 0.3 * KL["k3"](w, reference), old=old),
        weights,
        eps=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("name", CLIPPED)
def test_clipped_ratios_have_no_gradient(name):
    log_prob, _, _, advantage = random_inputs(5)
    is_token = PACKED.candidate < PACKED.num_candidates
    sign = spread_to_tokens(advantage, PACKED).sign()
    for direction in (1, -1):
        weights = log_prob.clone().requires_grad_()
        old = (log_prob - direction * sign).detach() * is_token  # ratios e or 1 / e
        loss = loss_of(name, weights, advantage, old=old)
        (gradient,) = torch.autograd.grad(loss, weights)
        # Only a change that the advantage favours is clipped.
        assert (gradient[is_token] != 0).all() == (direction == -1)
        assert (gradient[is_token] == 0).all() == (direction == 1)


# ------------------------------------------------------------------------------- on policy


def plain_on_policy_grpo(log_prob, advantage, penalty):
    per_token = torch.cat([advantage, advantage.new_zeros(len(advantage), 1)], dim=1)
    per_token = per_token.gather(1, PACKED.candidate)
    loss = -(log_prob - log_prob.detach()).exp() * per_token
    if penalty is not None:
        loss = loss + penalty
    length = sum_by_candidate(torch.ones_like(loss), PACKED)
    mean = sum_by_candidate(loss, PACKED) / length.clamp(min=1)
    return mean.sum() / (length > 0).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.0, 1e-3])
def test_on_policy_grpo_equals_its_unclipped_form_bit_for_bit(dtype, beta):
    for seed in range(5):
        log_prob, _, reference, advantage = (each.to(dtype) for each in random_inputs(seed))
        results = []
        for is_plain in (True, False):
            weights = log_prob.clone().requires_grad_()
            penalty = beta * KL["k3"](weights, reference) if beta else None
            if is_plain:
                loss = plain_on_policy_grpo(weights, advantage, penalty)
            else:
                loss = loss_of("grpo", weights, advantage, penalty)
            results.append((loss, torch.autograd.grad(loss, weights)[0]))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_old_the_ratio_is_one(name):
    log_prob, _, _, advantage = random_inputs(6)
    weights = log_prob.clone().requires_grad_()
    results = []
    for old in (None, log_prob):
        loss = loss_of(name, weights, advantage, old=old)
        results.append((loss.detach(), torch.autograd.grad(loss, weights)[0]))
    torch.testing.assert_close(*results, atol=1e-15, rtol=0)


def test_released_sequence_mean_equals_on_policy_grpo():
    log_prob, _, reference, advantage = random_inputs(7)
    results = []
    for name in ("grpo", "released_sequence_mean"):
        weights = log_prob.clone().requires_grad_()
        loss = loss_of(name, weights, advantage, 0.3 * KL["k3"](weights, reference))
        results.append((loss.detach(), torch.autograd.grad(loss, weights)[0]))
    torch.testing.assert_close(*results, atol=1e-14, rtol=0)


def test_on_policy_gradient_equals_reinforce():
    log_prob, _, _, advantage = random_inputs(seed=1)
    weights = log_prob.clone().requires_grad_()
    (actual,) = torch.autograd.grad(loss_of("grpo", weights, advantage), weights)
    weights = log_prob.clone().requires_grad_()
    per_sequence = [
        -advantage[row, g] * weights[row][PACKED.candidate[row] == g].mean()
        for row, group in enumerate(CANDIDATES)
        for g in range(len(group))
    ]
    (expected,) = torch.autograd.grad(sum(per_sequence) / len(per_sequence), weights)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    assert (actual[PACKED.candidate == PACKED.num_candidates] == 0).all()


# ------------------------------------------------------------------------ passes and padding


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_of_passes_add_up(name):
    """The rows have three, one and two candidates, so a mean of means would differ."""
    log_prob, old, reference, advantage = random_inputs(8)
    weights = log_prob.clone().requires_grad_()
    penalty = 0.3 * KL["k3"](weights, reference)
    whole = loss_of(name, weights, advantage, penalty, old=old)
    (expected,) = torch.autograd.grad(whole, weights, retain_graph=True)
    total, count = 0.0, OBJECTIVES[name].divisor(lengths(PACKED), LONGEST)
    for row, group in enumerate(CANDIDATES):
        packed = pack([[3]], [group], 3)
        rows, columns = slice(row, row + 1), slice(packed.candidate.shape[1])
        total = total + loss_of(
            name,
            weights[rows, columns],
            advantage[rows],
            penalty[rows, columns],
            packed,
            old[rows, columns],
            count,
        )
    torch.testing.assert_close(total, whole, atol=1e-12, rtol=0)
    (actual,) = torch.autograd.grad(total, weights)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_at_padding_do_not_matter(name):
    log_prob, old, reference, advantage = random_inputs(9)
    penalty = 0.5 * KL["k3"](log_prob, reference)
    expected = loss_of(name, log_prob, advantage, penalty, old=old)
    padded = PACKED.candidate == PACKED.num_candidates
    weights = log_prob.masked_fill(padded, -9.0).requires_grad_()
    actual = loss_of(
        name,
        weights,
        advantage,
        penalty.masked_fill(padded, 77.0),
        old=old.masked_fill(padded, -3.0),
    )
    torch.testing.assert_close(actual, expected)
    assert (torch.autograd.grad(actual, weights)[0][padded] == 0).all()


def test_empty_slots_of_the_advantage_do_not_matter():
    """Groups of four over a catalogue of three titles: the fourth slot is always empty."""
    log_prob, _, _, advantage = random_inputs(seed=3)
    wider = torch.cat([advantage, advantage.new_zeros(3, 1)], dim=1)
    torch.testing.assert_close(
        loss_of("grpo", log_prob, wider), loss_of("grpo", log_prob, advantage)
    )


# ------------------------------------------------------------------------------------------ KL


def test_kl_estimates_by_hand():
    # d = reference - log_prob: 0, 1 and -1.
    log_prob, reference = tensor([-1.0, -2.0, -1.0]), tensor([-1.0, -1.0, -2.0])
    assert KL["k2"](log_prob, reference).tolist() == [0.0, 0.5, 0.5]
    assert KL["k3"](log_prob, reference).tolist() == pytest.approx([0, math.e - 2, 1 / math.e])


@pytest.mark.parametrize("name", KL)
def test_expected_kl_estimates_and_gradients(name):
    """The expectation over all fifty outcomes is exact: there is no sampling error."""
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    reference = other.log_softmax(-1)

    def expectation(estimate):
        """The expected value under the policy, and the expected gradient of the estimate."""
        weights = logits.clone().requires_grad_()
        policy = weights.log_softmax(-1)
        value = (policy.detach().exp() * estimate(policy, reference)).sum()
        return value.item(), torch.autograd.grad(value, weights)[0]

    def exact(divergence):
        weights = logits.clone().requires_grad_()
        value = divergence(weights.log_softmax(-1))
        return value.item(), torch.autograd.grad(value, weights)[0]

    reverse = exact(lambda policy: (policy.exp() * (policy - reference)).sum())
    forward = exact(lambda policy: (reference.exp() * (reference - policy)).sum())
    value, gradient = expectation(KL[name])
    expected = {"k2": reverse[1], "k3": forward[1]}[name]
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
    assert (value == pytest.approx(reverse[0])) == (name == "k3")
