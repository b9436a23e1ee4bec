"""Training validates the initial model, which may be the best."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tiny_models import CYCLE, write_cycle, write_data, write_fixed_model
from training_runs import read_log, read_values
from transformers import TrainerControl, TrainerState

from rere.backbones import load_model
from rere.config.rl import RlOptions
from rere.config.run import Run
from rere.config.training import PreferenceOptions, SftOptions, Training
from rere.data.dataset import read_split
from rere.errors import InputError
from rere.evaluation.metrics import metrics
from rere.evaluation.predictions import write_predictions
from rere.files import write_json
from rere.reporting.curves import draw_curves, read_logs
from rere.reporting.curves import read_log as read_points
from rere.reporting.tables import table
from rere.training.callbacks import StepLog, ValidationSteps
from rere.training.preference import PreferenceTrainer, preference
from rere.training.rl import RlTrainer, rl
from rere.training.sft import SftTrainer, sft

SIZES = {"rows_per_pass": 8, "validations": 2, "learning_rate": 1e-3}
STAGES = {
    "sft": (sft, SftTrainer, SftOptions(batch_size=16, epochs=5 / 6, **SIZES)),
    "preference": (
        preference,
        PreferenceTrainer,
        PreferenceOptions(batch_size=8, steps=5, num_beams=4, **SIZES),
    ),
    "rl": (rl, RlTrainer, RlOptions(prompts=8, steps=5, group_size=4, beta=0.1, **SIZES)),
}
"""Five steps of each stage."""
every_stage = pytest.mark.parametrize("stage", STAGES)


def train(stage: str, folder: Path, name: str = "run", **changes: Any) -> Path:
    """The folder of a run on the cycle, below `folder`."""
    data, init = folder / "data", folder / "init"
    if not data.exists():
        write_cycle(data)
        write_fixed_model(init)
    run, _, options = STAGES[stage]
    run(options.model_copy(update=changes), init, data, 0, folder / name)
    return folder / name


def metric(stage: str) -> str:
    return "eval_loss" if stage == "sft" else "eval_ndcg@10"


def let_validations_worsen(monkeypatch: pytest.MonkeyPatch, stage: str, by: float = 0.01) -> None:
    """Each step makes the validation worse by 1 %."""

    def validate(self: Any) -> dict[str, float]:
        worse = by * self.state.global_step
        return {"loss": 5 + worse} if stage == "sft" else {"ndcg@10": 0.5 - worse}

    monkeypatch.setattr(STAGES[stage][1], "validate", validate)


def best_step(folder: Path) -> int:
    return json.loads((folder / "run.json").read_text())["best_step"]


def is_initial(folder: Path) -> bool:
    before = load_model(folder.parent / "init").state_dict()
    after = load_model(folder / "model").state_dict()
    return all(torch.equal(before[name], value) for name, value in after.items())


# ------------------------------------------------------------------------- the first validation


@every_stage
def test_the_first_validation_is_of_the_initial_model(stage, tmp_path):
    first = train(stage, tmp_path, learning_rate=1e-2)
    lines = [line for line in read_log(first) if metric(stage) in line]
    assert [line["step"] for line in lines] == [0, 3, 5]
    assert read_log(first)[0] == lines[0]
    choose = min if stage == "sft" else max
    best = choose(lines, key=lambda line: line[metric(stage)])
    assert best_step(first) == best["step"]
    # The weights that were kept, validated again.
    run, _, options = STAGES[stage]
    run(options, first / "model", tmp_path / "data", 0, tmp_path / "again")
    again = read_values(tmp_path / "again", metric(stage))[0]
    assert again == pytest.approx(best[metric(stage)], rel=1e-6)


def test_steps_draw_the_same_random_numbers_as_without_it(tmp_path, monkeypatch):
    states = []
    evaluate = SftTrainer.evaluate

    def spy(self, *args, **more):
        before = torch.get_rng_state()
        result = evaluate(self, *args, **more)
        states.append(torch.equal(before, torch.get_rng_state()))
        return result

    monkeypatch.setattr(SftTrainer, "evaluate", spy)
    train("sft", tmp_path)
    assert states[0]


def test_a_metric_that_is_no_number_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(SftTrainer, "validate", lambda self: {"loss": math.nan})
    with pytest.raises(InputError, match=r"^eval_loss is nan for the initial model; it is "):
        train("sft", tmp_path)
    assert not (tmp_path / "run" / "model").exists()


# -------------------------------------------------------------------------------- the start wins


@every_stage
@pytest.mark.parametrize(
    "changes", [{}, {"lora_rank": 2}, {"lora_rank": 2, "save": "adapters"}], ids=str
)
def test_the_start_wins_if_no_validation_is_better(stage, changes, tmp_path, monkeypatch, caplog):
    let_validations_worsen(monkeypatch, stage)
    folder = train(stage, tmp_path, **changes)
    assert is_initial(folder)
    assert best_step(folder) == 0
    assert caplog.messages[-1] == (
        f"{folder}: no validation was better than that of the initial model, which model/ now holds"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "model", "run.json"]


@every_stage
def test_the_start_wins_a_tie(stage, tmp_path, monkeypatch):
    let_validations_worsen(monkeypatch, stage, by=0.0)
    assert is_initial(train(stage, tmp_path))


@every_stage
def test_a_better_validation_wins(stage, tmp_path, monkeypatch, caplog):
    let_validations_worsen(monkeypatch, stage, by=-0.01)
    folder = train(stage, tmp_path)
    assert best_step(folder) == 5
    assert not is_initial(folder)
    assert not caplog.messages


def test_validations_worse_than_the_start_use_up_the_patience(tmp_path, monkeypatch):
    let_validations_worsen(monkeypatch, "sft")
    folder = train("sft", tmp_path, validations=5, patience=2)
    assert [line["step"] for line in read_log(folder) if "eval_loss" in line] == [0, 1, 2]


# ------------------------------------------------------------------------------- interrupted runs


@every_stage
@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_a_resumed_run_ends_with_the_same_bytes(stage, step, tmp_path, monkeypatch):
    """Interrupted in the first validation, before and after the first checkpoint of a step."""
    let_validations_worsen(monkeypatch, stage)
    expected = train(stage, tmp_path, "uninterrupted")

    def interrupt(self, args, state, control, **_):
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StepLog, "on_step_end" if step else "on_log", interrupt)
        train(stage, tmp_path, checkpoint_seconds=0.0 if step > 1 else 300.0)
    actual = train(stage, tmp_path)
    for path in (expected / "model").iterdir():
        assert (actual / "model" / path.name).read_bytes() == path.read_bytes(), path.name
    assert read_log(actual) == read_log(expected)
    assert best_step(actual) == 0
    resumed = json.loads((actual / "run.json").read_text())["resumed"]
    assert resumed == (1 if step else 0)


# ------------------------------------------------------------------------- number of validations


@pytest.mark.parametrize(
    ("validations", "steps", "expected"),
    [
        (1, 7, [7]),
        (2, 5, [3, 5]),
        (4, 12, [3, 6, 9, 12]),
        (5, 8, [2, 4, 5, 7, 8]),
        (5, 14, [3, 6, 9, 12, 14]),
        (20, 3, [1, 2, 3]),
    ],
)
def test_validations_are_as_many_as_asked_for(validations, steps, expected):
    callback, due = ValidationSteps(validations), []
    for step in range(1, steps + 1):
        control = TrainerControl()
        callback.on_step_end(None, TrainerState(global_step=step, max_steps=steps), control)
        due += [step] * control.should_evaluate
    assert due == expected


def test_validations_of_three_epochs(tmp_path):
    folder = train("sft", tmp_path, batch_size=32, epochs=3.0, patience=9)
    assert [line["step"] for line in read_log(folder) if "eval_loss" in line] == [0, 5, 9]


# ------------------------------------------------------------------------------ curves and tables


def test_curves_draw_step_0(tmp_path):
    folder = tmp_path / "d" / "tiny" / "rere" / "seed0"
    folder.mkdir(parents=True)
    lines: list[dict[str, float]] = [{"step": 0, "seconds": 3.0, "eval_ndcg@10": 0.25}]
    for step in range(1, 37):
        lines.append({"step": step, "seconds": 3.0 + step, "reward": 0.5})
    lines.append({"step": 36, "seconds": 40.0, "eval_ndcg@10": 0.125})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    points = read_points(folder / "log.jsonl")
    assert points["step"].to_list() == list(range(37))
    assert points["valid NDCG@10"].drop_nulls().to_list() == [0.25, 0.125]
    assert points["reward"].to_list() == [None, *[0.5] * 36]
    by_step, by_seconds = draw_curves(read_logs([folder])).axes[:2]
    assert by_step.lines[0].get_xydata().tolist() == [[0, 0.25], [36, 0.125]]
    assert by_seconds.lines[0].get_xydata().tolist() == [[3, 0.25], [40, 0.125]]


def test_the_table_names_runs_whose_start_won(tmp_path):
    rows = [([item], (item + 1) % 8) for item in range(8)]
    data = write_data(tmp_path / "cycle", CYCLE, test=rows)
    test, folders = read_split(data, "test"), []
    for seed, best in enumerate([0, 40]):
        run = Run(dataset="cycle", backbone="tiny", method="rere", seed=seed)
        folders.append(tmp_path / run.folder)
        ranked = [list(range(8))] * 8
        write_predictions(
            folders[-1] / "predictions.parquet", test, ranked, [[-float(i) for i in range(8)]] * 8
        )
        metrics(folders[-1] / "predictions.parquet", data, run, folders[-1] / "metrics.json")
        costs = {"seconds": 1.0, "peak_memory_mb": 1.0, "best_step": best}
        write_json(folders[-1] / "run.json", costs)
    table(folders, [data], tmp_path / "main.csv")
    assert pl.read_csv(tmp_path / "main.runs.csv")["best_step"].to_list() == [0, 40]
    notes = [line for line in (tmp_path / "main.md").read_text().splitlines() if "seed0" in line]
    assert notes == [
        "`results/runs/cycle/tiny/rere/seed0`: no validation was better than that of the initial "
        "model, which was kept."
    ]


def test_options_say_that_the_first_validation_is_not_counted():
    for options in (SftOptions, PreferenceOptions, RlOptions):
        assert issubclass(options, Training)
        described = options.model_fields["validations"].description
        assert "One more, of the initial model, comes before step 1" in described
