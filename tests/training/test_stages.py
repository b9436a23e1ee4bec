"""What SFT, preference optimisation and RL share: seeds, passes, files, memory and errors."""

import json
import re
import shutil

import pytest
import torch
from tiny_models import CYCLE, write_data
from training_runs import (
    SHORT,
    STAGES,
    assert_has_catalogue,
    assert_weights_close,
    has_same_weights,
    read_steps,
    read_values,
    run_stage,
)

from rere import tokenization
from rere.backbones import load_model
from rere.config.run import CARD
from rere.data.dataset import read_split
from rere.errors import InputError
from rere.training import models
from rere.training.log_keys import LOG_KEYS
from rere.training.setup import describe_init

every_stage = pytest.mark.parametrize("stage", STAGES)

# ---------------------------------------------------------------------------------- output files


@every_stage
def test_output_files(stage, trained):
    folder = trained(stage)
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "model", "run.json"]
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".md"}
    assert (folder / "model" / "model.safetensors").is_file()


@every_stage
def test_the_keys_of_the_log_are_documented(stage, trained):
    shared = LOG_KEYS["sft, preference, rl"]
    documented = {key for keys in (*shared, *LOG_KEYS[stage]) for key in keys.split(", ")}
    lines = (trained(stage) / "log.jsonl").read_text().splitlines()
    written = {
        re.sub("^reward_.*", "reward_{name}", key) for text in lines for key in json.loads(text)
    }
    unwritten = {"peak_device_memory_mb", *({"extra_prompts"} if stage == "rl" else ())}
    assert written - {"peak_device_memory_mb"} == documented - unwritten


@every_stage
def test_model_folder_has_the_catalogue(stage, trained):
    assert_has_catalogue(trained(stage), CYCLE)


@every_stage
def test_the_card_has_the_best_validation_and_no_paths(stage, trained, cycle, fixed_model):
    folder = trained(stage)
    card = (folder / "model" / CARD).read_text()
    key = "eval_loss" if stage == "sft" else "eval_ndcg@10"
    [value] = read_values(folder, key)[1:]  # one validation beside that of the initial model
    step = json.loads((folder / "run.json").read_text())["best_step"]
    assert f"| validation | {key.removeprefix('eval_')} {value:.4f} at step {step}, the" in card
    assert f"# {cycle.name}, `rere {stage}`\n" in card
    assert f"| started from | the model `{fixed_model.name}` |" in card
    assert "\nlearning_rate: " in card
    assert "warmup: 0.03\n" in card
    for path in (folder, fixed_model, cycle.parent):
        assert str(path) not in card


def test_the_card_names_the_method_that_training_starts_from(tmp_path):
    assert describe_init(tmp_path / "sft" / "seed7" / "model") == "the model of `sft`, seed 7"
    assert describe_init(tmp_path / "private" / "model") == "the model `model`"


# ------------------------------------------------------------------------------ seeds and rows


@every_stage
def test_same_seed_same_weights(stage, trained, run):
    first = trained(stage, seed=3)
    torch.rand(3)  # the initial state of the generator must not matter
    again = run(stage, "again", seed=3)
    assert has_same_weights(again, first)
    assert read_steps(again) == read_steps(first)
    with pytest.raises(AssertionError):
        assert_weights_close(trained(stage, seed=4), first, 1e-5)


@every_stage
def test_seed_changes_the_row_order(stage, run, monkeypatch):
    monkeypatch.setattr(tokenization, "choose_instruction", lambda seed, row_id: "Go on.")
    with pytest.raises(AssertionError):
        assert_weights_close(run(stage, "4", seed=4), run(stage, "3", seed=3), 1e-5)


@every_stage
def test_train_part_equals_a_dataset_of_these_rows(stage, trained, tmp_path, cycle, fixed_model):
    inside = tmp_path / "inside"
    shutil.copytree(cycle, inside)
    read_split(cycle, "train")[24:72].write_parquet(inside / "train.parquet")
    run_stage(SHORT[stage], fixed_model, inside, 0, tmp_path / "whole")
    part = trained(stage, train_part=[0.25, 0.75])
    assert has_same_weights(part, tmp_path / "whole")
    assert not has_same_weights(part, trained(stage))


