"""Benchmarks of scoring and training: both sides must do the same."""

import math
import re

import pytest
import torch
from tiny_models import VOCAB_SIZE, causal_lm, tokenizer

from rere.benchmarks.speed import preference, rl, scoring, sft
from rere.benchmarks.speed.steps import StepResult, are_same_steps
from rere.benchmarks.speed.table import SCHEMA
from rere.engine.candidates.scoring import token_log_probs

# --------------------------------------------------------------------------------------- scoring


def test_the_rows_of_scoring(benchmark_model, prompt_rows, run_inline, monkeypatch):
    monkeypatch.setattr(scoring, "run_in_process", run_inline)
    prompts = [row.prompt for row in prompt_rows[:4]]
    rows = list(scoring.benchmark_scoring(benchmark_model, prompts, 3, [1, 2]))
    assert [row["equal"] for row in rows] == [True, True]
    assert [" vocabulary," in row["setting"] for row in rows] == [True, False]
    assert all(row.keys() <= SCHEMA.keys() for row in rows)


def test_another_gradient_is_not_equal(random_model, prompt_rows, monkeypatch):
    batch = scoring.find_groups(random_model, [row.prompt for row in prompt_rows[:2]], 3)
    assert scoring.equals_expanded(random_model, "vocabulary", batch)
    monkeypatch.setattr(
        scoring,
        "score",
        lambda model, side, batch: 1.001 * scoring.score_expanded(model, batch, side),
    )
    assert not scoring.equals_expanded(random_model, "vocabulary", batch)


# ------------------------------------------------------------------------------------ preference


def test_the_rows_of_preference(random_model, prompt_rows, monkeypatch):
    monkeypatch.setattr(preference, "ROWS", 4)
    rows = list(preference.benchmark_preference(random_model, prompt_rows, (1, 2)))
    assert [row["equal"] for row in rows] == [True, None]
    assert [" vocabulary," in row["setting"] for row in rows] == [True, False]
    assert all(row.keys() <= SCHEMA.keys() for row in rows)


def test_another_preference_step_is_not_the_same(random_model, prompt_rows, monkeypatch, tmp_path):
    reference = causal_lm("qwen2", VOCAB_SIZE, seed=2)
    steps = preference.make_steps(random_model, reference, tmp_path)
    ours, theirs = (steps[side](3, prompt_rows) for side in ("vocabulary", "expanded batch"))
    assert are_same_steps([ours], [theirs])
    assert ours.loss != pytest.approx(math.log(4), abs=1e-3)  # that of equal log-probabilities
    other = preference.OPTIONS.model_copy(update={"beta": 0.101})
    monkeypatch.setattr(preference, "OPTIONS", other)
    assert not are_same_steps([steps["expanded batch"](3, prompt_rows)], [theirs])


# -------------------------------------------------------------------------------------------- RL


@pytest.mark.parametrize("beta", rl.BETAS)
def test_the_trainers_step_is_the_plain_step(random_model, prompt_rows, rl_steps, beta):
    batch = rl.with_targets(random_model, prompt_rows[:2])
    ours, plain = rl_steps["vocabulary", beta], rl_steps[rl.PLAIN, beta]
    expected = plain((2, 8), batch)
    assert expected.gradient_norm > 0
    for result in (ours(1, batch), ours(2, batch), plain((1, 4), batch), plain((2, 3), batch)):
        assert are_same_steps([result], [expected])
    for changes in (
        {"gradient_norm": 1.01 * expected.gradient_norm},
        {"leaves": expected.leaves[::-1]},
        {"loss": expected.loss + 0.01},
    ):
        assert not are_same_steps([expected._replace(**changes)], [expected])


@pytest.mark.usefixtures("small_rl_steps")
def test_the_loss_includes_the_kl(random_model, prompt_rows, tmp_path):
    steps = rl.make_steps(random_model, tmp_path, [1.0])
    batch = rl.with_targets(random_model, prompt_rows[:2])
    ours, theirs = steps["vocabulary", 1.0](2, batch), steps[rl.PLAIN, 1.0]((2, 8), batch)
    assert are_same_steps([ours], [theirs])
    assert ours.loss > 1e-4


