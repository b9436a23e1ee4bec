"""Options of RL and SFT, each compared with a run without it."""

import importlib.util
import json
import math
from typing import Any

import pytest
import torch
from tiny_models import CYCLE, causal_lm, tokenizer, write_data
from training_runs import (
    MACHINE_FIELDS,
    SHORT,
    has_same_weights,
    load_weights,
    read_steps,
    read_values,
)
from transformers import TrainerState

from rere.backbones import halve_linear_layers
from rere.config.rl import RlOptions
from rere.data.dataset import read_split
from rere.data.factors import Factors
from rere.devices import choose_dtype
from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import TokenScores, sum_by_candidate, token_scores
from rere.engine.search.rollout import Candidates, roll_out
from rere.errors import InputError
from rere.prefix_tree import token_ids
from rere.training import groups, reference, setup
from rere.training import rl as rl_module
from rere.training.callbacks import CollapseStop
from rere.training.groups import num_distinct
from rere.training.rl import rl
from rere.training.trainer import Trainer

# --------------------------------------------------------------------------- the training rows


def test_train_part_with_factors_of_all_rows(tmp_path, cycle, fixed_model):
    row_id = torch.tensor(read_split(cycle, "train")["row_id"].to_list())
    factors = tmp_path / "factors.safetensors"
    Factors(row_id, torch.ones(len(row_id), 2), torch.ones(8, 2)).save(factors)
    changes = {"reward": ["rule", "collaborative"], "train_part": [0.5, 1.0]}
    options = SHORT["rl"].model_copy(update=changes)
    rl(options, fixed_model, cycle, 0, tmp_path / "run", factors)
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("stage", ["preference", "rl"])
def test_epochs_are_steps_by_the_rows_of_train_part(stage, trained):
    """Half of the 96 rows are 6 steps of 8; three quarters of these are 4.5."""
    folder = trained(stage, steps=None, epochs=0.75, train_part=[0.5, 1.0])
    assert [line["step"] for line in read_steps(folder)] == [1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------ LoRA


def test_reference_is_the_model_without_adapters(trained):
    kl = read_values(trained("rl", lora_rank=4, learning_rate=1e-2), "kl")
    assert kl[0] == 0.0
    assert kl[-1] > 1e-4


def test_merged_adapters_keep_the_validation_loss(trained):
    folder = trained("sft", lora_rank=4, learning_rate=1e-2)
    logged = read_values(folder, "eval_loss")[-1]
    again = trained("sft", folder / "model", learning_rate=1e-12, epochs=1 / 12)
    loss = read_values(again, "eval_loss")[-1]
    assert loss == pytest.approx(logged, rel=1e-5)


# ----------------------------------------------- gradient checkpointing, precision and dropout


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


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"beta": 0.1, "lora_rank": 2}])
def test_frozen_weights_in_bfloat16_change_no_bit(run, monkeypatch, options):
    """Autocast would round them in each pass."""
    halved = []

    def halve(model: torch.nn.Module) -> None:
        halve_linear_layers(model)
        halved.append(sum(weight.dtype == torch.bfloat16 for weight in model.parameters()))

    for module in (reference, setup):
        monkeypatch.setattr(module, "halve_linear_layers", halve)
    stored = run("rl", "halved", dtype="bfloat16", **options)
    assert len(halved) == 1 and halved[0] > 0
    for module in (reference, setup):
        monkeypatch.setattr(module, "halve_linear_layers", lambda model: None)
    assert has_same_weights(stored, run("rl", "whole", dtype="bfloat16", **options))


def test_the_precision_of_the_device_is_chosen_and_recorded(run):
    assert choose_dtype("auto", torch.device("cpu")) == "float32"
    assert choose_dtype("auto", torch.device("cuda")) == "bfloat16"
    assert choose_dtype("float32", torch.device("cuda")) == "float32"
    folder = run("rl", "auto", steps=1)
    record = json.loads((folder / "run.json").read_text())
    assert record["options"]["dtype"] == record["chosen"]["dtype"] == "float32"
    assert has_same_weights(folder, run("rl", "float32", steps=1, dtype="float32"))


def test_adafactor_keeps_little_state(run, monkeypatch):
    sizes = []

    def save(trainer: Trainer, folder: str) -> None:
        states = trainer.optimizer.state_dict()["state"].values()
        sizes.append(sum(v.numel() for s in states for v in s.values() if torch.is_tensor(v)))

    monkeypatch.setattr(Trainer, "_save_rng_state", save)
    options = {"steps": 2, "checkpoint_seconds": 0.0}
    runs = [run("rl", name, optimizer=name, **options) for name in ("adamw", "adafactor")]
    assert not has_same_weights(*runs)
    weights = sum(weight.numel() for weight in load_weights(runs[0]).values())
    assert max(sizes) > 1.9 * weights and sizes[-1] < weights / 2


