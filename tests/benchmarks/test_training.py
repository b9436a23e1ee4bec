"""What training is measured against, and the measurements: that both sides do the same."""

import math
import re

import pytest
import torch
from engine.search.test_beam import random_catalogue
from tiny_models import (
    CYCLE,
    VOCAB_SIZE,
    causal_lm,
    tokenizer,
    unigram_lm,
    write_data,
    write_fixed_model,
)

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.benchmarks.plain import training as plain
from rere.benchmarks.speed import preference
from rere.benchmarks.speed import scoring
from rere.benchmarks.speed import sft
from rere.benchmarks.speed import rl as step
from rere.benchmarks.plain.generate import TokenTree
from rere.benchmarks.subject import Subject, load
from rere.benchmarks.speed.table import SCHEMA
from rere.training import objectives

EOS = 1
SEQUENCES = random_catalogue(60, seed=5)
PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22], [4, 4], [9, 6, 5], [3], [12, 2, 9, 9], [20]]
SIZES = {"PROMPTS": 2, "GROUP_SIZE": 4, "EVERY": 2}


@pytest.fixture(scope="module")
def subject():
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1)
    return Subject("random", {"float32": model}, SEQUENCES, EOS)


@pytest.fixture
def small_steps(monkeypatch):
    for name, value in SIZES.items():
        monkeypatch.setattr(step, name, value)


def sequences(prompts, leaves, subject):
    items = subject.tree.leaf_items
    pairs = [
        (prompt, SEQUENCES[items[leaf][0]])
        for prompt, row in zip(prompts, leaves, strict=True)
        for leaf in row
    ]
    return plain.Sequences(*zip(*pairs, strict=True))


# ----------------------------------------------------------------------------------- plain sides


def test_plain_log_probs_by_hand():
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    pairs = plain.Sequences([[3], [4, 2, 2]], [[2, 4, 1], [3, 1]])
    log_prob, counts = plain.log_probs(model, pairs)
    logs = [[math.log(p) for p in row] for row in ((1 / 4, 1 / 16, 1 / 2), (1 / 8, 1 / 2))]
    assert log_prob[0].tolist() == pytest.approx(logs[0])
    assert log_prob[1].tolist() == pytest.approx([*logs[1], 0])
    assert counts.tolist() == [[True, True, True], [True, True, False]]
    # 2 against 3 is 2 : 1, 4 against 1 is 1 : 8, and nothing else is a decision.
    tree = TokenTree.build([[2, 4, 1], [2, 1], [3, 1]], 5)
    log_prob, counts = plain.log_probs(model, pairs, tree)
    assert counts.tolist() == [[True, True, False], [True, False, False]]
    assert log_prob[counts].tolist() == pytest.approx([math.log(p) for p in (2 / 3, 1 / 9, 1 / 3)])
    assert log_prob[~counts].tolist() == [0, 0, 0]


def test_plain_log_probs_are_those_of_packed_candidates(subject):
    model, tree = subject.models["float32"], subject.tree
    leaves = [tree.leaf_of_item[i : i + 3].tolist() for i in range(len(PROMPTS))]
    pairs = sequences(PROMPTS, leaves, subject)
    for how, token_tree in (("vocabulary", None), ("catalogue", subject.token_tree)):
        packed = pack_leaves(PROMPTS, torch.tensor(leaves), tree, how)
        expected = token_log_probs(model, packed)[packed.candidate < packed.num_candidates]
        log_prob, counts = plain.log_probs(model, pairs, token_tree)
        torch.testing.assert_close(log_prob[counts], expected, atol=1e-5, rtol=0)


def test_the_plain_update_is_the_objectives_gradient(subject):
    model = subject.models["float32"]
    reference = causal_lm("qwen2", VOCAB_SIZE, seed=2)
    leaves = [subject.tree.leaf_of_item[i : i + 3].tolist() for i in range(4)]
    pairs = sequences(PROMPTS[:4], leaves, subject)
    advantage = torch.linspace(-1, 2, 12)
    found = []
    for at_once in (12, 5):
        model.zero_grad()
        loss = plain.update(model, reference, pairs, advantage, 0.1, at_once)
        found.append((loss, torch.cat([w.grad.flatten() for w in model.parameters()])))
    packed = pack(PROMPTS[:4], [pairs.responses[i : i + 3] for i in (0, 3, 6, 9)])
    log_prob = token_log_probs(model, packed)
    kl = objectives.k3(log_prob, token_log_probs(reference, packed).detach())
    loss = objectives.grpo(log_prob, advantage.view(4, 3), kl, 0.1, packed)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    for value, gradient in found:
        assert value == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("beta", [1.0, 1e-3, 0.0])
