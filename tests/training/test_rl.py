"""ReRe end to end, on a cycle of items, from a briefly trained model."""

import math

import pytest
import torch
from tiny_models import CYCLE, write_data
from training_runs import SHORT, ndcg, read_steps, read_values

from rere import tokenization
from rere.engine.search.rollout import roll_out
from rere.training import groups, setup
from rere.training.rl import rl

# ------------------------------------------------------------------------------------- learning


def test_ndcg_rises(improved_ranks, early_model, cycle):
    before = ndcg(early_model, cycle, 8)
    after = ndcg(improved_ranks / "model", cycle, 8)
    assert after > before + 0.2


def test_saved_model_is_the_best_validated_one(improved_ranks, cycle):
    logged = read_values(improved_ranks, "eval_ndcg@10")
    assert len(logged) == 5
    assert ndcg(improved_ranks / "model", cycle, 8) == pytest.approx(max(logged), abs=1e-6)


@pytest.mark.parametrize("rows_per_pass, dtype", [(4, torch.float32), (8, torch.float64)])
def test_golden_steps(rows_per_pass, dtype, run, monkeypatch):
    """They may change only with an intended change of prompts, row order or arithmetic.

    One pass per step runs in float64, since at this learning rate other rounding in the first step
    grows to 2e-4 of a norm in the sixth.
    """
    load = setup.load_trainable

    def load_as(*given):
        tokenizer, model = load(*given)
        return tokenizer, model.to(dtype)

    monkeypatch.setattr(setup, "load_trainable", load_as)
    changes = {"learning_rate": 1e-2, "beta": 1.0, "steps": 10}
    lines = read_steps(run("rl", "run", rows_per_pass=rows_per_pass, **changes))
    # The advantages of a group sum to 0, so the loss is almost beta * KL.
    for name, expected in GOLDEN.items():
        assert [line[name] for line in lines] == pytest.approx(expected, rel=1e-4, abs=1e-5), name


GOLDEN = {
    "loss": [
        *[0.0, 0.01804, 0.02265, 0.0097, 0.01143],
        *[0.01152, 0.0072, 0.00539, 0.00466, 0.00444],
    ],
    "grad_norm": [
        *[0.1289, 0.18527, 0.24722, 0.08924, 0.12381],
        *[0.15617, 0.12918, 0.1374, 0.10103, 0.07536],
    ],
    "reward": [
        *[0.11861, 0.12838, 0.06981, 0.14602, 0.20797],
        *[0.1738, 0.20797, 0.10361, 0.11037, 0.0762],
    ],
    "hit_rate": [0.625, 0.375, 0.375, 0.625, 0.75, 0.625, 0.625, 0.5, 0.5, 0.375],
}


# -------------------------------------------------------------------------------------- the log


def test_log_has_one_line_per_step(improved_ranks):
    lines = read_steps(improved_ranks)
    assert [line["step"] for line in lines] == list(range(1, 41))
    names = {"loss", "grad_norm", "learning_rate", "reward", "hit_rate", "kl"}
    assert all(names <= line.keys() for line in lines)
    # All eight items are candidates, so the target always is.
    assert {line["hit_rate"] for line in lines} == {1.0}
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert lines[-1]["kl"] > 1e-3


def test_without_kl_there_is_no_reference(trained):
    folder = trained("rl", beta=0.0)
    assert all("kl" not in line for line in read_steps(folder))
    assert read_values(folder, "loss") == pytest.approx([0.0] * 4, abs=1e-6)


# ------------------------------------------------------------------------------ passes and groups


def test_prompts_of_similar_length_share_a_search(run, monkeypatch):
    lengths = []

    def spy(policy, tree, prompts, *more):
        lengths.append([len(prompt) for prompt in prompts])
        return roll_out(policy, tree, prompts, *more)

    monkeypatch.setattr(tokenization, "choose_instruction", lambda seed, row_id: "Go on.")
    monkeypatch.setattr(groups, "roll_out", spy)
    monkeypatch.setattr(groups, "max_batch_size", lambda *_: 4)
    run("rl", "run")
    pairs = list(zip(lengths[::2], lengths[1::2], strict=True))
    assert len(pairs) == SHORT["rl"].steps
    assert all(max(first) <= min(second) for first, second in pairs)
    assert any(min(first) < max(second) for first, second in pairs)


def test_group_larger_than_the_catalogue(trained):
    """Sixteen slots for eight items: all items are candidates."""
    folder = trained("rl", group_size=16, reward=["ranking"])
    assert {line["hit_rate"] for line in read_steps(folder)} == {1.0}
    # The items have the first eight of sixteen ranks, whose discounts sum to 3.953 of 6.106. The
    # target's own discount, 1 / log2(9) to 1, is not charged.
    for line in read_steps(folder):
        assert -(3.953 - 1 / math.log2(9)) / 6.106 - 1e-3 <= line["reward"]
        assert line["reward"] <= -(3.953 - 1) / 6.106 + 1e-3


def test_items_with_the_same_title_are_one_candidate(tmp_path, fixed_model):
    """A candidate with the target's title is a hit, whichever item it was."""
    titles = [*CYCLE[:3], CYCLE[0]]
    rows = [([1], 3), ([2], 0)] * 8
    data = write_data(tmp_path / "data", titles, train=rows, valid=rows)
    options = SHORT["rl"].model_copy(update={"group_size": 3})
    rl(options, fixed_model, data, 0, tmp_path / "run")
    assert {line["hit_rate"] for line in read_steps(tmp_path / "run")} == {1.0}
