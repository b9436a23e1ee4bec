"""The prefix tree against a plain one of nested dicts, and the file that it is kept in."""

import itertools
import re

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import TITLES, TOKENIZERS

from rere.backbones import load_tokenizer
from rere.catalogue import ARRAYS, CATALOGUE, Catalogue, PrefixTree
from rere.errors import InputError
from rere.tokenization import PromptEncoder

EOS = 0
"""Ends every sequence and occurs nowhere else, so that none continues another."""

CATALOGUES = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=30).map(
    lambda paths: [[*path, EOS] for path in paths]
)
TREE = ("token", "edge", "first_child", "depth", "leaf_of_item")


def nested(sequences):
    """The tree as nested dicts, token -> subtree, with each leaf's items under None."""
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


def unflattened(tree, node=0):
    """A PrefixTree as the nested dicts of `nested`, a dict a token."""
    below = {}
    for child in children(tree, node):
        below |= unflattened(tree, child)
    below = below or {None: tree.leaf_items[node]}
    for token in reversed(edge(tree, node)):
        below = {token: below}
    return below


def spelt(tree, item):
    """What the edges from the root to an item's leaf spell."""
    parent = {child: node for node in range(len(tree.depth)) for child in children(tree, node)}
    node, sequence = int(tree.leaf_of_item[item]), []
    while node:
        sequence = edge(tree, node) + sequence
        node = parent[node]
    return edge(tree, 0) + sequence


def assert_same_tree(actual, expected):
    for name in TREE:
        assert getattr(actual, name).equal(getattr(expected, name)), name
    assert actual.longest == expected.longest


# ------------------------------------------------------------------------------------- the tree


@given(CATALOGUES)
@settings(max_examples=200, deadline=None)
def test_equals_a_tree_of_dicts(sequences):
    tree = PrefixTree.build(sequences)
    assert unflattened(tree) == nested(sequences)
    assert tree.longest == max(map(len, sequences))


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_an_edge_ends_where_sequences_part_or_end(sequences):
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
def test_the_edges_to_an_items_leaf_spell_its_sequence(sequences):
    tree = PrefixTree.build(sequences)
    for item, sequence in enumerate(sequences):
        assert spelt(tree, item) == sequence
        assert tree.depth[tree.leaf_of_item[item]] == len(sequence)


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_the_depth_is_that_of_the_node_above_and_the_edge(sequences):
    tree = PrefixTree.build(sequences)
    assert tree.depth[0] == len(edge(tree, 0))
    for node in range(len(tree.depth)):
        for child in children(tree, node):
            assert tree.depth[child] == tree.depth[node] + len(edge(tree, child))


def test_by_hand():
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
    assert {getattr(tree, name).dtype for name in TREE} == {torch.int64}


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


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 200])
def test_a_single_title_is_the_roots_edge(length, items):
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
    assert [spelt(tree, item) for item in range(4)] == sequences
    assert len(tree.depth) == 1 + 3 + 2
    assert tree.longest == 2000


def test_to_keeps_everything():
    tree = PrefixTree.build([[5, 0], [2, 7, 0], [2, 0]])
    assert_same_tree(tree.to("cpu"), tree)


# ------------------------------------------------------------------------------------- the file


def encoder(titles=TITLES, kind="qwen2"):
    return PromptEncoder(tiny_models.tokenizer(kind), titles)


def catalogue(made):
    return Catalogue.build(made, made.responses())


def stored(sequences, titles, path):
    """A catalogue of any sequences, in a file."""
    Catalogue(titles, PrefixTree.build(sequences), "f").save(path)
    return path


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_file_gives_back_what_was_saved(kind, tmp_path):
    made = catalogue(encoder(kind=kind))
    made.save(tmp_path / CATALOGUE)
    loaded = Catalogue.load(tmp_path / CATALOGUE, len(tiny_models.tokenizer(kind)))
    assert list(loaded.titles) == TITLES
    assert loaded.fingerprint == made.fingerprint
    assert_same_tree(loaded.tree, made.tree)
    assert [path.name for path in tmp_path.iterdir()] == [CATALOGUE]


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_any_tree_comes_back(tmp_path_factory, sequences):
    path = tmp_path_factory.mktemp("any") / CATALOGUE
    stored(sequences, ["é" * (1 + item % 3) for item in range(len(sequences))], path)
    assert_same_tree(Catalogue.load(path, 5).tree, PrefixTree.build(sequences))