@pytest.mark.parametrize("at_once", [(1, 2), (2, 1), (2, 2)])
def test_steps_are_the_same_whatever_is_at_once(subject, small_steps, beta, at_once):
    batch = step.with_targets(subject, PROMPTS[:2])
    ours = step.make(subject, "vocabulary", beta)
    theirs = step.make(subject, step.PLAIN, beta)
    assert (ours.skip, theirs.skip) == (beta == 0, False)
    expected = theirs(2, 2, batch)
    assert step.same(ours(*at_once, batch), expected)
    assert step.same(theirs(*at_once, batch), expected)
    assert expected.norm > 0
    other = expected._replace(norm=1.01 * expected.norm)
    assert not step.same(other, expected)
    assert not step.same(expected._replace(leaves=expected.leaves[::-1]), expected)


def test_the_ways_of_steps():
    assert step.ways_of("vocabulary", 2, [1, 2]) == [(2, 1), (2, 2), (4, 4)]
    assert step.ways_of("catalogue", 4, [1, 2, 4]) == [(4, 1), (4, 2), (4, 4)]
    assert step.ways_of(step.PLAIN, 2, [1, 2]) == [(2, 8), (2, 16), (2, 32)]


def test_a_skipped_group_counts_among_those_of_the_mean(subject, small_steps):
    batch = step.with_targets(subject, PROMPTS[:2])
    skipping = step.make(subject, "catalogue", 0.0)
    results = [step.Step(**{**vars(skipping), "skip": skip})(2, 2, batch) for skip in (0, 1)]
    assert step.same(*results)


def test_a_step_in_which_all_groups_are_silent(subject, small_steps):
    batch = step.with_targets(subject, PROMPTS[:2])
    silent = [row._replace(target=-1) for row in batch]
    result = step.make(subject, "catalogue", 0.0)(2, 2, silent)
    assert (result.loss, result.norm) == (0, 0)


def test_a_small_gradient_is_held_to_the_size_of_the_others():
    tells, silent = step.Result([[1]], 2.0, 1.0), step.Result([[1]], 1e-8, 1e-6)
    rounded = silent._replace(norm=1.01e-6)  # 1e-8 apart: 1e-2 of its own norm, 1e-8 of the other's
    assert not step.same(rounded, silent)
    assert step.all_same([tells, rounded], [tells, silent])
    assert not step.all_same([tells, silent._replace(norm=1e-3)], [tells, silent])
    assert not step.all_same([tells, rounded._replace(leaves=[[2]])], [tells, silent])


def test_one_target_in_so_many_is_a_candidate(subject, small_steps):
    batch = step.with_targets(subject, PROMPTS)
    steps = step.make(subject, "vocabulary", 0.0)
    leaves = steps.search([row.prompt for row in batch])
    hits = [row.target in found for row, found in zip(batch, leaves, strict=True)]
    assert hits == [True, False] * 4
    advantage = step.advantage_of(leaves, [row.target for row in batch])
    assert advantage.any(-1).tolist() == hits
    # The target is the third of four: reward 1; the others' penalties are 1, 2 and 4 of all ranks.
    discount = [1 / math.log2(k + 1) for k in (1, 2, 3, 4)]
    reward = torch.tensor([-d / sum(discount) for d in discount])
    reward[2] = 1
    expected = (reward - reward.mean()) / (reward.std() + 1e-4)
    torch.testing.assert_close(advantage[0], expected)


def test_the_rows_of_steps(subject, small_steps):
    searched = {"vocabulary": 2, "catalogue": 4, "generate": 1}
    rows = list(step.rows(subject, "cycle", PROMPTS[:4], searched, [1, 2]))
    assert [row["equal"] for row in rows] == [True, None, True, None]
    assert ["skipped, hit rate 0.5" in row["setting"] for row in rows] == [False, False, True, True]
    for row in rows:
        assert row.keys() <= SCHEMA.keys()
        assert row["ratio"] == row["theirs_seconds"] / row["ours_seconds"]
        assert re.search(
            r"[24] prompts a search \(theirs 1\), [124] a training pass", row["setting"]
        )
        assert re.search(r" pass \(theirs [248] sequences\)", row["setting"])


