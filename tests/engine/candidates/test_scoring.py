"""Scores of packed batches equal those of the plain expanded batch, in values and gradients.

Under both scorings and for every architecture; with adapters, checkpointing and wrappers, too.
"""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_batches import (
    CANDIDATES,
    ITEMS,
    PROMPTS,
    QWEN2,
    SCORINGS,
    TREE,
    assert_gradients_equal,
    entropy_of,
    gradient_tolerance,
    gradients_of,
    pack_for,
    score_expanded,
    score_expanded_for,
    split_by_candidate,
    weighted_sum,
    with_adapters,
)
from tiny_models import FAMILIES, VOCAB_SIZE, causal_lm, tolerance, unigram_lm
from torch.nn.parallel import DistributedDataParallel

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs, token_scores
from rere.engine.model.masks import additive
from rere.engine.model.precision import arithmetic
from rere.engine.search.beam import beam_search
from rere.engine.search.noise import row_seeds
from rere.engine.search.sampling import sample_candidates
from rere.prefix_tree import PrefixTree

TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6)
BATCHES = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=3
)


# --------------------------------------------------------------------------- the expanded batch


@pytest.mark.parametrize("scoring", SCORINGS)
def test_equals_the_expanded_batch(model, scoring):
    packed = pack_for(scoring)
    actual = split_by_candidate(token_log_probs(model, packed), packed)
    expected = score_expanded_for(scoring, model)
    assert len(actual) == len(expected) == (9 if scoring == "vocabulary" else 10)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance(model), rtol=0)
    assert_gradients_equal(
        gradients_of(model, weighted_sum(actual)),
        gradients_of(model, weighted_sum(expected)),
        gradient_tolerance(model),
    )


@pytest.mark.parametrize("scoring", SCORINGS)
def test_equals_the_expanded_batch_with_adapters(model, scoring):
    model, packed = with_adapters(model), pack_for(scoring)
    actual = split_by_candidate(token_log_probs(model, packed), packed)
    expected = score_expanded_for(scoring, model)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance(model), rtol=0)
    found = gradients_of(model, weighted_sum(actual))
    assert found and all("lora" in name for name in found)
    assert_gradients_equal(
        found, gradients_of(model, weighted_sum(expected)), gradient_tolerance(model)
    )
    with model.disable_adapter(), torch.no_grad():
        plain = torch.cat(split_by_candidate(token_log_probs(model, packed), packed))
    assert (plain - torch.cat(actual)).abs().max() > 1e-3


@pytest.mark.parametrize("scoring", SCORINGS)
def test_logits_are_divided_by_the_temperature(scoring):
    packed = pack_for(scoring)
    actual = split_by_candidate(token_log_probs(QWEN2, packed, temperature=0.6), packed)
    expected = score_expanded_for(scoring, QWEN2, temperature=0.6)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    assert_gradients_equal(
        gradients_of(QWEN2, weighted_sum(actual)),
        gradients_of(QWEN2, weighted_sum(expected)),
        gradient_tolerance(QWEN2),
    )


