"""Options of training, each compared with a run without it or with a plain equivalent."""

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CYCLE, causal_lm, tokenizer, write_cycle, write_data, write_fixed_model
from training_runs import (
    MACHINE_FIELDS,
    assert_weights_close,
    load_weights,
    read_steps,
    read_values,
)
from transformers import TrainerState

from rere.backbones import load_model
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions, Training
from rere.data.dataset import read_split
from rere.data.factors import Factors
from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import TokenScores, sum_by_candidate, token_scores
from rere.engine.search.rollout import Candidates, roll_out
from rere.errors import InputError
from rere.prefix_tree import token_ids
from rere.training import groups, models
from rere.training import rl as rl_module
from rere.training.groups import num_distinct
from rere.training.preference import preference
from rere.training.rl import CollapseStop, rl
from rere.training.sft import sft

STAGES = {"sft": sft, "rl": rl}
SFT = SftOptions(learning_rate=5e-3, batch_size=8, rows_per_pass=8, epochs=0.5, validations=1)
RL = RlOptions(
    learning_rate=1e-3,
    steps=4,
    prompts=8,
    rows_per_pass=8,
    group_size=4,
    beta=0.1,
    validations=1,
)
PREFERENCE = PreferenceOptions(
    learning_rate=1e-2, steps=8, batch_size=8, rows_per_pass=8, validations=1
)
OPTIONS = {"sft": SFT, "rl": RL}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("cycle"))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fixed_model(tmp_path_factory.mktemp("init"))


@pytest.fixture
def run(tmp_path: Path, init: Path, data: Path):
    """A function that runs a stage with changed options and returns its folder."""

    def run(stage: str, name: str, **changes: Any) -> Path:
        options = OPTIONS[stage].model_copy(update=changes)
        type(options).model_validate(options.model_dump())
        STAGES[stage](options, init, data, 0, tmp_path / name)
        return tmp_path / name

    return run


def has_same_weights(actual: Path, expected: Path) -> bool:
    one, other = load_weights(actual), load_weights(expected)
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


# --------------------------------------------------------------------------- the training rows


def with_part(options: Training, start: float, end: float) -> Training:
    return options.model_copy(update={"train_part": [start, end]})


@pytest.mark.parametrize(
    ("stage", "options"),
    [(sft, SFT), (preference, PREFERENCE), (rl, RL)],
    ids=["sft", "preference", "rl"],
)
def test_train_part_equals_a_dataset_of_these_rows(
    tmp_path: Path, data: Path, init: Path, stage: Callable, options: Training
):
    inside = tmp_path / "inside"
    shutil.copytree(data, inside)
    read_split(data, "train")[24:72].write_parquet(inside / "train.parquet")
    stage(with_part(options, 0.25, 0.75), init, data, 0, tmp_path / "part")
    stage(options, init, inside, 0, tmp_path / "whole")
    assert_weights_close(tmp_path / "part", tmp_path / "whole", 0.0)
    stage(options, init, data, 0, tmp_path / "all")
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "part", tmp_path / "all", 0.0)


def test_train_part_with_factors_of_all_rows(tmp_path: Path, data: Path, init: Path):
    row_id = torch.tensor(read_split(data, "train")["row_id"].to_list())
    factors = tmp_path / "factors.safetensors"
    Factors(row_id, torch.ones(len(row_id), 2), torch.ones(8, 2)).save(factors)
    options = RL.model_copy(update={"reward": ["rule", "collaborative"], "train_part": [0.5, 1.0]})
    rl(options, init, data, 0, tmp_path / "run", factors)
    assert (tmp_path / "run" / "model").is_dir()


def test_too_small_train_part_is_refused(tmp_path: Path, data: Path, init: Path):
    with pytest.raises(InputError, match="has 5 training rows in train_part, fewer than 8"):
        rl(with_part(RL, 0.95, 1.0), init, data, 0, tmp_path / "run")
    with pytest.raises(InputError, match="has 0 training rows in train_part, fewer than 1"):
        sft(with_part(SFT, 0.999, 1.0), init, data, 0, tmp_path / "run")


