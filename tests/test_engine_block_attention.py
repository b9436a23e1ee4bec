"""Which nodes attend together; that it changes no value is shown where scores are compared."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import causal_lm, precise

from rere.engine import block_attention
from rere.engine.block_attention import IN_BLOCKS, blocks_of, in_blocks
from rere.engine.packing import pack
from rere.engine.scoring import token_log_probs

PROMPTS = [[5, 9, 3, 4, 7, 11], [2, 3, 22]]
CANDIDATES = [[[2, 3, 8, 1], [4, 1], [2, 5, 9, 1]], [[2, 1], [3, 1]]]
TOKENS = st.lists(st.integers(2, 4), min_size=1, max_size=6)
GROUPS = st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=3)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(block_attention, "BLOCK", 3)
    monkeypatch.setitem(block_attention.MANY_NODES, "cpu", 7)


@pytest.fixture
def attended(monkeypatch):
    """The shapes of queries and keys, (rows, tokens) of each, call after call."""
    attend, shapes = torch.nn.functional.scaled_dot_product_attention, []

    def noted(query, key, *args, **kwargs):
        shapes.append((len(query), query.shape[2], key.shape[2]))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    return shapes


def test_blocks_by_hand():
    # Level by level: 0 is the root, 1 and 2 are tokens 2 and 4 behind it, 3 and 4 are 3 and 5
    # behind 2, 5 and 6 are 8 and 9 behind these. In the second row 1 and 2 follow 0, and 3 to 6
    # are padding.
    ancestors = pack(PROMPTS, CANDIDATES).ancestors
    node, seen, place = blocks_of(ancestors)
    # A parent comes before its children, and all of these before it has another brother.
    assert node[0].tolist() == [[0, 2, 1], [4, 6, 3], [5, 5, 5]]
    assert place[0].tolist() == [0, 2, 1, 5, 3, 6, 4]
    # 4, 6 and 3 see themselves, and 0 and 1 before them; five at most, as many as all have here.
    assert [sorted(row) for row in seen[0].tolist()] == [
        [0, 1, 2, 3, 4],
        [0, 1, 3, 4, 6],
        [0, 1, 2, 3, 5],
    ]
    assert sorted(place[1].tolist()) == list(range(7))


@given(GROUPS)
def test_each_node_is_in_a_block_with_all_that_it_sees(candidates):
    ancestors = pack([[7, 8]] * len(candidates), candidates).ancestors
    node, seen, place = blocks_of(ancestors)
    every = torch.arange(ancestors.shape[1]).expand(len(ancestors), -1)
    assert torch.equal(node.flatten(1).gather(1, place), every)
    for row, of_block, its in zip(
        ancestors.repeat_interleave(node.shape[1], dim=0),
        node.flatten(0, 1),
        seen.flatten(0, 1),
        strict=True,
    ):
        assert len(its.unique()) == len(its)
        assert set(row[of_block].any(0).nonzero()[:, 0].tolist()) <= set(its.tolist())


@given(GROUPS)
def test_a_walk_goes_on_below_a_node_before_it_leaves_it(candidates):
    for ancestors in pack([[7, 8]] * len(candidates), candidates).ancestors:
        order = block_attention.walk(ancestors)
        sees = ancestors[order][:, order]
        for at, count in enumerate(sees.sum(0).tolist()):
            assert sees[at : at + count, at].all()


def test_a_block_attends_to_the_prompt_and_what_it_sees(attended):
    model = causal_lm("qwen2", 23)
    packed = pack(PROMPTS, CANDIDATES)
    token_log_probs(model, packed)
    heads = model.config.num_attention_heads // model.config.num_key_value_heads
    # Five tokens of the prompt, beside the last; three blocks a row; the last layer does its
    # seven nodes at once.
    assert attended == [(2, 5, 5), (6, heads * 3, 5 + 5), (2, 7, 12)]


def test_few_nodes_attend_at_once(attended):
    packed = pack(PROMPTS, [[[2, 3, 8, 1], [4, 1]], [[2, 1], [3, 1]]])
    token_log_probs(causal_lm("qwen2", 23), packed)
    assert attended == [(2, 10, 10), (2, 5, 10)]


def test_attention_is_as_before_afterwards():
    model, ancestors = precise("qwen2"), pack(PROMPTS, CANDIDATES).ancestors
    with pytest.raises(RuntimeError), in_blocks(model, ancestors):
        assert model.config._attn_implementation == IN_BLOCKS
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with in_blocks(model, ancestors):
        assert model.config._attn_implementation == "eager"


def test_layers_that_are_computed_again_attend_at_once():
    model, ancestors = precise("qwen2"), pack(PROMPTS, CANDIDATES).ancestors
    model.activation_checkpointing_enable()
    with in_blocks(model.train(), ancestors):
        assert model.config._attn_implementation == "sdpa"
    with in_blocks(model.eval(), ancestors):
        assert model.config._attn_implementation == IN_BLOCKS


def test_prompts_of_a_single_token(monkeypatch):
    model, packed = precise("qwen2"), pack([[5], [2]], CANDIDATES)
    actual = token_log_probs(model, packed)
    monkeypatch.setitem(block_attention.MANY_NODES, "cpu", 1000)
    torch.testing.assert_close(actual, token_log_probs(model, packed), rtol=0, atol=1e-9)
