"""Packed scoring against the naive expanded batch: the same values, the same gradients."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, VOCAB_SIZE, causal_lm, precise, tolerance, unigram_lm

from rere.engine.masks import additive
from rere.engine.packing import left_pad, pack, prompt_positions
from rere.engine.scoring import sum_by_candidate, token_log_probs

PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
CANDIDATES = [
    [[4, 5, 1], [4, 6, 7, 8, 1], [1]],  # three, with a shared prefix, one of a single token
    [[9, 1]],  # a single candidate
    [[4, 5, 1], [4, 5, 1], [10, 11, 12, 13, 14, 15, 1], [1], [2, 1]],  # five, two of them equal
]
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6)
BATCHES = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=3
)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return precise(request.param)


QWEN2 = precise("qwen2", seed=1)


def expanded(model, prompts, candidates):
    """Each candidate's token log-probs: its prompt and itself as one right-padded row."""
    pairs = [(p, c) for p, group in zip(prompts, candidates, strict=True) for c in group]
    longest = max(len(p) + len(c) for p, c in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    real = torch.zeros_like(ids)
    for row, (p, c) in enumerate(pairs):
        ids[row, : len(p) + len(c)] = torch.tensor([*p, *c])
        real[row, : len(p) + len(c)] = 1
    values = model(input_ids=ids, attention_mask=real).logits.log_softmax(-1)
    return [
        values[row, range(len(p) - 1, len(p) + len(c) - 1), c] for row, (p, c) in enumerate(pairs)
    ]


def flat(log_prob, packed):
    """The packed log-probs (B, N) as a list of one tensor a candidate."""
    tokens = []
    for values, owner in zip(log_prob, packed.candidate, strict=True):
        count = int(owner[owner < packed.num_candidates].max()) + 1
        tokens += [values[owner == g] for g in range(count)]
    return tokens


def gradients(model, loss):
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return dict(zip(names, found, strict=True))


def assert_gradients_equal(actual, expected, tolerance=1e-5):
    for name, gradient in expected.items():
        if gradient is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(
                actual[name],
                gradient,
                atol=tolerance,
                rtol=tolerance,
                msg=lambda text, name=name: f"{name}: {text}",
            )


# ----------------------------------------------------------------------- the naive batch, equal


def test_equals_the_expanded_batch(model):
    packed = pack(PROMPTS, CANDIDATES)
    actual = flat(token_log_probs(model, packed), packed)
    expected = expanded(model, PROMPTS, CANDIDATES)
    assert len(actual) == len(expected) == 9
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance(model), rtol=0)


def test_gradients_equal_those_of_the_expanded_batch(model):
    # (An RMS norm computes in float32, whatever the model's type.)
    rms = any("RMSNorm" in type(module).__name__ for module in model.modules())
    packed = pack(PROMPTS, CANDIDATES)
    actual, expected = (
        torch.cat(flat(token_log_probs(model, packed), packed)),
        torch.cat(expanded(model, PROMPTS, CANDIDATES)),
    )
    # Weights of either sign, none like another, so that no token's gradient can hide.
    weight = torch.linspace(-2, 3, len(actual), dtype=model.dtype)
    assert_gradients_equal(
        gradients(model, (weight * actual).sum()),
        gradients(model, (weight * expected).sum()),
        1e-5 if rms else tolerance(model),
    )


@given(BATCHES)
@settings(max_examples=40, deadline=None)
def test_any_batch_equals_the_expanded_one(batch):
    prompts, candidates = zip(*batch, strict=True)
    packed = pack(prompts, candidates)
    with torch.no_grad():
        actual = flat(token_log_probs(QWEN2, packed), packed)
        expected = expanded(QWEN2, prompts, candidates)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_one_candidate_gives_the_supervised_loss(model):
    prompts, targets = PROMPTS, [[4, 6, 7, 8, 1], [9, 1], [10, 1]]
    longest = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
    ids = torch.zeros(3, longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    real = torch.zeros_like(ids)
    for row, (p, t) in enumerate(zip(prompts, targets, strict=True)):
        end = len(p) + len(t)
        ids[row, :end] = torch.tensor([*p, *t])
        labels[row, len(p) : end] = torch.tensor(t)
        real[row, :end] = 1
    expected = model(input_ids=ids, attention_mask=real, labels=labels).loss
    packed = pack(prompts, [[t] for t in targets])
    actual = -token_log_probs(model, packed).sum() / (5 + 2 + 2)
    # (The library's loss takes its log-softmax in float32.)
    torch.testing.assert_close(actual.float(), expected.float(), atol=1e-5, rtol=1e-6)
    assert_gradients_equal(gradients(model, actual), gradients(model, expected))


def test_gradient_checkpointing_changes_nothing():
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1).double()
    model.activation_checkpointing_enable()
    model.train()
    packed = pack(PROMPTS, CANDIDATES)
    assert_gradients_equal(
        gradients(model, token_log_probs(model, packed).sum()),
        gradients(QWEN2, token_log_probs(QWEN2, packed).sum()),
    )