def test_deterministic_algorithms_are_wanted_during_the_run_only(run, monkeypatch):
    wanted = []

    def record(trainer: Trainer, folder: str) -> None:
        wanted.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr(Trainer, "_save_rng_state", record)
    options = {"steps": 2, "checkpoint_seconds": 0.0}
    assert has_same_weights(
        *(run("rl", str(on), deterministic=on, **options) for on in (False, True))
    )
    assert {*wanted[: len(wanted) // 2]} == {False} and wanted[-1]
    assert not torch.are_deterministic_algorithms_enabled()


def test_bfloat16_is_close_to_float32(trained):
    exact, rough = trained("rl"), trained("rl", dtype="bfloat16")
    assert read_values(rough, "entropy") == pytest.approx(read_values(exact, "entropy"), rel=0.02)
    assert not has_same_weights(rough, exact)


def test_rl_has_no_dropout(tmp_path, trained):
    """A model with dropout takes the same steps as the model without."""
    for name, rate in [("with", 0.5), ("without", 0.0)]:
        model = causal_lm("gpt2", len(tokenizer("gpt2")), resid_pdrop=rate, attn_pdrop=rate)
        model.save_pretrained(tmp_path / name)
        tokenizer("gpt2").save_pretrained(tmp_path / name)
    folder = trained("rl", tmp_path / "with")
    assert has_same_weights(folder, trained("rl", tmp_path / "without"))
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["resid_pdrop"] == 0.5


# ------------------------------------------------------------------------ zero-advantage groups


@pytest.mark.parametrize("rows_per_pass", [1, 2, 8])
def test_skipping_zero_advantage_groups_changes_no_bit(trained, rows_per_pass):
    changes = {"beta": 0.0, "steps": 6, "rows_per_pass": rows_per_pass, "weight_decay": 0.1}
    never = trained("rl", skip_zero_advantage="never", **changes)
    exact = trained("rl", skip_zero_advantage="exact", **changes)
    assert has_same_weights(exact, never)
    for name in ("loss", "grad_norm", "reward", "hit_rate", "learning_rate"):
        assert read_values(exact, name) == read_values(never, name)
    assert read_values(never, "skipped") == [0.0] * 6
    # With rule and ranking rewards a group without a hit has zero advantage.
    missed = [1 - rate for rate in read_values(exact, "hit_rate")]
    assert read_values(exact, "skipped") == pytest.approx(missed)
    assert 0 < min(missed) < max(missed)


def test_optimiser_steps_without_any_advantage(trained):
    """With one prompt per step most steps have zero advantage; the momentum still counts."""
    changes = {"beta": 0.0, "steps": 12, "prompts": 1, "rows_per_pass": 1}
    never = trained("rl", skip_zero_advantage="never", **changes)
    exact = trained("rl", skip_zero_advantage="exact", **changes)
    assert has_same_weights(exact, never)
    rates = read_values(exact, "hit_rate")
    zero_steps = [
        norm for norm, rate in zip(read_values(exact, "grad_norm"), rates, strict=True) if not rate
    ]
    assert 0 < len(zero_steps) < 12
    assert set(zero_steps) == {0.0}


def test_with_a_kl_only_approximate_skips(trained):
    never, exact, approximate = (
        trained("rl", skip_zero_advantage=name, learning_rate=1e-2)
        for name in ("never", "exact", "approximate")
    )
    assert has_same_weights(exact, never)
    assert read_values(exact, "skipped") == [0.0] * 4
    assert max(read_values(approximate, "skipped")) > 0
    assert not has_same_weights(approximate, never)


# -------------------------------------------------------------------------- reference and scoring


def test_reference_synced_to_the_policy_at_each_step(trained):
    moving = trained("rl", sync_interval=1, sync_mix=1.0)
    assert read_values(moving, "kl") == [0.0] * 4
    assert min(read_values(trained("rl"), "kl")[1:]) > 0


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


def test_scoring_applies_to_rollout_update_and_validation(trained):
    """Under `catalogue` forced tokens do not count, so entropies and beams differ."""
    vocabulary, catalogue = trained("rl"), trained("rl", scoring="catalogue")
    assert max(read_values(catalogue, "entropy")) < min(read_values(vocabulary, "entropy"))
    # Among eight titles no decision has more than eight choices.
    assert max(read_values(catalogue, "entropy")) <= math.log(8)


# -------------------------------------------------------------------------- log and early end


def test_fields_of_the_log(trained):
    folder = trained("rl")
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


def test_collapsed_groups_stop_the_run(tmp_path, fixed_model, monkeypatch):
    def search(model, tree, prompts, strategy, group_size, *_) -> Candidates:
        leaf = tree.leaf_of_item[7].expand(len(prompts), group_size)
        return Candidates(leaf, torch.zeros(leaf.shape), token_ids(tree, leaf))

    monkeypatch.setattr(groups, "roll_out", search)
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1)] * 8, valid=[([0], 1)])
    options = SHORT["rl"].model_copy(update={"collapse_steps": 2})
    with pytest.raises(InputError, match=r"up to step 2, .*hit rate 0, 1 distinct items per"):
        rl(options, fixed_model, data, 0, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints"}


def test_consecutive_collapsed_steps_are_counted_across_a_resume():
    stop = CollapseStop(3)
    state = TrainerState(global_step=7)

    def log(**logs: float) -> None:
        stop.on_log(None, state, None, logs)

    log(zero_advantage=1.0)
    log(**{"eval_ndcg@10": 0.0})
    log(zero_advantage=1.0)
    assert CollapseStop.from_state(stop.state()).steps == 2
    log(zero_advantage=0.9)
    assert stop.steps == 0


# ---------------------------------------------------------------------------------------- trackers


def test_missing_tracker_is_a_one_line_error(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^report_to: wandb is not installed; pip install wandb$"):
        run("sft", "run", report_to=["wandb"])
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_step_log(trained):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = trained("sft", report_to=["tensorboard"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx(read_values(folder, "loss"), rel=1e-6)