# ------------------------------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_are_merged_into_the_saved_model(stage, run, init):
    folder = run(stage, "lora", lora_rank=4, learning_rate=1e-2, group_size=8)
    names = {path.name for path in (folder / "model").iterdir()}
    assert {"model.safetensors", "config.json", "catalogue.safetensors"} <= names
    assert not any("adapter" in name for name in names)
    model, before = load_model(folder / "model"), load_model(init)
    changed = {
        name
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    # All linear layers change, by at most rank 4, and nothing else does.
    linear = {
        f"{name}.weight"
        for name, module in before.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    }
    assert changed == linear
    for name in linear:
        update = model.get_parameter(name) - before.get_parameter(name)
        assert torch.linalg.matrix_rank(update, rtol=1e-3) <= 4


def test_reference_is_the_model_without_adapters(run):
    folder = run("rl", "lora", lora_rank=4, learning_rate=1e-2)
    kl = read_values(folder, "kl")
    assert kl[0] == 0.0
    assert kl[-1] > 1e-4


def test_merged_adapters_keep_the_validation_loss(run, data):
    folder = run("sft", "lora", lora_rank=4, learning_rate=1e-2)
    (logged,) = read_values(folder, "eval_loss")
    options = SFT.model_copy(update={"learning_rate": 1e-12, "epochs": 1 / 12})
    sft(options, folder / "model", data, 0, folder / "again")
    (loss,) = read_values(folder / "again", "eval_loss")
    assert loss == pytest.approx(logged, rel=1e-5)


# ----------------------------------------------- gradient checkpointing, precision and dropout


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lora_rank", [None, 4])
def test_gradient_checkpointing_changes_nothing(stage, lora_rank, run, monkeypatch):
    called = []
    original = models.checkpoint

    def counted(*args, **more):
        called.append(torch.is_grad_enabled())
        return original(*args, **more)

    monkeypatch.setattr(models, "checkpoint", counted)
    changes = {"lora_rank": lora_rank, "rows_per_pass": 4}
    plain = run(stage, "plain", **changes)
    assert called == []
    assert_weights_close(run(stage, "less", **changes, gradient_checkpointing=True), plain, 1e-6)
    assert True in called


def test_bfloat16_rollout_and_update_have_the_same_scores(run, monkeypatch):
    """The log-probabilities of rollout and update differ only by bfloat16 rounding."""
    searched, scored = [], []

    def search(*args: Any) -> Candidates:
        searched.append(roll_out(*args))
        return searched[-1]

    def score(model: Any, packed: PackedBatch, *more: Any) -> TokenScores:
        scores = token_scores(model, packed, *more)
        scored.append(sum_by_candidate(scores.log_prob.detach(), packed))
        return scores

    monkeypatch.setattr(groups, "roll_out", search)
    monkeypatch.setattr(rl_module, "token_scores", score)
    folder = run("rl", "bfloat16", dtype="bfloat16", steps=2)
    assert {weight.dtype for weight in load_weights(folder).values()} == {torch.float32}
    for found, again in zip(searched, scored, strict=False):
        # Sums of up to 14 log-probabilities of logits that keep 8 bits each.
        difference = (found.log_prob - again).abs().max()
        assert 0 < difference < 0.02 * again.abs().max()
    # The reference rounds as the policy does, so there is no KL before the first update.
    assert read_values(folder, "kl")[0] == 0.0


def test_bfloat16_is_close_to_float32(run):
    exact, rough = run("rl", "float32"), run("rl", "bfloat16", dtype="bfloat16")
    assert read_values(rough, "entropy") == pytest.approx(read_values(exact, "entropy"), rel=0.02)
    assert not has_same_weights(rough, exact)


def test_rl_has_no_dropout(tmp_path, data):
    """A model with dropout takes the same steps as the model without."""
    for name, rate in [("with", 0.5), ("without", 0.0)]:
        model = causal_lm("gpt2", len(tokenizer("gpt2")), resid_pdrop=rate, attn_pdrop=rate)
        model.save_pretrained(tmp_path / "init" / name)
        tokenizer("gpt2").save_pretrained(tmp_path / "init" / name)
        rl(RL, tmp_path / "init" / name, data, 0, tmp_path / name)
    assert has_same_weights(tmp_path / "with", tmp_path / "without")
    config = json.loads((tmp_path / "with" / "model" / "config.json").read_text())
    assert config["resid_pdrop"] == 0.5


# ------------------------------------------------------------------------ zero-advantage groups


@pytest.mark.parametrize("rows_per_pass", [1, 2, 8])
def test_skipping_zero_advantage_groups_changes_no_bit(run, rows_per_pass):
    changes = {"beta": 0.0, "steps": 6, "rows_per_pass": rows_per_pass, "weight_decay": 0.1}
    never = run("rl", "never", skip_zero_advantage="never", **changes)
    exact = run("rl", "exact", skip_zero_advantage="exact", **changes)
    assert has_same_weights(exact, never)
    for name in ("loss", "grad_norm", "reward", "hit_rate", "learning_rate"):
        assert read_values(exact, name) == read_values(never, name)
    assert read_values(never, "skipped") == [0.0] * 6
    # With rule and ranking rewards a group without a hit has zero advantage.
    missed = [1 - rate for rate in read_values(exact, "hit_rate")]
    assert read_values(exact, "skipped") == pytest.approx(missed)
    assert 0 < min(missed) < max(missed)


def test_optimiser_steps_without_any_advantage(run):
    """With one prompt per step most steps have zero advantage; the momentum still counts."""
    changes = {"beta": 0.0, "steps": 12, "prompts": 1, "rows_per_pass": 1}
    never = run("rl", "never", skip_zero_advantage="never", **changes)
    exact = run("rl", "exact", skip_zero_advantage="exact", **changes)
    assert has_same_weights(exact, never)
    rates = read_values(exact, "hit_rate")
    zero_steps = [
        norm for norm, rate in zip(read_values(exact, "grad_norm"), rates, strict=True) if not rate
    ]
    assert 0 < len(zero_steps) < 12
    assert set(zero_steps) == {0.0}


def test_with_a_kl_only_approximate_skips(run):
    never, exact, approximate = (
        run("rl", name, skip_zero_advantage=name, beta=0.1, learning_rate=1e-2)
        for name in ("never", "exact", "approximate")
    )
    assert has_same_weights(exact, never)
    assert read_values(exact, "skipped") == [0.0] * 4
    assert max(read_values(approximate, "skipped")) > 0
    assert not has_same_weights(approximate, never)


# ------------------------------------------------------------------------- passes and references


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"scoring": "catalogue"}])
def test_rows_per_pass_does_not_change_the_result(run, changes):
    one = run("rl", "one", rows_per_pass=8, **changes)
    eight = run("rl", "eight", rows_per_pass=1, **changes)
    for name in ("loss", "grad_norm", "reward", "hit_rate", "entropy", "distinct"):
        assert read_values(eight, name) == pytest.approx(
            read_values(one, name), rel=1e-4, abs=1e-6
        ), name
    # Adam amplifies rounding where a gradient is almost 0; a step changes weights by 1e-3.
    assert_weights_close(eight, one, 1e-4)


