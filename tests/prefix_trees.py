"""Token sequences for prefix trees, and trees in forms that are easy to compare."""

from hypothesis import strategies as st

from rere.catalogue import Catalogue
from rere.prefix_tree import PrefixTree

EOS = 0
"""Ends every sequence and occurs nowhere else, so none is a prefix of another."""

CATALOGUES = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=30).map(
    lambda paths: [[*path, EOS] for path in paths]
)
SMALL_CATALOGUE = ([[9, 5, 0], [9, 2, 7, 6, 0], [9, 2, 0], [9, 5, 0]], ["a", "b", "é", "d"])
"""Token sequences and titles of four items."""

TREE_ARRAYS = ("token", "edge", "first_child", "depth", "leaf_of_item")


def save_catalogue(sequences, titles, path):
    """Save the catalogue of these items, with the fingerprint f; return the path."""
    ids = [f"raw{item}" for item in range(len(titles))]
    Catalogue(titles, PrefixTree.build(sequences), "f", ids, max_history=3).save(path)
    return path


def nested_dicts(sequences):
    """The tree as nested dicts, token -> subtree, with a leaf's items under None."""
    root = {}
    for item, sequence in enumerate(sequences):
        node = root
        for token in sequence:
            node = node.setdefault(token, {})
        node.setdefault(None, []).append(item)
    return root


def edge(tree, node):
    """The tokens on the edge into a node."""
    return tree.token[tree.edge[node] : tree.edge[node + 1]].tolist()


def children(tree, node):
    return range(int(tree.first_child[node]), int(tree.first_child[node + 1]))


def tree_to_dicts(tree, node=0):
    """A PrefixTree as the nested dicts of `nested_dicts`, one per token."""
    below = {}
    for child in children(tree, node):
        below |= tree_to_dicts(tree, child)
    below = below or {None: tree.leaf_items[node]}
    for token in reversed(edge(tree, node)):
        below = {token: below}
    return below


def sequence_of(tree, item):
    """The tokens on the edges from the root to an item's leaf."""
    parent = {child: node for node in range(len(tree.depth)) for child in children(tree, node)}
    node, sequence = int(tree.leaf_of_item[item]), []
    while node:
        sequence = edge(tree, node) + sequence
        node = parent[node]
    return edge(tree, 0) + sequence


def assert_same_tree(actual, expected):
    for name in TREE_ARRAYS:
        assert getattr(actual, name).equal(getattr(expected, name)), name
    assert actual.longest == expected.longest