# -------------------------------------------------------------------------------------- padding


def test_padding_changes_nothing(model):
    """Neither does a longer prompt beside a row nor more candidates."""
    together = pack(PROMPTS, CANDIDATES)
    log_prob = token_log_probs(model, together)
    for row in range(3):
        alone = pack(PROMPTS[row : row + 1], CANDIDATES[row : row + 1])
        expected = token_log_probs(model, alone)[0]
        actual = log_prob[row, : len(expected)]
        torch.testing.assert_close(actual, expected, atol=tolerance(model), rtol=0)
        assert (log_prob[row, len(expected) :] == 0).all()


def test_what_padding_holds_does_not_matter(model):
    packed = pack(PROMPTS, CANDIDATES)
    expected = token_log_probs(model, packed)
    _, real = left_pad(PROMPTS)
    num_fed = packed.num_kept - 1
    fed = torch.tensor(
        [[i < sum(len(c) - 1 for c in row) for i in range(num_fed)] for row in CANDIDATES]
    )
    ids = packed.input_ids.masked_fill(~torch.cat([real, fed], dim=1), 17)
    assert (ids != packed.input_ids).any()
    actual = token_log_probs(model, dataclasses.replace(packed, input_ids=ids))
    torch.testing.assert_close(actual, expected, atol=tolerance(model), rtol=0)


# -------------------------------------------------------------------------------------- by hand


def test_left_pad_and_positions_by_hand():
    ids, real = left_pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert real.tolist() == [[True, True, True], [False, False, True]]
    assert prompt_positions(real).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_additive_by_hand():
    mask = additive(torch.tensor([[[True, False]], [[False, True]]]), torch.float32)
    lowest = torch.finfo(torch.float32).min
    assert mask.tolist() == [[[[0.0, lowest]]], [[[lowest, 0.0]]]]


def test_pack_by_hand():
    packed = pack([[5, 6], [7]], [[[2, 3, 1], [4, 1]], [[1]]])
    assert packed.num_kept == 1 + 3
    assert packed.num_candidates == 2
    # Prompt 5 6 (positions 0 1), then 2 3 of the first candidate and 4 of the second: each
    # candidate continues the prompt at position 2. Last tokens are predicted, not fed.
    assert packed.input_ids.tolist() == [[5, 6, 2, 3, 4], [0, 7, 0, 0, 0]]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 2]
    assert packed.position_ids[1, :2].tolist() == [0, 0]
    # Of the prompt's last (0), 2 (1), 3 (2) and 4 (3): who predicts 2 3 1 and 4 1.
    assert packed.source.tolist() == [[0, 1, 2, 0, 3], [0, 0, 0, 0, 0]]
    assert packed.target[0].tolist() == [2, 3, 1, 4, 1]
    assert packed.target[1, :1].tolist() == [1]
    assert packed.candidate.tolist() == [[0, 0, 0, 1, 1], [0, 2, 2, 2, 2]]
    assert packed.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert not packed.visible[1, 1:, 0].any()


def test_a_place_without_a_candidate_sums_to_nothing():
    packed = pack([[3]], [[[2, 3, 1], [4, 1]]], num_candidates=4)
    assert packed.num_candidates == 4
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    assert sum_by_candidate(values, packed).tolist() == [[7.0, 24.0, 0.0, 0.0]]


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


def test_sum_by_candidate_by_hand():
    packed = pack([[3], [3]], [[[2, 3, 1], [4, 1]], [[5, 1]]])
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], [32.0, 64.0, 99.0, 99.0, 99.0]])
    assert sum_by_candidate(values, packed).tolist() == [[7.0, 24.0], [96.0, 0.0]]


def test_half_precision_logits_are_scored_in_float32():
    model = causal_lm("qwen2", VOCAB_SIZE).bfloat16()
    assert token_log_probs(model, pack(PROMPTS, CANDIDATES)).dtype == torch.float32


def test_to_moves_every_tensor():
    packed = pack(PROMPTS, CANDIDATES).to("cpu")
    assert packed.num_kept == pack(PROMPTS, CANDIDATES).num_kept
    assert torch.equal(packed.visible, pack(PROMPTS, CANDIDATES).visible)