def test_a_deep_tree_comes_back(tmp_path):
    sequences = [[1] * length + [EOS] for length in range(300)]
    path = stored(sequences, ["a"] * 300, tmp_path / CATALOGUE)
    assert_same_tree(Catalogue.load(path, 2).tree, PrefixTree.build(sequences))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_fingerprint_outlives_saving_the_tokenizer(kind, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    before = PromptEncoder(tokenizer, TITLES).fingerprint()
    tokenizer.save_pretrained(tmp_path)
    loaded = PromptEncoder(load_tokenizer(tmp_path), TITLES)
    loaded.responses()
    assert loaded.fingerprint() == before
    assert re.fullmatch("[0-9a-f]{64}", before)


def test_the_fingerprint_tells_catalogues_apart(monkeypatch):
    fingerprints = [encoder().fingerprint()]
    for titles in ([*TITLES, "More"], TITLES[1:], TITLES[::-1], [*TITLES[:-1], "ac/dc"]):
        fingerprints.append(encoder(titles).fingerprint())
    fingerprints += [encoder(kind=kind).fingerprint() for kind in TOKENIZERS if kind != "qwen2"]

    tokenizer = TOKENIZERS["qwen2"]()
    tokenizer.eos_token = "!"
    fingerprints.append(PromptEncoder(tokenizer, TITLES).fingerprint())
    monkeypatch.setattr("rere.tokenization.response_text", lambda title: f"<{title}>\n")
    fingerprints.append(encoder().fingerprint())
    for one, other in itertools.combinations(fingerprints, 2):
        assert one != other


# What the file of the tree by hand above may have wrong, and what loads must say no to.
DAMAGE = {
    "token": {
        "below the vocabulary": [9, 2, 5, 0, 0, 7, -1, 0],
        "beyond the vocabulary": [9, 2, 5, 0, 0, 7, 10, 0],
        "children of one token": [9, 2, 2, 0, 0, 7, 6, 0],
        "children out of order": [9, 5, 2, 0, 0, 7, 6, 0],
        "too few": [9, 2, 5, 0, 0, 7, 6],
        "too many": [9, 2, 5, 0, 0, 7, 6, 0, 0],
        "none": [],
    },
    "edge": {
        "begins late": [1, 1, 2, 4, 5, 8],
        "ends early": [0, 1, 2, 4, 5, 7],
        "ends late": [0, 1, 2, 4, 5, 9],
        "falls": [0, 1, 4, 2, 5, 8],
        "an empty edge": [0, 1, 1, 4, 5, 8],
        "a node too few": [0, 1, 2, 4, 8],
        "none": [],
        "one": [0],
        "overflows": [0, 2**63 - 1, -(2**63), 4, 5, 8],
    },
    "first_child": {
        "the root is its own child": [0, 3, 5, 5, 5, 5],
        "falls": [1, 5, 3, 5, 5, 5],
        "a cycle": [1, 1, 1, 3, 5, 5],
        "one child": [1, 2, 5, 5, 5, 5],
        "a node too many": [1, 3, 5, 5, 5, 6],
        "too short": [1, 3, 5],
        "none": [],
    },
    "leaf_of_item": {
        "below the nodes": [2, 4, 3, -1],
        "beyond the nodes": [2, 4, 3, 5],
        "no leaf": [2, 4, 3, 1],
        "a leaf without items": [2, 4, 4, 2],
        "too few": [2, 4, 3],
        "too many": [2, 4, 3, 2, 2],
        "none": [],
    },
    "title_bytes": {
        "no UTF-8": [*b"ab", 0xC3, *b"cd"],
        "too few": [*b"ab"],
        "too many": [*b"abccdd"],
    },
    "title_edge": {
        "in a letter": [0, 1, 3, 4, 5],
        "begins late": [1, 1, 2, 4, 5],
        "ends early": [0, 1, 2, 4, 4],
        "falls": [0, 4, 2, 4, 5],
        "too few": [0, 1, 2, 5],
        "none": [],
    },
}


@pytest.fixture
def by_hand(tmp_path):
    sequences = [[9, 5, 0], [9, 2, 7, 6, 0], [9, 2, 0], [9, 5, 0]]
    return stored(sequences, ["a", "b", "é", "d"], tmp_path / CATALOGUE)


def assert_refused(path, vocab_size=10):
    with pytest.raises(InputError) as caught:
        Catalogue.load(path, vocab_size)
    assert str(caught.value) == f"{path}: not a catalogue; train the model again"


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in DAMAGE.items() for fault in faults]
)
def test_a_damaged_array_is_refused(by_hand, name, fault):
    arrays = load_file(by_hand)
    assert Catalogue.load(by_hand, 10).tree.longest == 5
    arrays[name] = torch.tensor(DAMAGE[name][fault], dtype=ARRAYS[name])
    save_file(arrays, by_hand, {"fingerprint": "f"})
    assert_refused(by_hand)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_another_kind_is_refused(by_hand, name):
    arrays = load_file(by_hand)
    for wrong in (arrays[name].float(), arrays[name].int(), arrays[name][None], torch.tensor(1)):
        save_file({**arrays, name: wrong.clone()}, by_hand, {"fingerprint": "f"})
        assert_refused(by_hand)
    del arrays[name]
    save_file(arrays, by_hand, {"fingerprint": "f"})
    assert_refused(by_hand)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_what_loads_can_be_walked(tmp_path_factory, data):
    """Whatever one number of the file is: refused, or a tree that the walks below can trust."""
    path = tmp_path_factory.mktemp("walked") / CATALOGUE
    stored([[9, 5, 0], [9, 2, 7, 6, 0], [9, 2, 0], [9, 5, 0]], ["a", "b", "é", "d"], path)
    arrays = load_file(path)
    array = arrays[data.draw(st.sampled_from(list(arrays)))]
    array[data.draw(st.integers(0, len(array) - 1))] = data.draw(st.integers(0, 11))
    save_file(arrays, path, {"fingerprint": "f"})
    try:
        loaded = Catalogue.load(path, 10)
    except InputError:
        return
    sequences = [spelt(loaded.tree, item) for item in range(4)]
    assert unflattened(loaded.tree) == nested(sequences)
    assert loaded.tree.depth[loaded.tree.leaf_of_item].tolist() == list(map(len, sequences))
    assert len(loaded.titles) == 4


def test_a_file_of_another_format_is_refused(by_hand, tmp_path):
    arrays = load_file(by_hand)
    for metadata in (None, {"format": "pt"}):
        save_file(arrays, by_hand, metadata)
        assert_refused(by_hand)
    for content in (b"", b"{}", b"\x80\x04K\x01.", b"\xff" * 99):
        by_hand.write_bytes(content)
        assert_refused(by_hand)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_cut_file_is_refused(by_hand, kept):
    by_hand.write_bytes(by_hand.read_bytes()[:kept])
    assert_refused(by_hand)


def test_a_smaller_vocabulary_is_refused(by_hand):
    assert_refused(by_hand, vocab_size=9)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        Catalogue.load(tmp_path / CATALOGUE, 10)
    assert str(caught.value) == (
        f"{tmp_path / CATALOGUE}: no such file; `rere sft` and `rere rl` write it"
    )


def test_the_file_holds_the_arrays_and_the_fingerprint_alone(by_hand):
    with safe_open(by_hand, framework="pt") as file:
        assert file.metadata() == {"fingerprint": "f"}
        assert set(file.keys()) == set(ARRAYS)
