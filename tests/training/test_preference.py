"""DPO, S-DPO and SPRec: loss, negatives, and runs from a briefly trained model."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CYCLE, precise, tokenizer, write_data
from training_runs import SHORT, load_weights, ndcg, read_steps, read_values

from rere.backbones import load_model
from rere.benchmarks.plain import training as plain
from rere.config.training import PreferenceOptions
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search.beam import beam_search
from rere.errors import InputError
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder
from rere.training.preference import (
    SprecSampler,
    best_except,
    margins,
    preference,
    random_leaves,
    s_dpo_loss,
)

RECORD = json.loads((Path(__file__).parents[1] / "records" / "trl.json").read_text())
SPREC = {"algorithm": "sprec", "iterations": 2}
"""Two steps of SFT, two of DPO, and again."""


# ----------------------------------------------------------------------------------------- loss


def test_margins_by_hand():
    # r = (-1 - -3, -2 - -3, -5 - -1) = (2, 1, -4); beta (2 - 1) = .5, beta (2 + 4) = 3.
    log_prob, reference = torch.tensor([[-1.0, -2, -5]]), torch.tensor([[-3.0, -3, -1]])
    exists = torch.tensor([[True, True, True]])
    assert margins(log_prob, reference, 0.5, exists).tolist() == [[0.5, 3.0]]
    exists = torch.tensor([[True, True, False]])
    assert margins(log_prob, reference, 0.5, exists).tolist() == [[0.5, math.inf]]


def test_s_dpo_loss_by_hand():
    # -log sigmoid(-log s) = log(1 + s), s = sum_n exp(-margin_n): 1/2 + 1/3, 3 x 1, 1/4 + 0.
    margin = torch.tensor(
        [[math.log(2), math.log(3), math.inf], [0, 0, 0], [math.log(4), *[99.9] * 2]]
    )
    expected = [math.log(1 + 5 / 6), math.log(4), math.log(1.25)]
    assert s_dpo_loss(margin).tolist() == pytest.approx(expected, abs=1e-6)


def test_missing_negative_has_no_gradient():
    log_prob = torch.tensor([[-1.0, -2, 0]], requires_grad=True)
    exists = torch.tensor([[True, True, False]])
    s_dpo_loss(margins(log_prob, torch.zeros(1, 3), 1.0, exists)).sum().backward()
    # One negative with a margin of 1: the derivative by the target's is -(1 - sigmoid(1)).
    expected = 1 - 1 / (1 + math.exp(-1))
    assert log_prob.grad[0].tolist() == pytest.approx([-expected, expected, 0], abs=1e-6)


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_loss_equals_the_papers_formula_on_an_expanded_batch(num_negatives):
    """Value and gradient in float64; every candidate has its own copy of the prompt."""
    policy, reference = precise("qwen2", seed=0), precise("qwen2", seed=1)
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5], [14]]
    candidates = [[[2, 3, 1], [2, 4, 1], [2, 3, 5, 1], [9, 1]][: 1 + num_negatives]] * 3

    packed = pack(prompts, candidates)
    with torch.no_grad():
        reference_scores = sum_by_candidate(token_log_probs(reference, packed), packed)
    scores = sum_by_candidate(token_log_probs(policy, packed), packed)
    actual = s_dpo_loss(
        margins(scores, reference_scores, 0.3, torch.ones(scores.shape, dtype=torch.bool))
    ).sum()
    weights = list(policy.parameters())
    actual_gradient = torch.autograd.grad(actual, weights)

    pairs = [(p, c) for p, group in zip(prompts, candidates, strict=True) for c in group]
    sequences = plain.Sequences(*zip(*pairs, strict=True))
    ratio = plain.log_probs(policy, sequences)[0].sum(-1)
    ratio = (ratio - plain.log_probs(reference, sequences)[0].sum(-1).detach()).view(3, -1)
    expected = 0.0
    for target, *negatives in ratio:
        if num_negatives == 1:  # DPO
            expected -= torch.log(torch.sigmoid(0.3 * target - 0.3 * negatives[0]))
        else:  # S-DPO
            total = sum(torch.exp(0.3 * negative - 0.3 * target) for negative in negatives)
            expected -= torch.log(torch.sigmoid(-torch.log(total)))
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)
    for ours, theirs in zip(actual_gradient, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)  # norms are float32


def test_loss_equals_trl():
    """The mean DPO loss and its gradient equal TRL's."""
    policy, reference = precise("qwen2", seed=0), precise("qwen2", seed=1)
    rows = RECORD["rows"]
    packed = pack(
        [row["prompt_ids"] for row in rows],
        [[row["chosen_ids"], row["rejected_ids"]] for row in rows],
    )
    with torch.no_grad():
        reference_scores = sum_by_candidate(token_log_probs(reference, packed), packed)
    scores = sum_by_candidate(token_log_probs(policy, packed), packed)
    exists = torch.ones(scores.shape, dtype=torch.bool)
    loss = s_dpo_loss(margins(scores, reference_scores, RECORD["beta"], exists)).mean()
    loss.backward()
    assert loss.item() == pytest.approx(RECORD["loss"], rel=1e-6)
    norms = {name: weight.grad.norm().item() for name, weight in policy.named_parameters()}
    assert norms == pytest.approx(RECORD["gradient_norms"], rel=1e-5)


