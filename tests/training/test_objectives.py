"""Objectives: numbers worked out by hand, plain loops, finite differences, passes of a step."""

import inspect
import math

import pytest
import torch

from rere.engine.candidates.packing import PackedBatch, pack
from rere.training import objectives
from rere.training.objectives import KL, OBJECTIVES, lengths

CANDIDATES = [[[4, 5, 1], [4, 1], [1]], [[6, 7, 8, 9, 1]], [[2, 1], [3, 1]]]
PACKED = pack([[3], [3, 4], [5]], CANDIDATES)
LONGEST = 5
CLIPS = {"grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "dr_grpo": (0.2, 0.2)}
RELEASED = ("released_token_mean", "released_sequence_mean")


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def made_up(seed=0, apart=0.3):
    """log_prob, old, reference (B, N), 0 where padded, and advantage (B, G)."""
    generator = torch.Generator().manual_seed(seed)
    real = PACKED.candidate < PACKED.num_candidates
    log_prob, reference = -torch.rand(2, *real.shape, generator=generator, dtype=torch.float64)
    old = log_prob + apart * torch.randn(real.shape, generator=generator, dtype=torch.float64)
    advantage = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return log_prob * real, old * real, reference * real, advantage


def step_count(name: str, packed: PackedBatch = PACKED) -> torch.Tensor:
    return OBJECTIVES[name].count(lengths(packed), LONGEST)


def loss_of(name, log_prob, advantage, kl, beta, packed=PACKED, old=None, count=None, **clip):
    if name == "dr_grpo" and count is None:
        count = step_count(name, packed)
    return OBJECTIVES[name].loss(
        log_prob, advantage, kl, beta, packed, old=old, count=count, **clip
    )


def looped(name, log_prob, old, advantage, kl, beta, clip):
    """The loss by its definition, one token at a time."""
    total, count = 0.0, 0
    for row, group in enumerate(CANDIDATES):
        place = 0
        for g, candidate in enumerate(group):
            span = range(place, place + len(candidate))
            place += len(candidate)
            logs = [log_prob[row, t] - old[row, t] for t in span]
            ratios = [each.exp() for each in logs]
            if name in ("gspo", "released_sequence_mean"):
                ratios = [(sum(logs) / len(logs)).exp()] * len(logs)
            a, losses = advantage[row, g], []
            for t, ratio in zip(span, ratios, strict=True):
                surrogate = ratio * a
                if clip is not None:
                    bounded = min(max(ratio, 1 - clip[0]), 1 + clip[1])
                    surrogate = min(surrogate, bounded * a)
                losses.append(-surrogate + beta * kl[row, t])
            if name in ("grpo", "gspo", "released_sequence_mean"):
                total, count = total + sum(losses) / len(losses), count + 1
            elif name == "dr_grpo":
                total, count = total + sum(losses), count + LONGEST
            else:
                total, count = total + sum(losses), count + len(losses)
    return total / count


# ---------------------------------------------------------------------------------- by hand

TWO = pack([[3], [5]], [[[4, 1], [1]], [[6, 7, 1]]])
"""Candidates of two tokens and one, and of three."""
LOG_PROB = [[-1.0, -2.0, -3.0]] * 2
UP, DOWN = math.log(1.5), math.log(0.5)
# Ratios 1.5, .5 | 1.5 and .5, 1, 1.5.
OLD = [[-1.0 - UP, -2.0 - DOWN, -3.0 - UP], [-1.0 - DOWN, -2.0, -3.0 - UP]]
ADVANTAGE = [[2.0, -1.0], [4.0, 0.0]]


def by_hand(name, **more):
    return loss_of(
        name, tensor(LOG_PROB), tensor(ADVANTAGE), None, 0.0, TWO, old=tensor(OLD), **more
    ).item()


def test_grpo_by_hand():
    # A = 2: min(3, 1.2 * 2) and min(1, .8 * 2), so 2.4 and 1. A = -1: min(-1.5, -1.2) = -1.5.
    # A = 4: min(2, 3.2) = 2, 4, min(6, 4.8) = 4.8.
    assert by_hand("grpo") == pytest.approx(-((2.4 + 1) / 2 - 1.5 + (2 + 4 + 4.8) / 3) / 3)


def test_dapo_by_hand():
    # The upper bound is 1.28: 2.56 and 5.12 instead of 2.4 and 4.8; six tokens.
    assert by_hand("dapo") == pytest.approx(-(2.56 + 1 - 1.5 + 2 + 4 + 5.12) / 6)


def test_dr_grpo_by_hand():
    # Tokens as in GRPO; three candidates of five places at most.
    assert by_hand("dr_grpo") == pytest.approx(-(2.4 + 1 - 1.5 + 2 + 4 + 4.8) / 15)


def test_gspo_by_hand():
    # Sequence ratios: sqrt(1.5 * .5) = .866, 1.5, and (.5 * 1 * 1.5)^(1/3) = .9086. With A = 2:
    # min(1.732, .9997 * 2), with A = -1: min(-1.5, -1.0004), with A = 4: min(3.634, 3.9988).
    first, third = 2 * math.sqrt(0.75), 4 * 0.75 ** (1 / 3)
    assert by_hand("gspo") == pytest.approx(-(first - 1.5 + third) / 3)
    # Advantages of the opposite sign are clipped: -.9997 * 2, 1.0004 and -.9997 * 4.
    flipped = loss_of("gspo", tensor(LOG_PROB), -tensor(ADVANTAGE), None, 0.0, TWO, old=tensor(OLD))
    assert flipped.item() == pytest.approx((0.9997 * 2 - 1.0004 + 0.9997 * 4) / 3)


def test_the_released_codes_own_by_hand():
    # The ratio is 1 whatever `old` is: -(2 + 2 - 1 + 4 + 4 + 4) / 6, and -(2 - 1 + 4) / 3.
    assert by_hand("released_token_mean") == pytest.approx(-15 / 6)
    assert by_hand("released_sequence_mean") == pytest.approx(-5 / 3)


def test_the_kl_by_hand():
    kl = tensor([[0.1, 0.3, 1.0], [0.2, 0.2, 0.5]])
    none = torch.zeros(2, 2, dtype=torch.float64)
    value = {
        name: loss_of(name, tensor(LOG_PROB), none, kl, 10.0, TWO).item() for name in OBJECTIVES
    }
    by_sequence, by_token = 10 * (0.2 + 1.0 + 0.3) / 3, 10 * 2.3 / 6
    assert value == pytest.approx(
        {
            "grpo": by_sequence,
            "gspo": by_sequence,
            "released_sequence_mean": by_sequence,
            "dapo": by_token,
            "released_token_mean": by_token,
            "dr_grpo": 10 * 2.3 / 15,
        }
    )


# ---------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_a_loop(name, beta, seed):
    log_prob, old, reference, advantage = made_up(seed)
    results = []
    for form in ("packed", "looped"):
        weights = log_prob.clone().requires_grad_()
        kl = KL["k3"](weights, reference)
        if form == "packed":
            loss = loss_of(name, weights, advantage, kl if beta else None, beta, old=old)
        else:
            past = weights.detach() if name in RELEASED else old
            loss = looped(name, weights, past, advantage, kl, beta, CLIPS.get(name))
        results.append((loss.detach(), torch.autograd.grad(loss, weights)[0]))
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("apart", [1e-4, 0.05, 0.3])
def test_gradients_are_those_of_finite_differences(name, apart):
    """Within bounds, at their edge and far beyond; no token is closer to a kink than the step."""
    log_prob, old, reference, advantage = made_up(4, apart)
    weights = log_prob.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: loss_of(name, w, advantage, KL["k3"](w, reference), 0.3, old=old),
        weights,
        eps=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("name", CLIPS)
def test_beyond_the_bounds_nothing_pulls_further(name):
    log_prob, _, _, advantage = made_up(5)
    real = PACKED.candidate < PACKED.num_candidates
    sign = objectives.by_token(advantage, PACKED).sign()
    for direction in (1, -1):
        weights = log_prob.clone().requires_grad_()
        old = (log_prob - direction * sign).detach() * real  # ratios e or 1 / e
        loss = loss_of(name, weights, advantage, None, 0.0, old=old)
        (gradient,) = torch.autograd.grad(loss, weights)
        # Gone the right way, far enough, nothing is left to gain; gone wrong, it is called back.
        assert (gradient[real] != 0).all() == (direction == -1)
        assert (gradient[real] == 0).all() == (direction == 1)


# ------------------------------------------------------------------------------- on policy


def before(log_prob, advantage, kl, beta, packed):
    """GRPO as it was with one update a rollout, to the bit."""
    per_token = torch.cat([advantage, advantage.new_zeros(len(advantage), 1)], dim=1)
    per_token = per_token.gather(1, packed.candidate)
    loss = -(log_prob - log_prob.detach()).exp() * per_token
    if kl is not None:
        loss = loss + beta * kl
    length = objectives.sum_by_candidate(torch.ones_like(loss), packed)
    mean = objectives.sum_by_candidate(loss, packed) / length.clamp(min=1)
    return mean.sum() / (length > 0).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.0, 1e-3])