@given(BATCHES)
@settings(max_examples=40, deadline=None)
def test_any_batch_equals_the_expanded_batch(batch):
    prompts, candidates = zip(*batch, strict=True)
    packed = pack(prompts, candidates)
    with torch.no_grad():
        actual = split_by_candidate(token_log_probs(QWEN2, packed), packed)
        expected = score_expanded(QWEN2, prompts, candidates)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_one_candidate_gives_the_supervised_loss(model):
    prompts, targets = PROMPTS, [[4, 6, 7, 8, 1], [9, 1], [10, 1]]
    longest = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
    ids = torch.zeros(3, longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    is_token = torch.zeros_like(ids)
    for row, (p, t) in enumerate(zip(prompts, targets, strict=True)):
        end = len(p) + len(t)
        ids[row, :end] = torch.tensor([*p, *t])
        labels[row, len(p) : end] = torch.tensor(t)
        is_token[row, :end] = 1
    expected = model(input_ids=ids, attention_mask=is_token, labels=labels).loss
    packed = pack(prompts, [[t] for t in targets])
    actual = -token_log_probs(model, packed).sum() / (5 + 2 + 2)
    # (transformers' loss computes its log-softmax in float32.)
    torch.testing.assert_close(actual.float(), expected.float(), atol=1e-5, rtol=1e-6)
    assert_gradients_equal(gradients_of(model, actual), gradients_of(model, expected))


@pytest.mark.parametrize("scoring", SCORINGS)
def test_entropies_equal_those_of_the_expanded_batch(scoring):
    packed = pack_for(scoring)
    scores = token_scores(QWEN2, packed, temperature=0.6)
    assert torch.equal(scores.log_prob, token_log_probs(QWEN2, packed, temperature=0.6))
    assert scores.log_prob.requires_grad and not scores.entropy.requires_grad
    expected = score_expanded_for(scoring, QWEN2, temperature=0.6, value=entropy_of)
    for one, other in zip(split_by_candidate(scores.entropy, packed), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


# ------------------------------------------------------------------------------ search results


@pytest.mark.parametrize("scoring", SCORINGS)
def test_equals_the_scores_of_the_search(model, scoring):
    leaf, score = beam_search(model, TREE, PROMPTS, 5, scoring)
    packed = pack_leaves(PROMPTS, leaf, TREE, scoring)
    actual = sum_by_candidate(token_log_probs(model, packed), packed)
    torch.testing.assert_close(actual, score, atol=tolerance(model), rtol=0)


def test_equals_the_scores_of_samples():
    leaf, score = sample_candidates(
        QWEN2, TREE, PROMPTS, 6, row_seeds(0, 0, [0, 1, 2]), temperature=1.7
    )
    packed = pack_leaves(PROMPTS, leaf, TREE, "catalogue")
    log_prob = token_log_probs(QWEN2, packed, temperature=1.7)
    torch.testing.assert_close(sum_by_candidate(log_prob, packed), score, atol=1e-9, rtol=0)


def test_the_probabilities_of_all_leaves_sum_to_one():
    leaves = TREE.leaf_of_item.expand(len(PROMPTS), -1)
    packed = pack_leaves(PROMPTS, leaves, TREE, "catalogue")
    sums = sum_by_candidate(token_log_probs(QWEN2, packed), packed)
    assert sums.exp().sum(-1).tolist() == pytest.approx([1, 1, 1])


def test_the_only_title_has_no_decisions():
    packed = pack_leaves(PROMPTS, torch.zeros(3, 2).long(), PrefixTree.build([[3, 1]]), "catalogue")
    log_prob = token_log_probs(QWEN2, packed)
    assert log_prob.shape == (3, 0)
    assert all((g == 0).all() for g in gradients_of(QWEN2, log_prob.sum()).values())


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("has_adapters", [False, True])
def test_gradient_checkpointing_changes_nothing(scoring, has_adapters):
    plain = with_adapters(QWEN2) if has_adapters else copy.deepcopy(QWEN2)
    checkpointing = copy.deepcopy(plain)
    checkpointing.activation_checkpointing_enable()
    if has_adapters:
        checkpointing.enable_input_require_grads()
    checkpointing.train()
    packed = pack_for(scoring)
    assert_gradients_equal(
        gradients_of(checkpointing, weighted_sum(token_log_probs(checkpointing, packed))),
        gradients_of(plain, weighted_sum(token_log_probs(plain, packed))),
        1e-9,
    )


def record_synchronisations(wrapped):
    """A list that gets the number of gradients of every bucket that processes share."""
    synchronised = []
    wrapped.register_comm_hook(
        None,
        lambda _, bucket: (
            synchronised.append(len(bucket.gradients()))
            or torch.futures.collect_all([]).then(lambda _: bucket.buffer())
        ),
    )
    return synchronised


@pytest.mark.parametrize("has_adapters", [False, True])
def test_a_distributed_model_is_called_through_its_wrapper(process_group, has_adapters):
    plain = with_adapters(QWEN2) if has_adapters else copy.deepcopy(QWEN2)
    packed = pack_for("vocabulary")
    expected = gradients_of(plain, weighted_sum(token_log_probs(plain, packed)))
    wrapped = DistributedDataParallel(plain)
    synchronised = record_synchronisations(wrapped)
    weighted_sum(token_log_probs(wrapped, packed)).backward()
    assert sum(synchronised) == len(expected)
    actual = {name: w.grad for name, w in plain.named_parameters() if w.requires_grad}
    assert_gradients_equal(actual, expected, 1e-9)


# -------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("scoring", SCORINGS)
def test_padding_changes_nothing(model, scoring):
    """Neither a longer prompt nor more candidates in another row change a row."""
    together = pack_for(scoring)
    log_prob = token_log_probs(model, together)
    for row in range(3):
        if scoring == "vocabulary":
            alone = pack(PROMPTS[row : row + 1], CANDIDATES[row : row + 1])
        else:
            leaves = TREE.leaf_of_item[ITEMS[row]]
            alone = pack_leaves(PROMPTS[row : row + 1], leaves[None], TREE, scoring)
        expected = token_log_probs(model, alone)[0]
        actual = log_prob[row, : len(expected)]
        torch.testing.assert_close(actual, expected, atol=tolerance(model), rtol=0)
        assert (log_prob[row, len(expected) :] == 0).all()


@pytest.mark.parametrize("padded", [False, True])
def test_token_ids_of_padding_do_not_matter(model, padded, compute_padding):
    if padded:
        compute_padding()
    packed = pack(PROMPTS, CANDIDATES)
    expected = token_log_probs(model, packed)
    num_fed = [len({(*c[:end],) for c in row for end in range(len(c))}) for row in CANDIDATES]
    num_nodes = packed.ancestors.shape[1]
    fed = torch.arange(num_nodes) < torch.tensor(num_fed)[:, None]
    is_token = torch.cat([packed.is_token[:, :-num_nodes], fed], dim=1)
    ids = packed.input_ids.masked_fill(~is_token, 17)
    assert (ids != packed.input_ids).any()
    actual = token_log_probs(model, dataclasses.replace(packed, input_ids=ids))
    torch.testing.assert_close(actual, expected, atol=tolerance(model), rtol=0)


# -------------------------------------------------------------------------------------- by hand


def test_additive_by_hand():
    mask = additive(torch.tensor([[[True, False]], [[False, True]]]), torch.float32)
    lowest = torch.finfo(torch.float32).min
    assert mask.tolist() == [[[[0.0, lowest]]], [[[lowest, 0.0]]]]


def test_log_probs_by_hand():
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    packed = pack([[3], [4, 2]], [[[2, 3, 1], [1]], [[0, 1]]])
    log_prob = token_log_probs(model, packed)
    logs = [[math.log(p) for p in row] for row in ([1 / 4, 1 / 8, 1 / 2, 1 / 2], [1 / 16, 1 / 2])]
    assert log_prob[0].tolist() == pytest.approx(logs[0])
    assert log_prob[1].tolist() == pytest.approx([*logs[1], 0.0, 0.0])
    sums = sum_by_candidate(log_prob, packed)
    # 1/4 * 1/8 * 1/2 = 1/64, and 1/2; 1/16 * 1/2 = 1/32, and no second candidate.
    expected = [math.log(1 / 64), math.log(1 / 2), math.log(1 / 32), 0.0]
    assert sums.flatten().tolist() == pytest.approx(expected)


def test_log_probs_of_decisions_by_hand():
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    tree = PrefixTree.build([[2, 4, 1], [2, 1], [3, 4, 4, 1]])
    packed = pack_leaves([[3]], tree.leaf_of_item[None], tree, "catalogue")
    # 2 against 3 is 2 : 1, 4 against 1 is 1 : 8, and tokens behind the 3 have no alternatives.
    logs = [math.log(p) for p in (2 / 3, 1 / 9, 2 / 3, 8 / 9, 1 / 3)]
    assert token_log_probs(model, packed)[0].tolist() == pytest.approx(logs)


# --------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("scoring", SCORINGS)
def test_half_precision_logits_are_scored_in_float32(scoring):
    model = causal_lm("qwen2", VOCAB_SIZE).bfloat16()
    log_prob = token_log_probs(model, pack_for(scoring))
    assert log_prob.dtype == torch.float32
    assert all(g.isfinite().all() for g in gradients_of(model, log_prob.sum()).values())


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near_full_precision(family, scoring):
    model, packed = causal_lm(family, VOCAB_SIZE), pack_for(scoring)
    expected = token_log_probs(model, packed)
    with arithmetic(model.device, "bfloat16"):
        actual = token_log_probs(model, packed)
    assert actual.dtype == torch.float32
    assert 0 < (actual - expected).norm() < 0.05 * expected.norm()
    assert all(g.isfinite().all() for g in gradients_of(model, actual.sum()).values())


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_search_is_near_the_scores_of_its_leaves(family, scoring):
    model = causal_lm(family, VOCAB_SIZE)
    with torch.no_grad(), arithmetic(model.device, "bfloat16"):
        leaf, score = beam_search(model, TREE, PROMPTS, 5, scoring)
    packed = pack_leaves(PROMPTS, leaf, TREE, scoring)
    expected = sum_by_candidate(token_log_probs(model, packed), packed)
    assert score.dtype == torch.float32
    assert 0 < (score - expected).norm() < 0.05 * expected.norm()
