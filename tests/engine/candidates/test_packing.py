"""Packed batches by hand, and that no token is fed or predicted twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import AllowedTokens, pack
from rere.engine.candidates.scoring import sum_by_candidate
from rere.engine.model.padding import left_pad, token_positions
from rere.prefix_tree import PrefixTree

EOS = 1
# Nodes of the tree and the tokens of their edges: root 0 [7]; below it 1 [2] and leaf 2 [3 5 1];
# below 1 leaf 3 [1] and 4 [4 6]; below 4 leaf 5 [1] and leaf 6 [8 1].
SEQUENCES = [[7, 2, 1], [7, 3, 5, 1], [7, 2, 4, 6, 1], [7, 2, 4, 6, 8, 1]]
TREE = PrefixTree.build(SEQUENCES)
LEAF = TREE.leaf_of_item.tolist()
CATALOGUES = st.lists(
    st.lists(st.integers(2, 5), max_size=5).map(lambda s: [*s, EOS]), min_size=1, max_size=12
)


def test_left_pad_and_positions_by_hand():
    ids, is_token = left_pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert is_token.tolist() == [[True, True, True], [False, False, True]]
    assert token_positions(is_token).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_pack_by_hand():
    packed = pack([[5, 6], [7]], [[[2, 3, 1], [2, 4, 1], [8, 1], [2, 3, 1]], [[1]]])
    # Positions of the tree's tokens: 1 of the prompt's last token 6, 2 of 2 and 8, 3 of 3 and 4.
    # Depth-first, 3 and 4 come before 8. Last tokens are predicted, not fed.
    assert packed.input_ids.tolist() == [[5, 6, 2, 3, 4, 8], [0, 7, 0, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 3, 2], [0, 0, 0, 0, 0, 0]]
    assert packed.is_token.int().tolist() == [[1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]]
    assert (packed.num_tokens, packed.logits_to_keep, packed.num_logits) == (7, 5, 6)
    assert packed.num_candidates == 4
    # Logits 0 (after 6) predict 2 and 8, 1 (after 2) 3 and 4, 2 to 4 (after 3, 4 and 8) 1; those of
    # the second row, 5 (after 7), predict 1.
    assert packed.logits_index.tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
    assert packed.token.tolist() == [2, 8, 3, 4, 1, 1, 1, 1]
    assert packed.prediction.tolist() == [[0, 2, 4, 0, 3, 5, 1, 6, 0, 2, 4], [7] + [8] * 10]
    assert packed.candidate.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [0] + [4] * 10]
    assert packed.allowed is None
    assert packed.visible.int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 0, 1, 0],
            [1, 1, 0, 0, 0, 1],
        ],
        torch.eye(6).int().tolist(),
    ]


def test_decisions_by_hand():
    leaves = torch.tensor([[LEAF[3], LEAF[1], -1], [LEAF[0], -1, -1]])
    packed = pack_leaves([[5, 6], [9]], leaves, TREE, "catalogue")
    # Decisions of 7 2 4 6 8 1: 2 or 3 after 7, 1 or 4 after 2, 1 or 8 after 6; of 7 3 5 1: after 7;
    # of 7 2 1: after 7 and 2. Nodes without a decision come first: the prompts' last tokens, and 4.
    # Tokens behind the last decision (3, 5 and 8) are not fed.
    assert packed.input_ids.tolist() == [[5, 6, 4, 7, 2, 6], [0, 9, 0, 7, 2, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 4, 2, 3, 5], [0, 0, 0, 1, 2, 0]]
    assert packed.is_token.int().tolist() == [[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]]
    assert (packed.num_tokens, packed.logits_to_keep, packed.num_logits) == (9, 3, 5)
    assert packed.num_candidates == 3
    assert packed.logits_index.tolist() == [0, 0, 1, 2, 3, 4]
    assert packed.token.tolist() == [2, 3, 4, 8, 2, 1]
    assert packed.prediction.tolist() == [[0, 2, 3, 1], [4, 5, 6, 6]]
    assert packed.candidate.tolist() == [[0, 0, 0, 1], [0, 0, 3, 3]]
    assert packed.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    # Logits 0 to 2 are after the first row's 7, 2 and 6; 3 and 4 after the second row's 7 and 2.
    assert packed.allowed.logits_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert packed.allowed.token.tolist() == [2, 3, 1, 4, 1, 8, 2, 3, 1, 4]


def test_leaves_are_packed_like_their_sequences():
    prompts, leaves = [[5, 6], [9]], torch.tensor([[LEAF[3], LEAF[1], -1], [LEAF[0], -1, LEAF[2]]])
    actual = pack_leaves(prompts, leaves, TREE, "vocabulary")
    expected = pack(prompts, [[SEQUENCES[3], SEQUENCES[1]], [SEQUENCES[0], SEQUENCES[2]]], 3)
    for name, value in vars(expected).items():
        if name == "candidate":
            # The second row's second candidate is in the third slot.
            value = torch.where((value == 1) & torch.tensor([[False], [True]]), 2, value)
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(getattr(actual, name), value), name


@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
def test_rows_without_candidates(scoring):
    packed = pack_leaves([[5, 6], [9]], torch.tensor([[-1], [LEAF[0]]]), TREE, scoring)
    assert (packed.candidate[0] == 1).all()
    assert (packed.prediction[0] == len(packed.logits_index)).all()


def test_the_only_title_has_no_decisions():
    tree = PrefixTree.build([[3, 4, 1]])
    packed = pack_leaves([[5, 6]], torch.tensor([[0, 0]]), tree, "catalogue")
    assert packed.input_ids.tolist() == [[5, 6, 0]]
    assert packed.candidate.shape == packed.prediction.shape == (1, 0)
    assert packed.logits_to_keep == packed.num_logits == 1  # 0 would keep all
    assert packed.is_token.tolist() == [[True, True, True]]
    assert sum_by_candidate(torch.zeros(1, 0), packed).tolist() == [[0.0, 0.0]]


def test_a_decision_at_the_first_token():
    tree = PrefixTree.build([[3, 4, 1], [2, 5, 1], [2, 1]])
    packed = pack_leaves(
        [[5], [6, 7]], tree.leaf_of_item[None, [0, 1]].expand(2, -1), tree, "catalogue"
    )
    assert packed.input_ids.tolist() == [[0, 5, 2], [6, 7, 2]]
    assert packed.token.tolist() == [2, 3, 5, 2, 3, 5]
    assert packed.logits_index.tolist() == [0, 0, 1, 2, 2, 3]


@given(CATALOGUES, st.data())
@settings(max_examples=100, deadline=None)
def test_no_token_is_fed_or_predicted_twice(sequences, data):
    some = st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=6)
    items = [data.draw(some) for _ in range(2)]
    candidates = [[tuple(sequences[item]) for item in row] for row in items]
    packed = pack([[8, 9], [9]], candidates)
    num_fed = [len({c[:end] for c in row for end in range(len(c))}) for row in candidates]
    assert packed.logits_to_keep == packed.ancestors.shape[1] == max(num_fed)
    assert packed.num_logits == sum(num_fed)
    predicted = {
        (b, c[: end + 1]) for b, row in enumerate(candidates) for c in row for end in range(len(c))
    }
    assert len(packed.logits_index) == len(predicted)
    # Each candidate token is predicted by the logits after the token before it.
    assert packed.num_tokens == packed.is_token.sum() == sum(num_fed) + 1
    for row, ids in enumerate(packed.input_ids[:, -packed.logits_to_keep :]):
        for slot, tokens in enumerate(candidates[row]):
            which = packed.prediction[row][packed.candidate[row] == slot]
            assert packed.token[which].tolist() == list(tokens)
            at = packed.logits_index[which] - sum(num_fed[:row])
            assert ids[at].tolist() == [9, *tokens[:-1]]


@given(CATALOGUES, st.data())
@settings(max_examples=100, deadline=None)
def test_decisions_are_where_sequences_branch(sequences, data):
    tree = PrefixTree.build(sequences)
    items = data.draw(st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=6))
    packed = pack_leaves([[8, 9]], tree.leaf_of_item[None, items], tree, "catalogue")
    ids = packed.input_ids[0, -packed.logits_to_keep :]
    fed = set()
    for slot, item in enumerate(items):
        tokens = sequences[item]
        nexts = [
            {s[end] for s in sequences if s[:end] == tokens[:end]} for end in range(len(tokens))
        ]
        ends = [end for end, allowed in enumerate(nexts) if len(allowed) > 1]
        which = packed.prediction[0][packed.candidate[0] == slot]
        assert packed.token[which].tolist() == [tokens[end] for end in ends]
        assert ids[packed.logits_index[which]].tolist() == [[9, *tokens][end] for end in ends]
        for index, end in zip(packed.logits_index[which].tolist(), ends, strict=True):
            among = packed.allowed.token[packed.allowed.logits_index == index]
            assert among.tolist() == sorted(nexts[end])
        fed |= {tuple(tokens[:end]) for end in range(max(ends, default=0) + 1)}
    at_most = 1 + (not any(len(path) == 0 for path in fed)) + len(fed)
    assert packed.ancestors.shape[1] <= at_most


def test_allowed_tokens_move_to_the_device():
    packed = pack_leaves([[5]], torch.tensor([LEAF]), TREE, "catalogue")
    moved = packed.to("meta")
    assert isinstance(moved.allowed, AllowedTokens)
    tensors = [x for x in [*vars(moved).values(), *moved.allowed] if isinstance(x, torch.Tensor)]
    assert all(x.device.type == "meta" for x in tensors)
    assert (moved.num_logits, moved.num_candidates) == (packed.num_logits, packed.num_candidates)


def test_slots_without_a_candidate_sum_to_zero():
    packed = pack([[3]], [[[2, 3, 1], [4, 1]]], num_candidates=4)
    assert packed.num_candidates == 4
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    assert sum_by_candidate(values, packed).tolist() == [[7.0, 24.0, 0.0, 0.0]]


def test_sum_by_candidate_by_hand():
    packed = pack([[3], [3]], [[[2, 3, 1], [4, 1]], [[5, 1]]])
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], [32.0, 64.0, 99.0, 99.0, 99.0]])
    assert sum_by_candidate(values, packed).tolist() == [[7.0, 24.0], [96.0, 0.0]]