def test_on_policy_grpo_is_what_it_was_to_the_bit(dtype, beta):
    for seed in range(5):
        log_prob, _, reference, advantage = (each.to(dtype) for each in made_up(seed))
        results = []
        for function in (before, objectives.grpo):
            weights = log_prob.clone().requires_grad_()
            kl = KL["k3"](weights, reference) if beta else None
            loss = function(weights, advantage, kl, beta, PACKED)
            results.append((loss, torch.autograd.grad(loss, weights)[0]))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_old_the_ratio_is_one(name):
    log_prob, _, _, advantage = made_up(6)
    weights = log_prob.clone().requires_grad_()
    results = []
    for old in (None, log_prob):
        loss = loss_of(name, weights, advantage, None, 0.0, old=old)
        results.append((loss.detach(), torch.autograd.grad(loss, weights)[0]))
    torch.testing.assert_close(*results, atol=1e-15, rtol=0)


def test_the_released_sequence_mean_is_on_policy_grpo():
    log_prob, _, reference, advantage = made_up(7)
    results = []
    for name in ("grpo", "released_sequence_mean"):
        weights = log_prob.clone().requires_grad_()
        loss = loss_of(name, weights, advantage, KL["k3"](weights, reference), 0.3)
        results.append((loss.detach(), torch.autograd.grad(loss, weights)[0]))
    torch.testing.assert_close(*results, atol=1e-14, rtol=0)