# ------------------------------------------------------------------------------------ negatives

TREE = PrefixTree.build([[4, number, 1] for number in range(5, 25)])
"""A root with 20 leaves, nodes 1 to 20."""


@given(
    seed=st.integers(0, 2**32),
    row_ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
    target=st.integers(1, 20),
    count=st.integers(1, 19),
)
def test_random_negatives_are_other_leaves(seed, row_ids, target, count):
    targets = torch.full((len(row_ids),), target)
    samples = random_leaves(TREE, seed, row_ids, targets, count)
    assert samples.shape == (len(row_ids), count)
    for row in samples.tolist():
        assert len(set(row)) == count
        assert set(row) <= set(range(1, 21)) - {target}
    # A row's negatives do not depend on the other rows.
    assert samples[-1:].equal(random_leaves(TREE, seed, row_ids[-1:], targets[-1:], count))


def test_random_negatives_are_uniform():
    rows = 4000
    samples = random_leaves(TREE, 0, range(rows), torch.full((rows,), 7), 3)
    count = samples.flatten().bincount(minlength=21)
    assert count[0] == count[7] == 0
    # 12,000 samples of 19 leaves: 632 each, standard deviation sqrt(12,000 / 19 x 18 / 19) = 24.5.
    others = count[count > 0]
    assert len(others) == 19
    assert (others - rows * 3 / 19).abs().max() < 4 * 24.5


def test_best_except_the_target():
    leaf = torch.tensor([[7, 3, 9, 5], [3, 7, 9, -1], [2, 4, 6, 8]])
    target = torch.tensor([[7], [7], [7]])
    assert best_except(leaf, target, 2).tolist() == [[3, 9], [3, 9], [2, 4]]


def test_sprec_sampler_takes_every_row_twice_per_iteration():
    order = list(SprecSampler(num_rows=10, rows_per_phase=6, iterations=5, seed=3))
    assert len(order) == 60 == len(SprecSampler(10, 6, 5, 3))
    phases = [order[start : start + 6] for start in range(0, 60, 6)]
    assert phases[::2] == phases[1::2]
    # 30 rows are three epochs.
    once = [row for phase in phases[::2] for row in phase]
    assert [sorted(once[start : start + 10]) for start in (0, 10, 20)] == [[*range(10)]] * 3
    assert order == list(SprecSampler(10, 6, 5, 3))
    assert order != list(SprecSampler(10, 6, 5, 4))


# ----------------------------------------------------------------------------------------- runs


