"""The plain implementations: `generate` with a prefix constraint, and training by sequences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import (
    CATALOGUES,
    EOS,
    MODELS,
    AllowCatalogue,
    generate_rankings,
    random_catalogue,
)
from tiny_models import VOCAB_SIZE, causal_lm, unigram_lm

from rere.benchmarks.plain import training as plain
from rere.benchmarks.plain.generate import TokenTree, TreeProcessor, generate
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.training.objectives import OBJECTIVES, k3, policy_loss

# ------------------------------------------------------------------------------------- generate


@given(CATALOGUES, st.data())
@settings(max_examples=50, deadline=None)
def test_the_tree_processor_allows_the_tokens_of_a_plain_one(sequences, data):
    tree = TokenTree.build(sequences, VOCAB_SIZE)
    prefixes = sorted({tuple(s[:end]) for s in sequences for end in range(len(s))})
    length = data.draw(st.sampled_from([len(prefix) for prefix in prefixes]))
    paths = [list(prefix) for prefix in prefixes if len(prefix) == length]
    paths += [[VOCAB_SIZE - 1] * length, [EOS] * length]  # not in the catalogue, and ended
    ids = torch.tensor([[9, 9, *path] for path in paths])
    scores = torch.randn(len(paths), VOCAB_SIZE)
    actual = TreeProcessor(tree, 2)(ids, scores)
    assert torch.equal(actual, AllowCatalogue(sequences, 2)(ids, scores))


@pytest.mark.parametrize("num_beams", [1, 2, 16, 40])
def test_generate_equals_generate_with_a_plain_processor(num_beams):
    sequences, prompts = random_catalogue(30, seed=5), [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
    model, tree = MODELS["qwen2"], TokenTree.build(sequences, VOCAB_SIZE)
    expected = generate_rankings(model, sequences, prompts, num_beams)
    has_scores = num_beams > 1
    found, scores = generate(model, tree, EOS, prompts, num_beams, return_scores=has_scores)
    assert [[tuple(path) for path in row] for row in found] == [
        [path for path, _ in row] for row in expected
    ]
    for actual, row in zip(scores or (), expected, strict=has_scores):
        assert actual == pytest.approx([score for _, score in row], abs=1e-5)
    with_filler, no_scores = generate(model, tree, EOS, prompts, num_beams)
    assert no_scores is None
    assert [row[: len(kept)] for row, kept in zip(with_filler, found, strict=True)] == found


# ------------------------------------------------------------------------------------- training


def test_log_probs_by_hand():
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    sequences = plain.Sequences([[3], [4, 2, 2]], [[2, 4, 1], [3, 1]])
    log_prob, counts = plain.log_probs(model, sequences)
    logs = [[math.log(p) for p in row] for row in ((1 / 4, 1 / 16, 1 / 2), (1 / 8, 1 / 2))]
    assert log_prob[0].tolist() == pytest.approx(logs[0])
    assert log_prob[1].tolist() == pytest.approx([*logs[1], 0])
    assert counts.tolist() == [[True, True, True], [True, True, False]]
    # 2 to 3 is 2 : 1, 4 to 1 is 1 : 8, and no other token is a choice.
    tree = TokenTree.build([[2, 4, 1], [2, 1], [3, 1]], 5)
    log_prob, counts = plain.log_probs(model, sequences, tree)
    assert counts.tolist() == [[True, True, False], [True, False, False]]
    assert log_prob[counts].tolist() == pytest.approx([math.log(p) for p in (2 / 3, 1 / 9, 1 / 3)])
    assert log_prob[~counts].tolist() == [0, 0, 0]


def test_log_probs_are_those_of_packed_candidates(random_model, prompt_rows):
    model, tree = random_model.float32, random_model.tree
    prompts = [row.prompt for row in prompt_rows]
    leaves = [tree.leaf_of_item[i : i + 3].tolist() for i in range(len(prompts))]
    sequences = plain.expand(random_model, prompts, leaves)
    for scoring, token_tree in (("vocabulary", None), ("catalogue", random_model.token_tree)):
        packed = pack_leaves(prompts, torch.tensor(leaves), tree, scoring)
        expected = token_log_probs(model, packed)[packed.candidate < packed.num_candidates]
        log_prob, counts = plain.log_probs(model, sequences, token_tree)
        torch.testing.assert_close(log_prob[counts], expected, atol=1e-5, rtol=0)


def test_the_grpo_gradient_is_that_of_the_objective(random_model, prompt_rows):
    model, tree = random_model.float32, random_model.tree
    reference, beta = causal_lm("qwen2", VOCAB_SIZE, seed=2), 0.1
    prompts = [row.prompt for row in prompt_rows[:4]]
    leaves = [tree.leaf_of_item[i : i + 3].tolist() for i in range(4)]
    sequences = plain.expand(random_model, prompts, leaves)
    advantage = torch.linspace(-1, 2, 12)
    found = []
    for per_pass in (12, 5):
        model.zero_grad()
        loss = plain.backward_grpo(random_model, reference, sequences, advantage, beta, per_pass)
        found.append((loss, torch.cat([w.grad.flatten() for w in model.parameters()])))
    packed = pack(prompts, [sequences.responses[i : i + 3] for i in (0, 3, 6, 9)])
    log_prob = token_log_probs(model, packed)
    kl = k3(log_prob, token_log_probs(reference, packed).detach())
    loss = policy_loss(
        OBJECTIVES["grpo"],
        log_prob,
        None,
        advantage.view(4, 3),
        beta * kl,
        packed,
        torch.tensor(12),
    )
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    for value, gradient in found:
        assert value == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