def test_incomplete_last_step(tmp_path, init, data):
    """21 rows are steps of 8, 8 and 5, the last in passes of two, two and one."""
    few = tmp_path / "few"
    shutil.copytree(data, few)
    read_split(few, "train").head(21).write_parquet(few / "train.parquet")
    for name, rows in [("one", 8), ("many", 2)]:
        options = RL.model_copy(update={"rows_per_pass": rows, "steps": 3})
        rl(options, init, few, 0, tmp_path / name)
    assert read_values(tmp_path / "many", "loss") == pytest.approx(
        read_values(tmp_path / "one", "loss"), rel=1e-4, abs=1e-6
    )
    assert_weights_close(tmp_path / "many", tmp_path / "one", 1e-4)


def test_reference_synced_to_the_policy_at_each_step(run):
    moving = run("rl", "moving", sync_interval=1, sync_mix=1.0)
    assert read_values(moving, "kl") == [0.0] * 4
    assert min(read_values(run("rl", "fixed"), "kl")[1:]) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sync_interval": 64, "beta": 0.0}, "needs beta above 0"),
        ({"sync_interval": 64, "lora_rank": 8}, "sync_interval needs lora_rank: null"),
    ],
)
def test_reference_that_cannot_be_synced_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RlOptions(**changes)


def test_scoring_applies_to_rollout_update_and_validation(run):
    """Under `catalogue` forced tokens do not count, so entropies and beams differ."""
    vocabulary, catalogue = run("rl", "vocabulary"), run("rl", "catalogue", scoring="catalogue")
    assert max(read_values(catalogue, "entropy")) < min(read_values(vocabulary, "entropy"))
    # Among eight titles no decision has more than eight choices.
    assert max(read_values(catalogue, "entropy")) <= math.log(8)