def test_the_gradient_is_that_of_reinforce():
    log_prob, _, _, advantage = made_up(seed=1)
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


def test_empty_places_of_the_advantage_do_not_matter():
    """A group of four over a catalogue of three: the fourth place is empty in every row."""
    log_prob, _, _, advantage = made_up(seed=3)
    wider = torch.cat([advantage, advantage.new_zeros(3, 1)], dim=1)
    torch.testing.assert_close(
        objectives.grpo(log_prob, wider, None, 0.0, PACKED),
        objectives.grpo(log_prob, advantage, None, 0.0, PACKED),
    )


# ------------------------------------------------------------------------ passes and padding


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_pass_of_three_is_three_passes_of_one(name):
    """The rows have three, one and two candidates: a mean of means would differ."""
    log_prob, old, reference, advantage = made_up(8)
    count = step_count(name)
    weights = log_prob.clone().requires_grad_()
    whole = loss_of(
        name, weights, advantage, KL["k3"](weights, reference), 0.3, old=old, count=count
    )
    (expected,) = torch.autograd.grad(whole, weights)
    if name != "dr_grpo":
        torch.testing.assert_close(
            whole, loss_of(name, weights, advantage, KL["k3"](weights, reference), 0.3, old=old)
        )
    parts = 0.0
    for row, group in enumerate(CANDIDATES):
        packed = pack([[3]], [group], 3)
        width = packed.candidate.shape[1]
        parts = parts + loss_of(
            name,
            weights[row : row + 1, :width],
            advantage[row : row + 1],
            KL["k3"](weights, reference)[row : row + 1, :width],
            0.3,
            packed,
            old=old[row : row + 1, :width],
            count=count,
        )
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)
    (actual,) = torch.autograd.grad(parts, weights)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_counts_by_hand():
    # Candidates of 3, 2, 1 | 5 | 2, 2 tokens.
    length = lengths(PACKED)
    assert length.tolist() == [[3, 2, 1], [5, 0, 0], [2, 2, 0]]
    counts = {
        name: objective.count(length, LONGEST).item() for name, objective in OBJECTIVES.items()
    }
    assert counts == {
        "grpo": 6,
        "gspo": 6,
        "released_sequence_mean": 6,
        "dapo": 15,
        "released_token_mean": 15,
        "dr_grpo": 30,
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_padding_holds_does_not_matter(name):
    log_prob, old, reference, advantage = made_up(9)
    kl = KL["k3"](log_prob, reference)
    expected = loss_of(name, log_prob, advantage, kl, 0.5, old=old)
    padded = PACKED.candidate == PACKED.num_candidates
    weights = log_prob.masked_fill(padded, -9.0).requires_grad_()
    actual = loss_of(
        name,
        weights,
        advantage,
        kl.masked_fill(padded, 77.0),
        0.5,
        old=old.masked_fill(padded, -3.0),
    )
    torch.testing.assert_close(actual, expected)
    assert (torch.autograd.grad(actual, weights)[0][padded] == 0).all()


def test_all_objectives_are_called_alike():
    common = ["log_prob", "advantage", "kl", "beta", "packed", "count", "old"]
    for objective in OBJECTIVES.values():
        names = list(inspect.signature(objective.loss).parameters)
        assert names[: len(common)] == common
        assert names[len(common) :] in ([], ["clip"])


# ------------------------------------------------------------------------------------------ KL


def test_estimates_by_hand():
    # d = ref - lp: 0, 1 and -1.
    log_prob, reference = tensor([-1.0, -2.0, -1.0]), tensor([-1.0, -1.0, -2.0])
    assert KL["k1"](log_prob, reference).tolist() == [0.0, -1.0, 1.0]
    assert KL["k2"](log_prob, reference).tolist() == [0.0, 0.5, 0.5]
    assert KL["k3"](log_prob, reference).tolist() == pytest.approx([0, math.e - 2, 1 / math.e])


@pytest.mark.parametrize("name", KL)
def test_estimates_and_their_gradients_on_average(name):
    """Over all fifty outcomes, weighted by the policy that would draw them: no sampling error."""
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    reference = other.log_softmax(-1)

    def mean(estimate):
        """Its mean under the policy, and the mean of its gradient, as a loss would have it."""
        weights = logits.clone().requires_grad_()
        policy = weights.log_softmax(-1)
        values = estimate(policy, reference)
        value = (policy.detach().exp() * values).sum()
        return value.item(), torch.autograd.grad(value, weights)[0]

    def exact(divergence):
        weights = logits.clone().requires_grad_()
        value = divergence(weights.log_softmax(-1))
        return value.item(), torch.autograd.grad(value, weights)[0]

    reverse = exact(lambda policy: (policy.exp() * (policy - reference)).sum())
    forward = exact(lambda policy: (reference.exp() * (reference - policy)).sum())
    value, gradient = mean(KL[name])
    expected = {"k1": torch.zeros(50).double(), "k2": reverse[1], "k3": forward[1]}[name]
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
    assert (value == pytest.approx(reverse[0])) == (name != "k2")
