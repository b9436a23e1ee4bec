"""A pruned tree equals the one built from the items that are left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_trees import CATALOGUES, EOS, assert_same_tree

from rere.errors import InputError
from rere.prefix_tree import PrefixTree
from rere.pruning import prune, prune_rows


def nested_edges(tree, node, depth=0):
    """The tokens on the edge into a node, and the same of each child."""
    start, length = int(tree.edge[node]), int(tree.edge_length[node])
    assert int(tree.depth[node]) == depth + length
    first = int(tree.first_child[node])
    below = range(first, first + int(tree.fanout[node]))
    tokens = tree.token[start : start + length].tolist()
    return tokens, [nested_edges(tree, child, depth + length) for child in below]


def leaves_below(trees, node):
    first, fanout = int(trees.first_child[node]), int(trees.fanout[node])
    if fanout == 0:
        return [node]
    return [leaf for child in range(first, first + fanout) for leaf in leaves_below(trees, child)]


@given(CATALOGUES, st.data())
@settings(max_examples=300, deadline=None)
def test_a_pruned_tree_equals_a_new_one(sequences, data):
    numbers = st.sets(st.integers(0, len(sequences) - 1), min_size=1)
    kept = sorted(data.draw(numbers))
    pruned = prune(PrefixTree.build(sequences), torch.tensor(kept))
    assert_same_tree(pruned, PrefixTree.build([sequences[item] for item in kept]))
    assert pruned.root_length == int(pruned.edge[1])


@given(CATALOGUES, st.data())
@settings(max_examples=300, deadline=None)
def test_each_row_has_the_tree_without_its_leaves(sequences, data):
    tree = PrefixTree.build(sequences)
    leaves = sorted(set(tree.leaf_of_item.tolist()))
    some = st.sets(st.sampled_from(leaves), max_size=len(leaves) - 1)
    excluded = data.draw(st.lists(some, min_size=1, max_size=4))
    trees = prune_rows(tree, excluded)
    for root, without in zip(trees.root.tolist(), excluded, strict=True):
        kept = [
            item for item in range(len(sequences)) if int(tree.leaf_of_item[item]) not in without
        ]
        expected = prune(tree, torch.tensor(kept))
        assert nested_edges(trees, root) == nested_edges(expected, 0)
        found = trees.original[leaves_below(trees, root)].tolist()
        assert sorted(found) == [leaf for leaf in leaves if leaf not in without]
    assert trees.root_fanout >= max(int(trees.fanout[root]) for root in trees.root)


def test_a_row_that_excludes_nothing_shares_the_whole_tree():
    tree = PrefixTree.build([[2, EOS], [3, 4, EOS], [3, 5, EOS]])
    trees = prune_rows(tree, [[], []])
    assert trees.root.tolist() == [0, 0]
    assert len(trees.fanout) == len(tree.fanout)


def test_edges_join_where_one_child_is_left():
    #   2 EOS      3 4 - 6 EOS          without the leaf of 7: 3 4 6 EOS is one edge
    #                  - 7 EOS
    tree = PrefixTree.build([[2, EOS], [3, 4, 6, EOS], [3, 4, 7, EOS]])
    trees = prune_rows(tree, [[int(tree.leaf_of_item[2])], [int(tree.leaf_of_item[0])]])
    assert nested_edges(trees, int(trees.root[0])) == ([], [([2, EOS], []), ([3, 4, 6, EOS], [])])
    assert nested_edges(trees, int(trees.root[1])) == ([3, 4], [([6, EOS], []), ([7, EOS], [])])


def test_something_must_be_left():
    tree = PrefixTree.build([[2, EOS], [3, EOS]])
    with pytest.raises(InputError, match="nothing to recommend"):
        prune(tree, torch.tensor([], dtype=torch.int64))
    with pytest.raises(InputError, match="nothing is left to recommend"):
        prune_rows(tree, [[], tree.leaf_of_item.tolist()])