# -------------------------------------------------------------------------- log and early end


def test_fields_of_the_log(run):
    folder = run("rl", "run")
    for line in read_steps(folder):
        assert line["reward"] == pytest.approx(line["reward_rule"] + line["reward_ranking"])
        assert line["reward_rule"] == line["hit_rate"]
        assert line["distinct"] == 4.0
        assert 0 < line["entropy"] < math.log(512)
    raw = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(line["candidates_per_second"] > 0 for line in raw if "loss" in line)
    assert all(line.keys() & MACHINE_FIELDS >= {"peak_memory_mb"} for line in raw if "loss" in line)


def test_distinct_leaves_by_hand():
    leaf = torch.tensor([[3, 5, 3, 3], [7, 7, 7, 7], [-1, 4, -1, 4], [-1, -1, -1, -1]])
    assert num_distinct(leaf).tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("stage", STAGES)
def test_loss_that_is_not_finite_stops_the_run(stage, run, tmp_path):
    with pytest.raises(InputError) as stopped:
        run(stage, "run", learning_rate=1e30, warmup=0.0, checkpoint_seconds=0.0)
    assert "\n" not in str(stopped.value)
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept == {"checkpoints"}
    for folder in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        assert all(weight.isfinite().all() for weight in load_model(folder).parameters())


def test_collapsed_groups_stop_the_run(tmp_path, init, monkeypatch):
    def search(model, tree, prompts, strategy, group_size, *_) -> Candidates:
        leaf = tree.leaf_of_item[7].expand(len(prompts), group_size)
        return Candidates(leaf, torch.zeros(leaf.shape), token_ids(tree, leaf))

    monkeypatch.setattr(groups, "roll_out", search)
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1)] * 8, valid=[([0], 1)])
    options = RL.model_copy(update={"collapse_steps": 2})
    with pytest.raises(InputError, match="collapsed: for 2 steps up to 2 no group had a hit"):
        rl(options, init, data, 0, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints"}


def test_consecutive_collapsed_steps_are_counted_across_a_resume():
    stop = CollapseStop(3)
    state = TrainerState(global_step=7)

    def log(**logs: float) -> None:
        stop.on_log(None, state, None, logs)

    log(hit_rate=0.0, distinct=1.0)
    log(**{"eval_ndcg@10": 0.0})
    log(hit_rate=0.0, distinct=1.0)
    assert CollapseStop.from_state(stop.state()).steps == 2
    log(hit_rate=0.0, distinct=1.1)
    assert stop.steps == 0
    log(hit_rate=0.1, distinct=1.0)
    assert stop.steps == 0


# ---------------------------------------------------------------------------------------- trackers


def test_missing_tracker_is_a_one_line_error(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^report_to: wandb is not installed; pip install wandb$"):
        run("sft", "run", report_to=["wandb"])
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_step_log(run):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = run("sft", "run", report_to=["tensorboard"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx(read_values(folder, "loss"), rel=1e-6)