# ------------------------------------------------------------------------------------- scoring


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model's folder and a data folder."""
    root = tmp_path_factory.mktemp("training")
    rows = [([start, (start + 1) % 8], (start + 2) % 8) for start in range(8)]
    return write_fixed_model(root / "fixed"), write_data(root / "cycle", CYCLE, train=rows)


def test_the_rows_of_scoring(inputs, monkeypatch):
    monkeypatch.setattr(scoring, "in_fresh_process", lambda function, *args: function(*args))
    subject = load("fixed", *inputs, ["float32"])
    rows = list(scoring.rows(subject, *inputs, PROMPTS[:4], 3, [1, 2]))
    assert [row["equal"] for row in rows] == [True, True]
    assert [" vocabulary," in row["setting"] for row in rows] == [True, False]
    assert all(row.keys() <= SCHEMA.keys() for row in rows)


def test_another_gradient_is_not_equal(subject, monkeypatch):
    batch = scoring.groups(subject, PROMPTS[:2], 3)
    assert scoring.equals_expanded(subject, "vocabulary", batch)
    monkeypatch.setattr(scoring, "log_prob", lambda *_: 1.001 * scoring.expanded(*_[::2], _[1]))
    assert not scoring.equals_expanded(subject, "vocabulary", batch)


# --------------------------------------------------------------------------------- preferences


def test_the_rows_of_preferences(subject, monkeypatch):
    monkeypatch.setattr(preference, "ROWS", 4)
    rows = list(preference.rows(subject, "cycle", PROMPTS, (1, 2)))
    assert [row["equal"] for row in rows] == [True, None]
    assert [" vocabulary," in row["setting"] for row in rows] == [True, False]
    assert all(row.keys() <= SCHEMA.keys() for row in rows)


def test_another_step_of_preferences_is_not_the_same(subject, monkeypatch):
    batch = preference.with_candidates(subject, PROMPTS)
    assert all(len(set(group.leaves)) == 4 for group in batch)
    optimizer = torch.optim.AdamW(subject.models["float32"].parameters(), lr=0.0)
    other = Subject("other", {"float32": causal_lm("qwen2", VOCAB_SIZE, seed=2)}, SEQUENCES, EOS)
    steps = [
        preference.Step(subject, other, optimizer, side)
        for side in ("vocabulary", "expanded batch")
    ]
    ours, theirs = (each(3, batch) for each in steps)
    assert preference.same(ours, theirs)
    assert ours.loss != pytest.approx(math.log(4), abs=1e-2)
    monkeypatch.setattr(preference, "BETA", 0.101)
    assert not preference.same(steps[0](3, batch), theirs)


# ----------------------------------------------------------------------------------------- SFT


def test_the_row_of_sft(inputs, monkeypatch):
    monkeypatch.setattr(sft, "BATCH_SIZE", 4)
    (row,) = sft.rows(load("fixed", *inputs, ["float32"]), *inputs, 8, [2, 4], seed=0)
    assert row["equal"]
    assert row.keys() <= SCHEMA.keys()


def test_both_trainers_train_on_all_rows(inputs, monkeypatch):
    monkeypatch.setattr(sft, "BATCH_SIZE", 4)
    subject = load("fixed", *inputs, ["float32"])
    data = [sft.Row(p, response) for p, response in zip(PROMPTS, subject.sequences, strict=True)]
    before = [weight.clone() for weight in subject.models["float32"].parameters()]
    losses = [sft.train(subject, 2, data), sft.train_stock(subject, tokenizer("qwen2"), 2, data)]
    collated = sft.collate(data)
    # All rows' mean, but for how tokens divide among the steps.
    log_prob = token_log_probs(subject.models["float32"], collated["packed"])
    mean = -log_prob.sum().item() / (len(collated["labels"]) - 1)
    assert losses == pytest.approx([mean, mean], rel=0.1)
    assert all(map(torch.equal, subject.models["float32"].parameters(), before))