def test_a_step_leaves_the_weights_as_they_are(random_model, prompt_rows, rl_steps):
    before = [weight.clone() for weight in random_model.float32.parameters()]
    batch = rl.with_targets(random_model, prompt_rows[:2])
    rl_steps["catalogue", 0.0](2, batch)
    rl_steps[rl.PLAIN, 0.0]((2, 8), batch)
    assert all(map(torch.equal, random_model.float32.parameters(), before))


def test_a_step_of_zero_advantage_groups_has_no_gradient(random_model, prompt_rows, rl_steps):
    missed = rl.with_targets(random_model, prompt_rows[:4])[1::2]
    result = rl_steps["catalogue", 0.0](2, missed)
    assert (result.loss, result.gradient_norm) == (0, 0)


def test_small_gradients_are_compared_with_the_largest():
    learns, zero = StepResult(2.0, 1.0, [[1]]), StepResult(1e-8, 1e-6, [[1]])
    rounded = zero._replace(gradient_norm=1.01e-6)  # off by 1e-2 of itself, 1e-8 of the other
    assert not are_same_steps([rounded], [zero])
    assert are_same_steps([learns, rounded], [learns, zero])
    assert not are_same_steps([learns, zero._replace(gradient_norm=1e-3)], [learns, zero])
    assert not are_same_steps([learns, rounded._replace(leaves=[[2]])], [learns, zero])


def test_every_second_prompt_has_its_target_among_the_candidates(
    random_model, prompt_rows, rl_steps
):
    batch = rl.with_targets(random_model, prompt_rows)
    leaves = rl_steps["vocabulary", 0.0](2, batch).leaves
    targets = random_model.tree.leaf_of_item[[row.target for row in batch]].tolist()
    hits = [target in found for target, found in zip(targets, leaves, strict=True)]
    assert hits == [True, False] * 4
    advantage = rl.compute_advantage(leaves, targets)
    assert advantage.any(-1).tolist() == hits
    # The target is third of four, reward 1; the others have penalties of ranks 1, 2 and 4.
    discount = [1 / math.log2(rank + 1) for rank in (1, 2, 3, 4)]
    reward = torch.tensor([-d / sum(discount) for d in discount])
    reward[2] = 1
    expected = (reward - reward.mean()) / (reward.std() + 1e-4)
    torch.testing.assert_close(advantage[0], expected)


def test_the_rows_of_rl(random_model, prompt_rows, small_rl_steps):
    rows = list(rl.benchmark_rl(random_model, prompt_rows[:4], 1, [1, 2]))
    assert [row["equal"] for row in rows] == [True, None, True, None]
    assert ["skipped, hit rate 0.5" in row["setting"] for row in rows] == [False, False, True, True]
    for row in rows:
        assert row.keys() <= SCHEMA.keys()
        assert row["ratio"] == row["theirs_seconds"] / row["ours_seconds"]
        assert re.search(
            r" [12] prompts a pass \(theirs 1 a search, [248] sequences a training pass\)",
            row["setting"],
        )


# ------------------------------------------------------------------------------------------- SFT


def test_the_row_of_sft(benchmark_model, monkeypatch):
    monkeypatch.setattr(sft, "BATCH_SIZE", 4)
    row = sft.benchmark_sft(benchmark_model, 8, [2, 4], seed=0)
    assert row["equal"]
    assert row.keys() <= SCHEMA.keys()


def test_both_trainers_train_on_all_rows(benchmark_model, prompt_rows, monkeypatch, tmp_path):
    monkeypatch.setattr(sft, "BATCH_SIZE", 4)
    model = benchmark_model
    pairs = zip(prompt_rows, model.sequences, strict=True)
    rows = [sft.SftRow(row.prompt, response) for row, response in pairs]
    before = [weight.clone() for weight in model.float32.parameters()]
    losses = [
        sft.train(model, tmp_path, 2, rows),
        sft.train_stock(model, tmp_path, tokenizer("qwen2"), 2, rows),
    ]
    examples = sft.collate(rows)["examples"]
    # The mean over all rows, except that steps have unequal numbers of tokens.
    log_prob = token_log_probs(model.float32, examples.pack())
    mean = -log_prob.sum().item() / examples.num_predicted
    assert losses == pytest.approx([mean, mean], rel=0.1)
    assert all(map(torch.equal, model.float32.parameters(), before))
