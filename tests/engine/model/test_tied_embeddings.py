"""Embeddings tied to the output layer: a sparse gradient on the way, the same in the end."""

import math

import pytest
import torch
from packed_batches import assert_passes_equal, gradient_tolerance, search_and_pack
from tiny_models import precise
from torch.testing import assert_close

from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.engine.model import tied_embeddings as tied

PACKED = pack([[5, 9, 3, 4, 7, 11], [8], [8, 2, 8]], [[[4, 5, 1], [4, 6, 7, 1]]] * 3)


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setitem(tied.LARGE, "cpu", 0)


@pytest.mark.parametrize(
    "is_tied, large, is_sparse",
    [(True, 0, True), (False, 0, False), (True, math.inf, False), (True, 24 * 16, True)],
)
def test_sparse_where_tied_and_large(monkeypatch, is_tied, large, is_sparse):
    monkeypatch.setitem(tied.LARGE, "cpu", large)
    model = precise("qwen2", tie_word_embeddings=is_tied)
    embedding = model.get_input_embeddings()
    before = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    with tied.sparse_where_tied(model):
        vectors, held = embedding(PACKED.input_ids), embedding.weight
    (gradient,) = torch.autograd.grad(vectors.sum(), held)
    assert gradient.is_sparse == is_sparse
    assert not embedding.sparse
    after = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    assert before == after


def test_gradients_meet_in_the_output_layers():
    """Without another matrix as large: that is what the sparse one is for."""
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    hidden, ids = torch.randn(4, 3, dtype=torch.float64), torch.tensor([2, 5, 2])
    for_embedding, for_output = tied.ForBoth.apply(weight)
    of_output = []
    for_output.register_hook(lambda gradient: of_output.append(gradient.data_ptr()))
    vectors = torch.nn.functional.embedding(ids, for_embedding, sparse=True)
    (gradient,) = torch.autograd.grad((hidden @ for_output.T).sum() + vectors.sum(), weight)
    assert_close(gradient, hidden.sum(0) + torch.bincount(ids, minlength=7)[:, None])
    assert of_output == [gradient.data_ptr()]


def test_embeddings_alone_give_a_sparse_one():
    """As of prompts that were kept, from which nothing is predicted: no matrix of zeros."""
    weight = torch.randn(7, 3, requires_grad=True)
    for_embedding, _ = tied.ForBoth.apply(weight)
    vectors = torch.nn.functional.embedding(torch.tensor([2, 5]), for_embedding, sparse=True)
    (gradient,) = torch.autograd.grad(vectors.sum(), weight)
    assert gradient.is_sparse


def test_of_kept_prompts_they_are_the_dense_ones(any_size):
    model = precise("qwen2", tie_word_embeddings=True)
    prompts, packed = search_and_pack(model)
    assert_passes_equal(model, packed, prompts, gradient_tolerance(model))
    prompts, packed = search_and_pack(model)
    token_log_probs(model, packed, prompts=prompts).sum().backward()
    assert not model.get_input_embeddings().weight.grad.is_sparse


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2"])
def test_gradients_are_the_dense_ones(family, monkeypatch):
    """Added up over two passes, of tokens that occur more than once."""
    gradients = []
    for large in (0, math.inf):
        monkeypatch.setitem(tied.LARGE, "cpu", large)
        model = precise(family, tie_word_embeddings=True)
        for _ in range(2):
            token_log_probs(model, PACKED).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(not gradient.is_sparse for gradient in gradients[0].values())
    assert_close(*gradients)


def test_gradients_repeat(any_size):
    """To the last bit, in float32, where a token occurs in hundreds of places."""
    model = precise("qwen2", tie_word_embeddings=True).float()
    packed = pack([[*range(2, 23)] * 10] * 4, [[[4, 5, 1], [4, 6, 7, 1]]] * 4)
    gradients = []
    for _ in range(5):
        model.zero_grad()
        token_log_probs(model, packed).sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_frozen_embeddings_stay_as_they_are(any_size):
    model = precise("qwen2", tie_word_embeddings=True).requires_grad_(False)
    with tied.sparse_where_tied(model):
        assert not model.get_input_embeddings().sparse
