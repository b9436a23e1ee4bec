"""The catalogue file: what is saved is loaded unchanged, and anything else is refused."""

import itertools
import re

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_trees import (
    CATALOGUES,
    EOS,
    SMALL_CATALOGUE,
    assert_same_tree,
    nested_dicts,
    save_catalogue,
    sequence_of,
    tree_to_dicts,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import TITLES, TOKENIZERS

from rere.backbones import load_tokenizer
from rere.catalogue import ARRAYS, CATALOGUE, Catalogue, hash_arrays
from rere.errors import InputError
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder


def encoder(titles=TITLES, kind="qwen2"):
    return PromptEncoder(tiny_models.tokenizer(kind), titles)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_saved_catalogue_is_loaded_unchanged(kind, tmp_path):
    prompt_encoder = encoder(kind=kind)
    ids = [f"SKU-{item} é" for item in range(len(TITLES))]
    made = Catalogue.build(prompt_encoder, prompt_encoder.encode_responses(), ids, max_history=7)
    made.save(tmp_path / CATALOGUE)
    loaded = Catalogue.load(tmp_path / CATALOGUE, len(tiny_models.tokenizer(kind)))
    assert (list(loaded.titles), list(loaded.ids), loaded.max_history) == (TITLES, ids, 7)
    assert loaded.fingerprint == made.fingerprint
    assert_same_tree(loaded.tree, made.tree)
    assert [path.name for path in tmp_path.iterdir()] == [CATALOGUE]


@given(CATALOGUES)
@settings(max_examples=100, deadline=None)
def test_any_saved_tree_is_loaded_unchanged(tmp_path_factory, sequences):
    path = tmp_path_factory.mktemp("any") / CATALOGUE
    save_catalogue(sequences, ["é" * (1 + item % 3) for item in range(len(sequences))], path)
    assert_same_tree(Catalogue.load(path, 5).tree, PrefixTree.build(sequences))


def test_a_deep_tree_is_loaded_unchanged(tmp_path):
    sequences = [[1] * length + [EOS] for length in range(300)]
    path = save_catalogue(sequences, ["a"] * 300, tmp_path / CATALOGUE)
    assert_same_tree(Catalogue.load(path, 2).tree, PrefixTree.build(sequences))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_saved_tokenizer_has_the_same_fingerprint(kind, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    before = PromptEncoder(tokenizer, TITLES).fingerprint()
    tokenizer.save_pretrained(tmp_path)
    loaded = PromptEncoder(load_tokenizer(tmp_path), TITLES)
    loaded.encode_responses()
    assert loaded.fingerprint() == before
    assert re.fullmatch("[0-9a-f]{64}", before)


def test_different_catalogues_have_different_fingerprints(monkeypatch):
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


# Errors in the arrays of SMALL_CATALOGUE, which loading must refuse.
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


def save_signed(arrays, path):
    """Write arrays with their hash, so that what they hold decides."""
    save_file(arrays, path, {"fingerprint": f"f {hash_arrays(arrays)}"})


def assert_refused(path, vocab_size=10):
    with pytest.raises(InputError) as caught:
        Catalogue.load(path, vocab_size)
    assert str(caught.value) == f"{path}: not a catalogue; train the model again"


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in DAMAGE.items() for fault in faults]
)
def test_a_damaged_array_is_refused(catalogue_file, name, fault):
    arrays = load_file(catalogue_file)
    assert Catalogue.load(catalogue_file, 10).tree.longest == 5
    arrays[name] = torch.tensor(DAMAGE[name][fault], dtype=ARRAYS[name])
    save_signed(arrays, catalogue_file)
    assert_refused(catalogue_file)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_another_type_or_shape_is_refused(catalogue_file, name):
    arrays = load_file(catalogue_file)
    for wrong in (arrays[name].float(), arrays[name].int(), arrays[name][None], torch.tensor(1)):
        save_signed({**arrays, name: wrong.clone()}, catalogue_file)
        assert_refused(catalogue_file)
    del arrays[name]
    save_signed(arrays, catalogue_file)
    assert_refused(catalogue_file)


def test_a_file_without_a_hash_is_refused(catalogue_file):
    save_file(load_file(catalogue_file), catalogue_file, {"fingerprint": "f"})
    assert_refused(catalogue_file)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_file_is_refused_or_a_valid_tree(tmp_path_factory, data):
    """With any one number changed, the file is refused or has a tree that can be traversed."""
    path = tmp_path_factory.mktemp("changed") / CATALOGUE
    save_catalogue(*SMALL_CATALOGUE, path)
    arrays = load_file(path)
    array = arrays[data.draw(st.sampled_from(list(arrays)))]
    array[data.draw(st.integers(0, len(array) - 1))] = data.draw(st.integers(0, 11))
    save_signed(arrays, path)
    try:
        loaded = Catalogue.load(path, 10)
    except InputError:
        return
    sequences = [sequence_of(loaded.tree, item) for item in range(4)]
    assert tree_to_dicts(loaded.tree) == nested_dicts(sequences)
    assert loaded.tree.depth[loaded.tree.leaf_of_item].tolist() == list(map(len, sequences))
    assert len(loaded.titles) == 4


def test_a_file_of_another_format_is_refused(catalogue_file, tmp_path):
    arrays = load_file(catalogue_file)
    for metadata in (None, {"format": "pt"}):
        save_file(arrays, catalogue_file, metadata)
        assert_refused(catalogue_file)
    for content in (b"", b"{}", b"\x80\x04K\x01.", b"\xff" * 99):
        catalogue_file.write_bytes(content)
        assert_refused(catalogue_file)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(catalogue_file, kept):
    catalogue_file.write_bytes(catalogue_file.read_bytes()[:kept])
    assert_refused(catalogue_file)


def test_a_smaller_vocabulary_is_refused(catalogue_file):
    assert_refused(catalogue_file, vocab_size=9)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        Catalogue.load(tmp_path / CATALOGUE, 10)
    assert str(caught.value) == (
        f"{tmp_path / CATALOGUE}: no such file; `rere sft`, `rere preference` and `rere rl` "
        "write it"
    )


def test_the_file_has_only_the_arrays_and_the_fingerprint(catalogue_file):
    with safe_open(catalogue_file, framework="pt") as file:
        assert set(file.metadata()) == {"fingerprint"}
        assert set(file.keys()) == set(ARRAYS)