@every_stage
def test_too_small_train_part_is_refused(stage, run, tmp_path):
    least = 1 if stage == "sft" else 8
    with pytest.raises(InputError, match=f"has 0 training rows in train_part, fewer than {least}"):
        run(stage, "run", train_part=[0.999, 1.0])
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------- passes and memory


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {}),
        ("preference", {}),
        ("preference", {"algorithm": "sprec", "iterations": 2}),
        ("rl", {}),
        ("rl", {"beta": 0.0}),
        ("rl", {"scoring": "catalogue"}),
    ],
)
@pytest.mark.parametrize("rows_per_pass", [1, 2])
def test_rows_per_pass_does_not_change_the_result(stage, changes, rows_per_pass, trained):
    one = trained(stage, **changes)
    many = trained(stage, rows_per_pass=rows_per_pass, **changes)
    for expected, actual in zip(read_steps(one), read_steps(many), strict=True):
        assert actual == pytest.approx(expected, abs=1e-4, rel=1e-3)
    # Adam amplifies rounding where a gradient is almost 0; a step changes weights by 1e-3.
    assert_weights_close(many, one, 1e-4)


@pytest.mark.parametrize(("stage", "length"), [("sft", {"epochs": 1.0}), ("rl", {"steps": 3})])
def test_incomplete_last_step(stage, length, tmp_path, cycle, fixed_model):
    """21 rows are steps of 8, 8 and 5, the last in passes of two, two and one."""
    few = tmp_path / "few"
    shutil.copytree(cycle, few)
    read_split(few, "train").head(21).write_parquet(few / "train.parquet")
    for name, rows_per_pass in [("one", 8), ("many", 2)]:
        options = SHORT[stage].model_copy(update={"rows_per_pass": rows_per_pass, **length})
        run_stage(options, fixed_model, few, 0, tmp_path / name)
    losses = read_values(tmp_path / "one", "loss")
    assert len(losses) == 3
    assert read_values(tmp_path / "many", "loss") == pytest.approx(losses, rel=1e-4, abs=1e-6)
    assert_weights_close(tmp_path / "many", tmp_path / "one", 1e-4)


@every_stage
@pytest.mark.parametrize("lora_rank", [None, 4])
def test_gradient_checkpointing_changes_nothing(stage, lora_rank, trained, run, monkeypatch):
    called = []
    original = models.checkpoint

    def counted(*args, **more):
        called.append(torch.is_grad_enabled())
        return original(*args, **more)

    changes = {"lora_rank": lora_rank, "rows_per_pass": 4}
    monkeypatch.setattr(models, "checkpoint", counted)
    plain = trained(stage, **changes)
    assert called == []
    assert_weights_close(run(stage, "less", **changes, gradient_checkpointing=True), plain, 1e-6)
    assert True in called


@every_stage
def test_adapters_are_merged_into_the_saved_model(stage, trained, fixed_model):
    folder = trained(stage, lora_rank=4, learning_rate=1e-2)
    names = {path.name for path in (folder / "model").iterdir()}
    assert {"model.safetensors", "config.json", "catalogue.safetensors"} <= names
    assert not any("adapter" in name for name in names)
    model, before = load_model(folder / "model"), load_model(fixed_model)
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


# ---------------------------------------------------------------------------------- wrong input


@every_stage
def test_loss_that_is_not_finite_stops_the_run(stage, run, tmp_path):
    with pytest.raises(InputError) as stopped:
        run(stage, "run", learning_rate=1e30, warmup=0.0, checkpoint_seconds=0.0)
    assert "\n" not in str(stopped.value)
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept == {"checkpoints"}
    for folder in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        assert all(weight.isfinite().all() for weight in load_model(folder).parameters())


@pytest.mark.parametrize("stage", ["preference", "rl"])
def test_fewer_training_rows_than_a_step_are_refused(stage, tmp_path, fixed_model):
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1)] * 7, valid=[([0], 1)])
    with pytest.raises(InputError, match="has 7 training rows in train_part, fewer than 8"):
        run_stage(SHORT[stage], fixed_model, data, 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()
