"""Training on an imitated GPU gives the weights and logs of the CPU."""

import json

import pytest
from fake_gpu import fake_gpu
from training_runs import EVERY_STEP, SHORT, assert_weights_close, read_log, run_stage

from rere.training.callbacks import StepLog


def change(stage, **changes):
    options = SHORT[stage]
    small = {"valid_rows": 4, "rows_per_pass": 4}
    return type(options).model_validate(options.model_dump() | small | changes)


def rl(**changes):
    return change("rl", **{"steps": 2, "prompts": 4, "rows_per_pass": 2, **changes})


def sampled(rollout, **changes):
    return rl(rollout=rollout, scoring="catalogue", **changes)


RUNS = {
    "s_dpo": change("preference", steps=2),
    "rl_catalogue": rl(scoring="catalogue", kl="k2", advantage="rloo", ground_truth=True),
    "rl_dapo": rl(objective="dapo", beta=0.0, dynamic_sampling=2),
    "rl_iid": sampled("iid", objective="gspo", updates=2),
    "rl_oversample": sampled("oversample", objective="dr_grpo", advantage="dr_grpo"),
    "rl_target": sampled("oversample_with_target", objective="released_token_mean"),
    "rl_stochastic": sampled("stochastic_beam", objective="released_sequence_mean"),
    "rl_unconstrained": rl(rollout="unconstrained", advantage="global", temperature=0.8),
    "rl_unconstrained_beam": rl(rollout="unconstrained_beam", reward=["semantic", "rule"], steps=1),
    "rl_lora": rl(lora_rank=4, gradient_checkpointing=True, steps=1),
}
INTERRUPTED = {
    "sft": change("sft", epochs=0.2),
    "sprec": change("preference", algorithm="sprec", iterations=1, steps=2),
    "rl": rl(sync_interval=1, reward=["ranking_literal"]),
}
"""Runs that are interrupted in their second step on the GPU, and resume."""


def assert_same(found, expected, tolerance):
    for ours, theirs in zip(read_log(found), read_log(expected), strict=True):
        assert ours == pytest.approx(theirs, abs=tolerance, rel=tolerance)
    assert_weights_close(found, expected, tolerance)


def run_on_both(options, init, data, folder):
    run_stage(options, init, data, 0, folder / "cpu")
    with fake_gpu() as gpu:
        run_stage(options, init, data, 0, folder / "gpu")
    assert gpu.by_name["aten._fused_adamw_"] > 0
    return folder / "gpu", folder / "cpu"


@pytest.mark.parametrize("name", RUNS)
def test_runs(name, fixed_model, cycle, tmp_path):
    assert_same(*run_on_both(RUNS[name], fixed_model, cycle, tmp_path), 1e-5)


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_runs_in_bfloat16(name, fixed_model, cycle, tmp_path):
    """The order of sums differs between devices, and bfloat16 rounds the more."""
    options = INTERRUPTED[name].model_copy(update={"dtype": "bfloat16"})
    assert_same(*run_on_both(options, fixed_model, cycle, tmp_path), 1e-3)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_runs(name, fixed_model, cycle, tmp_path, monkeypatch):
    options = INTERRUPTED[name]
    run_stage(options, fixed_model, cycle, 0, tmp_path / "cpu")

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            raise KeyboardInterrupt

    with fake_gpu():
        options = options.model_copy(update=EVERY_STEP)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StepLog, "on_step_end", on_step_end)
            run_stage(options, fixed_model, cycle, 0, tmp_path / "gpu")
        run_stage(options, fixed_model, cycle, 0, tmp_path / "gpu")
    assert json.loads((tmp_path / "gpu" / "run.json").read_text())["resumed"] == 1
    assert_same(tmp_path / "gpu", tmp_path / "cpu", 1e-5)
