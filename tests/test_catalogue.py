"""The prefix tree against a plain one of nested dicts."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rere.catalogue import PrefixTree
from rere.errors import InputError

EOS = 0
"""Ends every sequence and occurs nowhere else, so that none continues another."""

CATALOGUES = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=30).map(
    lambda paths: [[*path, EOS] for path in paths]
)


def nested(sequences):
    """The tree as nested dicts, token -> subtree, with each leaf's items under None."""
    root = {}
    for item, sequence in enumerate(sequences):
        node = root
        for token in sequence:
            node = node.setdefault(token, {})
        node.setdefault(None, []).append(item)
    return root


def unflattened(tree, node=0):
    """A PrefixTree as the nested dicts of `nested`."""
    first, end = tree.first_child[node : node + 2].tolist()
    if first == end:
        return {None: tree.leaf_items[node]}
    return {tree.token[child].item(): unflattened(tree, child) for child in range(first, end)}


def fanouts(root):
    """The most children of a node, depth by depth."""
    level, most = [root], []
    while level:
        children = [[node[t] for t in node if t is not None] for node in level]
        most.append(max(map(len, children)))
        level = [child for group in children for child in group]
    return tuple(most)


@given(CATALOGUES)
@settings(max_examples=200, deadline=None)
def test_equals_a_tree_of_dicts(sequences):
    tree, expected = PrefixTree.build(sequences), nested(sequences)
    assert unflattened(tree) == expected
    assert tree.fanout_by_depth == fanouts(expected)


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_children_are_neighbours_in_the_order_of_their_tokens(sequences):
    tree = PrefixTree.build(sequences)
    first = tree.first_child.tolist()
    assert first[0] == 1
    assert first[-1] == len(tree.token) == len(first) - 1
    for start, end in itertools.pairwise(first):
        tokens = tree.token[start:end].tolist()
        assert tokens == sorted(set(tokens))


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_the_path_to_an_items_leaf_spells_its_sequence(sequences):
    tree = PrefixTree.build(sequences)
    parent = {
        child: node
        for node in range(len(tree.token))
        for child in range(int(tree.first_child[node]), int(tree.first_child[node + 1]))
    }
    for item, sequence in enumerate(sequences):
        node, path = int(tree.leaf_of_item[item]), []
        while node:
            path.append(int(tree.token[node]))
            node = parent[node]
        assert path[::-1] == sequence


def test_by_hand():
    #           0            the root
    #      2         5       nodes 1, 2
    #    0   7       0       nodes 3, 4, 5
    #        0               node 6
    tree = PrefixTree.build([[5, 0], [2, 7, 0], [2, 0], [5, 0]])
    assert tree.token.tolist() == [0, 2, 5, 0, 7, 0, 0]
    assert tree.first_child.tolist() == [1, 3, 5, 6, 6, 7, 7, 7]
    assert tree.leaf_of_item.tolist() == [5, 6, 3, 5]
    assert tree.leaf_items == {5: [0, 3], 6: [1], 3: [2]}
    assert tree.fanout_by_depth == (2, 2, 1, 0)
    assert {tree.token.dtype, tree.first_child.dtype, tree.leaf_of_item.dtype} == {torch.int64}


def test_equal_sequences_share_a_leaf_in_the_order_of_item_id():
    tree = PrefixTree.build([[3, 0], [1, 0], [3, 0], [3, 0]])
    assert tree.leaf_items[int(tree.leaf_of_item[0])] == [0, 2, 3]


@pytest.mark.parametrize(
    ("sequences", "item"),
    [
        ([[4, 5], [4, 5, 0]], 0),
        ([[4, 5, 6, 0], [2, 0], [4, 5]], 2),
        ([[4], [4], [4, 0]], "[01]"),
    ],
)
def test_a_sequence_that_another_continues_is_refused(sequences, item):
    with pytest.raises(InputError, match=f"^item {item}: another item's tokens begin with all"):
        PrefixTree.build(sequences)


def test_an_empty_catalogue_is_refused():
    with pytest.raises(InputError, match="the catalogue is empty"):
        PrefixTree.build([])


@pytest.mark.parametrize("length", [1, 2, 200])
def test_a_single_item_is_a_chain(length):
    tree = PrefixTree.build([range(1, length + 1)])
    assert tree.token.tolist() == list(range(length + 1))
    assert tree.leaf_of_item.tolist() == [length]
    assert tree.fanout_by_depth == (*[1] * length, 0)


def test_a_long_sequence_beside_short_ones():
    long = [*range(10, 209), EOS]
    tree = PrefixTree.build([[5, EOS], long, [10, 11, EOS], [EOS]])
    assert unflattened(tree) == nested([[5, EOS], long, [10, 11, EOS], [EOS]])
    assert len(tree.fanout_by_depth) == 201


def test_to_keeps_everything():
    tree = PrefixTree.build([[5, 0], [2, 7, 0], [2, 0]])
    moved = tree.to("cpu")
    assert unflattened(moved) == unflattened(tree)
    assert moved.fanout_by_depth == tree.fanout_by_depth
