"""Packed scoring against the plain expanded batch: the same values, the same gradients.

In both log-prob spaces, for every architecture, also with adapters, checkpointing and wrappers.
"""

import copy
import dataclasses
import math

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, VOCAB_SIZE, causal_lm, precise, tolerance, unigram_lm
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence

from rere.catalogue import PrefixTree
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs, token_scores
from rere.engine.model import forward
from rere.engine.model.masks import additive
from rere.engine.search.beam import beam_search
from rere.engine.search.noise import row_seeds
from rere.engine.search.sampling import sample_candidates

PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
CANDIDATES = [
    [[4, 5, 1], [4, 6, 7, 8, 1], [1]],  # three, with a shared prefix, one of a single token
    [[9, 1]],  # a single candidate
    [[4, 5, 1], [4, 5, 1], [10, 11, 12, 13, 14, 15, 1], [1], [2, 1]],  # five, two of them equal
]
SEQUENCES = [
    *([3, *s] for s in ([4, 1], [4, 6, 7, 8, 1], [4, 6, 7, 9, 10, 1], [4, 6, 7, 9, 11, 5, 5, 1])),
    *([3, *s] for s in ([12, 13, 14, 15, 16, 17, 1], [12, 13, 14, 15, 16, 18, 1], [19, 20, 1])),
]
TREE = PrefixTree.build(SEQUENCES)
ITEMS = [[0, 3, 2, 5], [6], [1, 1, 4, 3, 0]]  # all ways and lengths, two of them equal
LEAVES = pad_sequence([TREE.leaf_of_item[row] for row in ITEMS], True, padding_value=-1)
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6)
BATCHES = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=3
)
SCORINGS = ("vocabulary", "catalogue")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return precise(request.param)


QWEN2 = precise("qwen2", seed=1)


def packed_in(scoring):
    if scoring == "vocabulary":
        return pack(PROMPTS, CANDIDATES)
    return pack_leaves(PROMPTS, LEAVES, TREE, scoring)


def log_prob_of(log_probs, token):
    return log_probs[token]


def entropy_of(log_probs, token):
    return -(log_probs.exp() * log_probs).sum()