def test_first_step_equals_a_plain_one(tmp_path, fixed_model):
    """The reference equals the policy, so each margin is 0. One pass of eight rows."""
    rows = [([item], (item + 1) % 8) for item in range(8)]
    data = write_data(tmp_path / "data", CYCLE, train=rows, valid=rows)
    options = SHORT["preference"].model_copy(update={"steps": 1})
    preference(options, fixed_model, data, 0, tmp_path)
    (line,) = read_steps(tmp_path)
    assert line["loss"] == pytest.approx(math.log(4), abs=1e-5)  # log(1 + 3)
    assert line["margin"] == pytest.approx(0, abs=1e-5)

    model, encoder = load_model(fixed_model), PromptEncoder(tokenizer("qwen2"), CYCLE)
    responses = encoder.encode_responses()
    tree = PrefixTree.build(responses)
    prompts = encoder.encode_prompts(list(range(8)), [history for history, _ in rows], 0)
    target = tree.leaf_of_item[[target for _, target in rows]]
    negative = random_leaves(tree, 0, range(8), target, 3)
    leaves = torch.cat([target[:, None], negative], dim=1).tolist()
    pairs = [
        (prompt, responses[tree.leaf_items[leaf][0]])
        for prompt, group in zip(prompts, leaves, strict=True)
        for leaf in group
    ]
    values = plain.log_probs(model, plain.Sequences(*zip(*pairs, strict=True)))[0]
    ratio = 0.1 * (values.sum(-1) - values.sum(-1).detach()).view(8, 4)
    total = (ratio[:, 1:] - ratio[:, :1]).exp().sum(-1)
    torch.log(1 + total).mean().backward()
    norm = torch.stack([weight.grad.norm() for weight in model.parameters()]).norm()
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("algorithm", ["dpo", "s_dpo", "sprec"])
def test_targets_become_preferred(trained, early_model, cycle, algorithm):
    changes = {"algorithm": algorithm, "steps": 80, "validations": 4}
    folder = trained("preference", early_model, **changes)
    lines = [line for line in read_steps(folder) if "margin" in line]
    assert sum(line["accuracy"] for line in lines[-5:]) / 5 > 0.6
    logged = read_values(folder, "eval_ndcg@10")
    assert len(logged) == 5
    assert max(logged) > ndcg(early_model, cycle, 4) + 0.05
    assert ndcg(folder / "model", cycle, 4) == pytest.approx(max(logged), abs=1e-6)


def test_sprec_alternates_phases_and_syncs_its_reference(trained):
    lines = read_steps(trained("preference", **SPREC))
    assert ["margin" in line for line in lines] == [False, False, True, True] * 2
    # In the first step of a phase the reference equals the policy: log(1 + 1).
    for first, second in (lines[2:4], lines[6:8]):
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert abs(second["margin"]) > 1e-5


def test_sprec_negatives_are_the_references_best(run, fixed_model, monkeypatch):
    """Compared with a search in the initial model, which the tiny learning rate keeps."""
    from rere.training import preference as module

    seen = []

    def spy(prompts, leaf, *more):
        if leaf.shape[1] > 1:
            seen.append((prompts, leaf))
        return pack_leaves(prompts, leaf, *more)

    pack_leaves = module.pack_leaves
    monkeypatch.setattr(module, "pack_leaves", spy)
    run("preference", "run", algorithm="sprec", iterations=1, steps=4, learning_rate=1e-12)
    encoder = PromptEncoder(tokenizer("qwen2"), CYCLE)
    tree = PrefixTree.build(encoder.encode_responses())
    assert len(seen) == 2
    for prompts, leaf in seen:
        found = beam_search(load_model(fixed_model), tree, prompts, 4).leaf.tolist()
        for (target, negative), ranked in zip(leaf.tolist(), found, strict=True):
            assert negative == next(each for each in ranked if each != target)


def test_reference_is_the_model_without_adapters(trained):
    folder = trained("preference", lora_rank=4)
    lines = read_steps(folder)
    assert lines[0]["loss"] == pytest.approx(math.log(4), abs=1e-5)
    assert lines[-1]["margin"] != 0
    assert not any("lora" in name for name in load_weights(folder))


def test_catalogue_scoring(trained):
    """The losses of both scorings are equal in the first step only."""
    one = read_steps(trained("preference", scoring="catalogue"))
    other = read_steps(trained("preference"))
    assert one[0]["loss"] == pytest.approx(other[0]["loss"], abs=1e-5)
    assert one[-1]["loss"] != pytest.approx(other[-1]["loss"], abs=1e-4)


# ---------------------------------------------------------------------------------- wrong input


def test_too_few_titles_are_refused(tmp_path, fixed_model):
    rows = [([0], 1)] * 14
    data = write_data(tmp_path / "titles", CYCLE[:3], train=rows, valid=rows)
    with pytest.raises(InputError, match="has 3 titles, too few for a target and 3 negatives"):
        preference(SHORT["preference"], fixed_model, data, 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "dpo", "negatives": 2}, "algorithm: dpo has one negative"),
        ({"iterations": 2}, "iterations is for algorithm: sprec"),
        ({"algorithm": "sprec", "steps": 8}, "steps must be a multiple of twice the iterations"),
        ({"algorithm": "sprec", "num_beams": 1}, "num_beams must be above negatives"),
        ({"algorithm": "sprec", "steps": 10, "lora_rank": 4}, "sprec needs lora_rank: null"),
        ({"batch_size": 12}, "batch_size must be a multiple of rows_per_pass"),
    ],
)
def test_contradictory_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PreferenceOptions(**{"batch_size": 8, "rows_per_pass": 8, **changes})
