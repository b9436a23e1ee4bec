"""Rewards: by hand, against loops, and own functions."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rere import config
from rere.baselines import sequential
from rere.baselines.ranking import rank_top
from rere.baselines.sasrec import SasrecModel
from rere.config.rl import reward_weights
from rere.data.factors import Factors
from rere.errors import InputError
from rere.training.rewards import (
    HIT_REWARDS,
    Groups,
    collaborative,
    make_reward,
    ranking,
    ranking_literal,
    rule,
    semantic,
    weighted_sum,
)

NONE = -torch.inf
# 1 / log2(rank + 1) for ranks 1 .. 4, and their sum.
DISCOUNTS = [1.0, 0.6309298, 0.5, 0.4306766]
TOTAL = 2.5616064


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def hits(rows):
    return torch.tensor(rows, dtype=torch.bool)


def groups(item=((3, 1, -1),), target=(1,), row_id=(7,)) -> Groups:
    """By default one group of three: a wrong item, the target, and a non-item."""
    item, target = torch.tensor(item), torch.tensor(target)
    log_prob = torch.arange(-1.0, -1 - item.shape[1], -1).expand(item.shape)
    return Groups(
        row_id=torch.tensor(row_id),
        history=[[0, 2]] * len(item),
        target=target,
        item=item,
        hit=item == target[:, None],
        log_prob=log_prob.masked_fill(item < 0, NONE),
    )


# -------------------------------------------------------------------------------- rule, ranking


def test_rule_is_one_for_the_target():
    reward = rule(hits([[0, 1, 0], [0, 0, 0]]), tensor([[-1, -2, -3], [-1, -2, NONE]]))
    assert reward.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_ranking_by_hand():
    log_prob = tensor([[-1.0, -2.0, -3.0, -4.0]])
    for position in range(4):
        hit = torch.arange(4)[None] == position
        expected = [-discount / TOTAL for discount in DISCOUNTS]
        expected[position] = 0.0
        assert ranking(hit, log_prob)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_ranking_with_sixteen_candidates():
    total = sum(1 / math.log2(rank + 1) for rank in range(1, 17))
    assert total == pytest.approx(6.106, abs=5e-4)
    reward = ranking(torch.arange(16)[None] == 2, -torch.arange(16.0)[None])[0]
    # The best wrong candidate has -1 / 6.106. The sum lacks the target's third discount,
    # 1 / log2(4) = 1/2: it is -(6.106 - 0.5) / 6.106.
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


def test_empty_slots_have_no_reward_but_a_share_of_the_sum():
    hit, log_prob = hits([[0, 1, 0, 0]]), tensor([[-1.0, -2.0, NONE, NONE]])
    # Two empty slots rank last; the sum is still over all four.
    expected = [-1 / TOTAL, 0.0, 0.0, 0.0]
    assert ranking(hit, log_prob)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_literal_ranking_by_hand():
    log_prob = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    hit = torch.tensor([[False, True, False, False]])
    # The wrong candidates have ranks 1, 3 and 4: 1 + .5 + .4307 = 1.9307.
    expected = [-1 / 1.9306766, 0.0, -0.5 / 1.9306766, -0.4306766 / 1.9306766]
    assert ranking_literal(hit, log_prob)[0].tolist() == pytest.approx(expected, abs=1e-6)
    # Without the target all four are wrong: 2.5616.
    missed = ranking_literal(torch.zeros_like(hit), log_prob)[0]
    assert missed.tolist() == pytest.approx([-d / 2.5616064 for d in DISCOUNTS], abs=1e-6)
    assert ranking(torch.zeros_like(hit), log_prob)[0].tolist() == [0.0] * 4


def test_literal_ranking_of_one_or_no_wrong_candidate():
    hit = torch.tensor([[True, False, False], [True, False, False]])
    log_prob = torch.tensor([[-1.0, -2.0, NONE], [-1.0, NONE, NONE]])
    assert ranking_literal(hit, log_prob).tolist() == [[0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


RANKED = st.integers(2, 16).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(-500, 0), min_size=size, max_size=size, unique=True),
        st.integers(0, size),
        st.lists(st.booleans(), min_size=size, max_size=size),
    )
)


@given(RANKED)
@settings(max_examples=100, deadline=None)
def test_both_rankings_equal_a_loop(group):
    log_probs, position, invalid = group
    size = len(log_probs)
    log_probs = [
        NONE if bad and i != position else float(lp)
        for i, (lp, bad) in enumerate(zip(log_probs, invalid, strict=True))
    ]
    better = sorted(range(size), key=lambda i: -log_probs[i])
    cost = {i: 1 / math.log2(rank + 1) for rank, i in enumerate(better, start=1)}
    wrong = [i for i in range(size) if i != position and log_probs[i] > NONE]
    released = [0.0] * size
    literal = [0.0] * size
    for i in wrong:
        literal[i] = -cost[i] / sum(cost[j] for j in wrong)
        if position < size:
            released[i] = -cost[i] / sum(cost.values())
    hit, log_prob = torch.arange(size)[None] == position, torch.tensor([log_probs])
    assert ranking(hit, log_prob)[0].tolist() == pytest.approx(released, abs=1e-6)
    assert ranking_literal(hit, log_prob)[0].tolist() == pytest.approx(literal, abs=1e-6)
    assert sum(literal) == pytest.approx(-1.0 if wrong else 0.0)


GROUPS = st.integers(2, 16).flatmap(
    lambda size: st.tuples(
        st.permutations(range(size)),
        st.integers(0, size),
        st.lists(st.integers(-500, 0), min_size=size, max_size=size, unique=True),
    )
)


@given(GROUPS)
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("name", HIT_REWARDS)
def test_order_of_candidates_does_not_matter(name, group):
    order, position, log_probs = group
    hit = torch.arange(len(order))[None] == position  # none where `position` is one past the last
    log_prob = tensor([log_probs])
    reward = HIT_REWARDS[name](hit, log_prob)
    shuffled = HIT_REWARDS[name](hit[:, order], log_prob[:, order])
    torch.testing.assert_close(shuffled, reward[:, order], atol=1e-6, rtol=0)


# --------------------------------------------------------------------- semantic, collaborative


def test_semantic_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [-6.0, -8.0], [0.0, 2.0], [0.0, 0.0]])
    # The target, item 1, is (3, 4) of length 5. Its similarity to item 0 is 3/5, to itself 1, to
    # item 2, the opposite, -1, to item 3 (4 * 2) / (5 * 2) = 4/5, to item 4, of length 0, 0.
    item = torch.tensor([[0, 1, 2, 3, 4, -1]])
    reward = semantic(item, torch.tensor([1]), embeddings)[0]
    assert reward.tolist() == pytest.approx([0.6, 1.0, -1.0, 0.8, 0.0, 0.0], abs=1e-6)


def test_semantic_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(9, 5, generator=generator)
    item = torch.randint(-1, 9, (4, 6), generator=generator)
    target = torch.randint(0, 9, (4,), generator=generator)
    reward = semantic(item, target, embeddings)
    for row in range(4):
        for g in range(6):
            i = item[row, g].item()
            a, b = embeddings[i].tolist(), embeddings[target[row]].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            expected = dot / math.hypot(*a) / math.hypot(*b) if i >= 0 else 0.0
            assert reward[row, g].item() == pytest.approx(expected, abs=1e-6)


def test_collaborative_by_hand():
    factors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    state = torch.tensor([[0.5, 1.0], [-1.0, 3.0]])
    # (.5, 1) with (1, 0) is .5, with (0, 2) 2; (-1, 3) with (1, 1) is 2, with (0, 2) 6.
    reward = collaborative(torch.tensor([[0, 1], [2, -1]]), state, factors)
    assert reward.tolist() == [[0.5, 2.0], [2.0, 0.0]]


def random_sasrec() -> tuple[SasrecModel, pl.DataFrame, Factors]:
    """A model with large weights, unsorted training rows, and the model's factors."""
    torch.manual_seed(0)
    model = SasrecModel(config.baselines.Sasrec(hidden_size=8), num_items=6, max_history=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    columns = {"row_id": [12, 3, 7], "history": [[1, 2], [5], [0, 4, 3, 2]]}
    rows = pl.DataFrame(columns, schema={"row_id": pl.Int64, "history": pl.List(pl.Int32)})
    return model, rows, sequential.make_factors(model, rows)


def test_factors_give_the_models_logits():
    model, rows, factors = random_sasrec()
    items, logits = rank_top(model, rows["history"], 6)
    reward = make_reward("collaborative", factors=factors)
    made = reward(groups(items.tolist(), [0, 0, 0], rows["row_id"].to_list()))
    assert made.tolist() == pytest.approx(logits, abs=1e-5)


def test_factors_are_saved_and_loaded(tmp_path):
    _, rows, factors = random_sasrec()
    path = tmp_path / "factors.safetensors"
    factors.save(path)
    loaded = Factors.load(path, rows["row_id"].to_numpy(), 6)
    for name, value in vars(factors).items():
        assert torch.equal(getattr(loaded, name), value), name


def test_factors_of_another_dataset_are_refused(tmp_path):
    _, rows, factors = random_sasrec()
    path, row_ids = tmp_path / "factors.safetensors", rows["row_id"].to_numpy()
    factors.save(path)
    for ids, items in [(row_ids, 7), (row_ids[:2], 6), (row_ids + 1, 6)]:
        with pytest.raises(InputError, match="made from another data set or split"):
            Factors.load(path, ids, items)
    Factors(factors.row_id, factors.state * math.nan, factors.item).save(path)
    with pytest.raises(InputError, match="not the factors of a baseline; train it again"):
        Factors.load(path, row_ids, 6)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not the factors of a baseline"):
        Factors.load(path, row_ids, 6)
    with pytest.raises(InputError, match="not the factors of a baseline"):
        Factors.load(tmp_path / "nowhere", np.array([0]), 6)


# --------------------------------------------------------------------------- names and weights


def test_every_name_in_the_config_is_a_reward():
    made = {name: make_reward(name, torch.eye(6), random_sasrec()[2]) for name in config.rl.REWARDS}
    each = groups()
    components = {name: reward(each) for name, reward in made.items()}
    assert all(part.shape == (1, 3) and part.dtype == torch.float32 for part in components.values())
    assert all(part[0, 2] == 0 for part in components.values())  # the non-item
    assert set(HIT_REWARDS) < set(config.rl.REWARDS)


def test_weighted_sum_by_hand():
    each = groups()
    weights = reward_weights(["rule=2", "ranking_literal=0.5"])
    components = {name: make_reward(name)(each) for name in weights}
    # The one wrong candidate gets half of -1, the target twice 1.
    assert weighted_sum(components, weights).tolist() == [[-0.5, 2.0, 0.0]]


def test_default_weights_give_a_plain_sum():
    hit, log_prob = torch.tensor([[False, True, False]]), torch.tensor([[-1.0, -2.0, -3.0]])
    components = {"rule": rule(hit, log_prob), "ranking": ranking(hit, log_prob)}
    total = weighted_sum(components, reward_weights(["rule", "ranking"]))
    assert torch.equal(total, components["rule"] + components["ranking"])


def test_rewards_with_and_without_a_weight_are_parsed():
    written = ["rule", "semantic=0.5", "collaborative=-1e-2", "my.rewards:short=3"]
    assert reward_weights(written) == {
        "rule": 1.0,
        "semantic": 0.5,
        "collaborative": -0.01,
        "my.rewards:short": 3.0,
    }


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["rankng"], "there is no rankng; did you mean ranking? (your own is module:function)"),
        (["rule", "rule=2"], "rule comes twice"),
        (["rule=much"], "rule=much: 'much' is not a weight; write rule=0.5"),
        (["rule="], "rule=: '' is not a weight; write rule=0.5"),
        (["rule=nan"], "rule=nan: a weight must be finite"),
        (["os.system('x'):y"], "there is no os.system('x'):y"),
    ],
)
def test_wrong_rewards_are_refused(written, message):
    with pytest.raises(InputError) as error:
        reward_weights(written)
    assert str(error.value).startswith(message)


# --------------------------------------------------------------------------------- own rewards


def test_own_reward(own_rewards):
    each = groups()._replace(log_prob=torch.tensor([[-1.0, -2.0, -3.0]]))
    # Item 3: 0 + .1; item 1: 1 + .2; a non-item has 0 whatever the function returns.
    reward = make_reward("own_rewards:early")(each)
    assert reward[0].tolist() == pytest.approx([0.1, 1.2, 0.0])
    assert reward.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "returned float; return a tensor of floats"),
        ("integers", "returned torch.int64; return a tensor of floats"),
        ("by_prompt", r"returned shape \(1,\); return one reward per candidate, \(1, 3\)"),
        ("infinite", "returned an infinite or NaN reward; return finite numbers"),
    ],
)
def test_wrong_result_is_a_one_line_error(own_rewards, name, message):
    reward = make_reward(f"broken_rewards:{name}")
    with pytest.raises(InputError, match=f"reward broken_rewards:{name}: {message}") as error:
        reward(groups())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no_such_module:f", "broken_rewards:f", "own_rewards:"])
def test_function_that_cannot_be_imported_is_refused(own_rewards, name):
    with pytest.raises(InputError, match=f"reward {name}: cannot be imported"):
        make_reward(name)