def expanded(model, prompts, candidates, allowed=None, temperature=1.0, value=log_prob_of):
    """Each candidate's token log-probs: its prompt and itself as one right-padded row.

    With `allowed`, which tells the tokens that may follow a path, decisions' log-probs.
    """
    pairs = [(p, c) for p, group in zip(prompts, candidates, strict=True) for c in group]
    longest = max(len(p) + len(c) for p, c in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    real = torch.zeros_like(ids)
    for row, (p, c) in enumerate(pairs):
        ids[row, : len(p) + len(c)] = torch.tensor([*p, *c])
        real[row, : len(p) + len(c)] = 1
    logits = model(input_ids=ids, attention_mask=real).logits / temperature
    found = []
    for row, (p, c) in enumerate(pairs):
        found.append([])
        for end, token in enumerate(c):
            among = range(VOCAB_SIZE) if allowed is None else sorted(allowed(c[:end]))
            if len(among) > 1:
                log_probs = logits[row, len(p) + end - 1, list(among)].log_softmax(-1)
                found[-1].append(value(log_probs, among.index(token)))
    return [torch.stack(values) for values in found]


def expanded_in(scoring, model, **options):
    """The plain side of `packed_in`."""
    if scoring == "vocabulary":
        return expanded(model, PROMPTS, CANDIDATES, **options)
    candidates = [[SEQUENCES[item] for item in row] for row in ITEMS]
    return expanded(model, PROMPTS, candidates, following, **options)


def following(path):
    return {s[len(path)] for s in SEQUENCES if s[: len(path)] == path}


def flat(log_prob, packed):
    """The packed log-probs (B, N) as a list of one tensor a candidate."""
    tokens = []
    for values, owner in zip(log_prob, packed.candidate, strict=True):
        count = int(owner[owner < packed.num_candidates].max()) + 1
        tokens += [values[owner == g] for g in range(count)]
    return tokens


def weighted(values):
    """A sum with weights of either sign, none like another: no token's gradient can hide."""
    values = torch.cat(tuple(values))
    return (torch.linspace(-2, 3, len(values), dtype=values.dtype) * values).sum()


def gradients(model, loss):
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return dict(zip(weights, found, strict=True))


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


def rounding(model):
    """How far gradients may differ. An RMS norm computes in float32, whatever the model's type."""
    rms = any("RMSNorm" in type(module).__name__ for module in model.modules())
    return 1e-5 if rms else tolerance(model)


def adapted(model):
    """A copy of the model with adapters at all its linear layers, none of them still zero."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2, generator=generator)
    return adapted.to(model.dtype)


# ----------------------------------------------------------------------- the plain batch, equal


@pytest.mark.parametrize("scoring", SCORINGS)
def test_equals_the_expanded_batch(model, scoring):
    packed = packed_in(scoring)
    actual, expected = flat(token_log_probs(model, packed), packed), expanded_in(scoring, model)
    assert len(actual) == len(expected) == (9 if scoring == "vocabulary" else 10)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance(model), rtol=0)
    assert_gradients_equal(
        gradients(model, weighted(actual)), gradients(model, weighted(expected)), rounding(model)
    )


@pytest.mark.parametrize("scoring", SCORINGS)
def test_equals_the_expanded_batch_with_adapters(model, scoring):
    model, packed = adapted(model), packed_in(scoring)
    actual, expected = flat(token_log_probs(model, packed), packed), expanded_in(scoring, model)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance(model), rtol=0)
    found = gradients(model, weighted(actual))
    assert found and all("lora" in name for name in found)
    assert_gradients_equal(found, gradients(model, weighted(expected)), rounding(model))
    with model.disable_adapter(), torch.no_grad():
        plain = torch.cat(flat(token_log_probs(model, packed), packed))
    assert (plain - torch.cat(actual)).abs().max() > 1e-3


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_temperature_divides_the_logits(scoring):
    packed = packed_in(scoring)
    actual = flat(token_log_probs(QWEN2, packed, temperature=0.6), packed)
    expected = expanded_in(scoring, QWEN2, temperature=0.6)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    assert_gradients_equal(
        gradients(QWEN2, weighted(actual)), gradients(QWEN2, weighted(expected)), rounding(QWEN2)
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


@pytest.mark.parametrize("scoring", SCORINGS)
def test_entropy_is_the_expanded_batchs(scoring):
    packed = packed_in(scoring)
    scores = token_scores(QWEN2, packed, temperature=0.6)
    assert torch.equal(scores.log_prob, token_log_probs(QWEN2, packed, temperature=0.6))
    assert scores.log_prob.requires_grad and not scores.entropy.requires_grad
    expected = expanded_in(scoring, QWEN2, temperature=0.6, value=entropy_of)
    for one, other in zip(flat(scores.entropy, packed), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


# ---------------------------------------------------------------------------- what was searched


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_equals_the_scores_of_the_search(family, scoring):
    model = precise(family)
    leaf, score = beam_search(model, TREE, PROMPTS, 5, scoring)
    packed = pack_leaves(PROMPTS, leaf, TREE, scoring)
    actual = sum_by_candidate(token_log_probs(model, packed), packed)
    torch.testing.assert_close(actual, score, atol=1e-9, rtol=0)


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


def test_the_only_title_is_certain():
    packed = pack_leaves(PROMPTS, torch.zeros(3, 2).long(), PrefixTree.build([[3, 1]]), "catalogue")
    log_prob = token_log_probs(QWEN2, packed)
    assert log_prob.shape == (3, 0)
    assert all((g == 0).all() for g in gradients(QWEN2, log_prob.sum()).values())


# ------------------------------------------------------------------------ trained as it comes


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("with_adapters", [False, True])
def test_gradient_checkpointing_changes_nothing(scoring, with_adapters):
    plain = adapted(QWEN2) if with_adapters else copy.deepcopy(QWEN2)
    checkpointing = copy.deepcopy(plain)
    checkpointing.activation_checkpointing_enable()
    if with_adapters:
        checkpointing.enable_input_require_grads()
    checkpointing.train()
    packed = packed_in(scoring)
    assert_gradients_equal(
        gradients(checkpointing, weighted(token_log_probs(checkpointing, packed))),
        gradients(plain, weighted(token_log_probs(plain, packed))),
        1e-9,
    )


@pytest.fixture
def alone():
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def synchronisations(wrapped):
    """A list that gets how many gradients processes share, each time that they do."""
    synchronised = []
    wrapped.register_comm_hook(
        None,
        lambda _, bucket: (
            synchronised.append(len(bucket.gradients()))
            or torch.futures.collect_all([]).then(lambda _: bucket.buffer())
        ),
    )
    return synchronised


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_distributed_model_is_called_through_its_wrapper(alone, with_adapters):
    plain = adapted(QWEN2) if with_adapters else copy.deepcopy(QWEN2)
    packed = packed_in("vocabulary")
    expected = gradients(plain, weighted(token_log_probs(plain, packed)))
    wrapped = DistributedDataParallel(plain)
    synchronised = synchronisations(wrapped)
    weighted(token_log_probs(wrapped, packed)).backward()
    assert sum(synchronised) == len(expected)
    actual = {name: w.grad for name, w in plain.named_parameters() if w.requires_grad}
    assert_gradients_equal(actual, expected, 1e-9)


# -------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("scoring", SCORINGS)
def test_padding_changes_nothing(model, scoring):
    """Neither does a longer prompt beside a row nor more candidates."""
    together = packed_in(scoring)
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
def test_what_padding_holds_does_not_matter(model, padded, monkeypatch):
    if padded:
        monkeypatch.setattr(forward, "OURS", ())
    packed = pack(PROMPTS, CANDIDATES)
    expected = token_log_probs(model, packed)
    num_fed = [len({(*c[:end],) for c in row for end in range(len(c))}) for row in CANDIDATES]
    num_nodes = packed.ancestors.shape[1]
    fed = torch.arange(num_nodes) < torch.tensor(num_fed)[:, None]
    real = torch.cat([packed.is_token[:, :-num_nodes], fed], dim=1)
    ids = packed.input_ids.masked_fill(~real, 17)
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
    # 2 against 3 is 2 : 1, 4 against 1 is 1 : 8, and what follows a 3 has no choice.
    logs = [math.log(p) for p in (2 / 3, 1 / 9, 2 / 3, 8 / 9, 1 / 3)]
    assert token_log_probs(model, packed)[0].tolist() == pytest.approx(logs)


# --------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("scoring", SCORINGS)
def test_half_precision_logits_are_scored_in_float32(scoring):
    model = causal_lm("qwen2", VOCAB_SIZE).bfloat16()
    log_prob = token_log_probs(model, packed_in(scoring))
    assert log_prob.dtype == torch.float32
    assert all(g.isfinite().all() for g in gradients(model, log_prob.sum()).values())


@pytest.mark.parametrize("scoring", SCORINGS)
def test_mixed_precision_is_near_full_precision(scoring):
    model, packed = causal_lm("qwen2", VOCAB_SIZE), packed_in(scoring)
    expected = token_log_probs(model, packed)
    with torch.autocast("cpu", torch.bfloat16):
        actual = token_log_probs(model, packed)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=0.3, rtol=0)
    assert all(g.isfinite().all() for g in gradients(model, actual.sum()).values())
