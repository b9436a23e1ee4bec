"""The prefix tree equals a plain one of nested dicts."""

import pytest
import torch
from hypothesis import given, settings
from prefix_trees import (
    CATALOGUES,
    EOS,
    TREE_ARRAYS,
    assert_same_tree,
    children,
    edge,
    nested_dicts,
    sequence_of,
    tree_to_dicts,
)

from rere.errors import InputError
from rere.prefix_tree import PrefixTree


@given(CATALOGUES)
@settings(max_examples=200, deadline=None)
def test_the_tree_equals_one_of_dicts(sequences):
    tree = PrefixTree.build(sequences)
    assert tree_to_dicts(tree) == nested_dicts(sequences)
    assert tree.longest == max(map(len, sequences))


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_an_edge_ends_where_sequences_branch_or_end(sequences):
    tree = PrefixTree.build(sequences)
    for node in range(len(tree.depth)):
        assert len(children(tree, node)) != 1
        assert node == 0 or edge(tree, node)
        firsts = [edge(tree, child)[0] for child in children(tree, node)]
        assert firsts == sorted(set(firsts))


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_nodes_are_numbered_level_by_level(sequences):
    tree = PrefixTree.build(sequences)
    level, expected = [0], 0
    while level:
        assert level == list(range(expected, expected + len(level)))
        expected += len(level)
        level = [child for node in level for child in children(tree, node)]
    assert expected == len(tree.depth)


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_the_edges_to_a_leaf_have_its_items_sequence(sequences):
    tree = PrefixTree.build(sequences)
    for item, sequence in enumerate(sequences):
        assert sequence_of(tree, item) == sequence
        assert tree.depth[tree.leaf_of_item[item]] == len(sequence)


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_the_depth_is_the_parents_plus_the_edges_tokens(sequences):
    tree = PrefixTree.build(sequences)
    assert tree.depth[0] == len(edge(tree, 0))
    for node in range(len(tree.depth)):
        for child in children(tree, node):
            assert tree.depth[child] == tree.depth[node] + len(edge(tree, child))


def test_a_tree_by_hand():
    #        9              node 0, the root's edge: all begin with it
    #    2       5 0        nodes 1, 2
    #  0   7 6 0            nodes 3, 4
    tree = PrefixTree.build([[9, 5, 0], [9, 2, 7, 6, 0], [9, 2, 0], [9, 5, 0]])
    assert tree.token.tolist() == [9, 2, 5, 0, 0, 7, 6, 0]
    assert tree.edge.tolist() == [0, 1, 2, 4, 5, 8]
    assert tree.first_child.tolist() == [1, 3, 5, 5, 5, 5]
    assert tree.depth.tolist() == [1, 2, 3, 3, 5]
    assert tree.leaf_of_item.tolist() == [2, 4, 3, 2]
    assert tree.leaf_items == {2: [0, 3], 4: [1], 3: [2]}
    assert tree.first_item.tolist() == [-1, -1, 0, 2, 1]
    assert tree.longest == 5
    assert {getattr(tree, name).dtype for name in TREE_ARRAYS} == {torch.int64}


@pytest.mark.parametrize(
    ("sequences", "item"),
    [
        ([[4, 5], [4, 5, 0]], 0),
        ([[4, 5, 6, 0], [2, 0], [4, 5]], 2),
        ([[4], [4], [4, 0]], "[01]"),
    ],
)
def test_a_prefix_of_another_sequence_is_refused(sequences, item):
    with pytest.raises(InputError, match=f"^item {item}: another item's tokens begin with all"):
        PrefixTree.build(sequences)


def test_an_empty_catalogue_is_refused():
    with pytest.raises(InputError, match="the catalogue is empty"):
        PrefixTree.build([])


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 200])
def test_a_single_title_is_on_the_roots_edge(length, items):
    tree = PrefixTree.build([range(1, length + 1)] * items)
    assert tree.token.tolist() == list(range(1, length + 1))
    assert tree.edge.tolist() == [0, length]
    assert tree.first_child.tolist() == [1, 1]
    assert tree.leaf_items == {0: list(range(items))}
    assert (tree.depth.tolist(), tree.longest) == ([length], length)


def test_a_long_sequence_beside_short_ones():
    long = [*range(10, 2009), EOS]
    sequences = [[5, EOS], long, [10, 11, EOS], [EOS]]
    tree = PrefixTree.build(sequences)
    assert [sequence_of(tree, item) for item in range(4)] == sequences
    assert len(tree.depth) == 1 + 3 + 2
    assert tree.longest == 2000


def test_a_moved_tree_is_equal():
    tree = PrefixTree.build([[5, 0], [2, 7, 0], [2, 0]])
    assert_same_tree(tree.to("cpu"), tree)
