"""Tables and curves show what predictions and logs give, or refuse the file that says otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_models import write_data

from rere.baselines.baseline import baseline
from rere.config.baselines import Popularity, RepeatLast
from rere.config.evaluation import Evaluation
from rere.config.run import Run
from rere.errors import InputError
from rere.evaluation.metrics import METRICS, metrics
from rere.files import write_json
from rere.reporting.curves import curves
from rere.reporting.tables import table

REPEAT = Run(dataset="toy", backbone="none", method="repeat_last", seed=0)
REPEAT_SAMPLE = REPEAT.model_copy(update={"evaluation": "rows=40"})
POPULAR = Run(dataset="toy", backbone="none", method="popularity", seed=0)
DEEP = "[" * 100_000


def write_run(root: Path, run: Run = REPEAT, folder: str | None = None) -> Path:
    """Write a data set of 40 test rows and a run whose lists begin with the target in 17 rows."""
    test = [([item % 30], item % 30 if item < 17 else (item + 1) % 30) for item in range(40)]
    titles = [f"Title {item}" for item in range(30)]
    data = write_data(root / "data" / "toy", titles, train=[([29], 29)], test=test)
    path = root / (folder or run.folder)
    options = RepeatLast() if run.method == "repeat_last" else Popularity()
    baseline(options, Evaluation(), data, 0, path / "predictions.parquet")
    metrics(path / "predictions.parquet", data, run, path / "metrics.json")
    write_json(path / "run.json", {"seconds": 2.5, "peak_memory_mb": 640, "seed": 0})
    return path


def make_table(root: Path, *runs: Path) -> dict[str, Any]:
    """The first row of the table of runs."""
    table([*runs], [root / "data" / "toy"], root / "main.csv")
    return pl.read_csv(root / "main.runs.csv").row(0, named=True)


def refusal(root: Path, run: Path) -> str:
    """The message that the table is refused with, without the folder; nothing is written."""
    with pytest.raises(InputError) as caught:
        make_table(root, run)
    assert not list(root.glob("main*"))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{run}/")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_table_has_the_right_values(tmp_path):
    row = make_table(tmp_path, write_run(tmp_path))
    assert (row["rows"], row["HR@1"], row["NDCG@1"]) == (40, 17 / 40, 17 / 40)
    assert (row["seconds"], row["peak_memory_mb"], row["valid_NDCG@10"]) == (2.5, 640, None)


# --------------------------------------------------------------------------------- metrics.json


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.99, "0.99"),
        (0.425 + 2e-9, "0.425000002"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (10**400, "1000000000000000000000...00000000000000000"),
        ("0.425", "'0.425'"),
        ("=cmd", "'=cmd'"),
        ("a\nb", r"'a\nb'"),
        (None, "None"),
        (True, "True"),
        ([0.425], "[0.425]"),
        ({"a": {}}, "{'a': {}}"),
    ],
)
def test_a_value_that_predictions_do_not_give_is_refused(tmp_path, value, shown):
    run = write_run(tmp_path)
    edit(run / "metrics.json", **{"HR@1": value})
    message = refusal(tmp_path, run)
    assert message.startswith("metrics.json: HR@1 is ")
    assert message.endswith(
        f", and {run}/predictions.parquet gives 0.425; make it again: `rere metrics`"
    )
    assert shown[:18] in message
    assert len(message) < len(str(run)) + 160


@pytest.mark.parametrize("name", ["rows", "HR@20_item", "NDCG@5_norepeat", "NDCG@10_low",
                                  "HR@3_high", "coverage@20", "popularity@20"])  # fmt: skip
def test_every_value_of_the_table_is_checked(tmp_path, name):
    run = write_run(tmp_path)
    value = json.loads((run / "metrics.json").read_text())[name]
    edit(run / "metrics.json", **{name: value + 1e-6})
    assert refusal(tmp_path, run).startswith(f"metrics.json: {name} is ")


def test_rounding_of_another_machine_is_no_fault(tmp_path):
    run = write_run(tmp_path)
    values = json.loads((run / "metrics.json").read_text())
    edit(run / "metrics.json", **{name: values[name] + 1e-12 for name in METRICS})
    assert make_table(tmp_path, run)["HR@1"] == 17 / 40


def test_predictions_of_another_method_are_refused(tmp_path):
    run, other = write_run(tmp_path), write_run(tmp_path, POPULAR)
    content = (other / "predictions.parquet").read_bytes()
    (run / "predictions.parquet").write_bytes(content)
    assert refusal(tmp_path, run).startswith("metrics.json: HR@1 is 0.425, and ")


def test_metrics_of_another_version_are_refused(tmp_path):
    run = write_run(tmp_path)
    values = json.loads((run / "metrics.json").read_text())
    renamed = {key.replace("coverage@20", "coverage"): value for key, value in values.items()}
    (run / "metrics.json").write_text(json.dumps(renamed))
    expected = "metrics.json: has no 'coverage@20'; make it again: `rere metrics`"
    assert refusal(tmp_path, run) == expected
    (run / "metrics.json").write_text(json.dumps(values | {"MRR@10": 0.3}))
    expected = "metrics.json: has an unknown 'MRR@10'; make it again: `rere metrics`"
    assert refusal(tmp_path, run) == expected


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("method", 3, "Input should be a valid string"),
        ("method", None, "Input should be a valid string"),
        ("dataset", ["toy"], "Input should be a valid string"),
        ("seed", "0", "Input should be a valid integer"),
        ("seed", 0.0, "Input should be a valid integer"),
        ("seed", False, "Input should be a valid integer"),
        ("evaluation", "a/b", "String should match pattern '^[A-Za-z0-9_.+=-]*$'"),
    ],
)
def test_a_run_that_is_not_named_is_refused(tmp_path, key, value, reason):
    run = write_run(tmp_path)
    edit(run / "metrics.json", **{key: value})
    expected = f"metrics.json: {key}: {reason}; make it again: `rere metrics`"
    assert refusal(tmp_path, run) == expected


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("dataset", "other", "other/none/repeat_last/seed0"),
        ("backbone", "tiny", "toy/tiny/repeat_last/seed0"),
        ("method", "rere", "toy/none/rere/seed0"),
        ("seed", 1, "toy/none/repeat_last/seed1"),
    ],
)
def test_a_run_in_the_folder_of_another_is_refused(tmp_path, key, value, named):
    run = write_run(tmp_path)
    edit(run / "metrics.json", **{key: value})
    assert refusal(tmp_path, run) == (
        f"metrics.json: is of runs/{named} and lies in runs/{REPEAT.folder[13:]}; make it again: "
        "`rere metrics`"
    )


@pytest.mark.parametrize("moved", ["", "num_beams=20"])
def test_a_run_in_the_folder_of_another_evaluation_is_refused(tmp_path, moved):
    written = write_run(tmp_path, REPEAT_SAMPLE)
    run = written.parent / moved
    run.mkdir(exist_ok=True)
    for path in written.iterdir():
        path.rename(run / path.name)
    assert refusal(tmp_path, run) == (
        f"metrics.json: is of runs/{REPEAT.folder[13:]}/rows=40 and lies in "
        f"{str(run.relative_to(tmp_path))[8:]}; make it again: `rere metrics`"
    )


@pytest.mark.parametrize(
    ("options", "others"),
    [("rows=40-num_beams=20", "rows=40-num_beams=50"), ("num_beams=20-rows=40", "rows=41")],
)
def test_runs_of_different_evaluations_are_refused(tmp_path, options, others):
    runs = [
        write_run(tmp_path, run.model_copy(update={"evaluation": text}))
        for run, text in ((REPEAT, options), (POPULAR, others))
    ]
    with pytest.raises(InputError, match=r"different rankings, by (num_beams=20|rows=40) and "):
        make_table(tmp_path, *runs)


def test_a_table_reads_the_training_of_an_evaluated_run(tmp_path):
    run = write_run(tmp_path, REPEAT_SAMPLE)
    (run / "run.json").rename(run.parent / "run.json")
    row = make_table(tmp_path, run)
    assert (row["evaluation"], row["rows"], row["seconds"]) == ("rows=40", 40, 2.5)
    # A run of its own, as of a baseline, comes first.
    write_json(run / "run.json", {"seconds": 3, "peak_memory_mb": 640})
    assert make_table(tmp_path, run)["seconds"] == 3


def test_a_run_in_another_layout_needs_no_names(tmp_path):
    run = write_run(tmp_path, folder="mine/best")
    assert make_table(tmp_path, run)["method"] == "repeat_last"


def test_a_name_with_control_characters_is_refused(tmp_path):
    run = write_run(tmp_path, folder="mine/best")
    edit(run / "metrics.json", method="a\nb")
    assert refusal(tmp_path, run) == (
        r"metrics.json: is of 'results/runs/toy/none/a\nb/seed0', no name of a run; make it again: "
        "`rere metrics`"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[{}]", DEEP, '{"dataset": ' + DEEP, "\xff"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    run = write_run(tmp_path)
    for name in ("metrics.json", "run.json"):
        content = (run / name).read_bytes()
        (run / name).write_text(text, encoding="latin-1")
        message = refusal(tmp_path, run)
        assert message.startswith(f"{name}: ")
        stage = (
            "`rere metrics`" if name == "metrics.json" else "the method's stage, such as `rere rl`"
        )
        assert message.endswith(f"; make it again: {stage}")
        (run / name).write_bytes(content)


# ------------------------------------------------------------------------- run.json, log.jsonl


@pytest.mark.parametrize("name", ["seconds", "peak_memory_mb"])
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1, "2.5", "=cmd", True, None, [1], {}, 10**400]
)
def test_costs_that_are_no_numbers_are_refused(tmp_path, name, value):
    run = write_run(tmp_path)
    edit(run / "run.json", **{name: value})
    message = refusal(tmp_path, run)
    assert message.startswith(f"run.json: {name} is ")
    assert message.endswith(", not a number; make it again: the method's stage, such as `rere rl`")
    assert len(message) < 140


LINES: dict[str, Callable[[str], str]] = {
    "text": '{{"step": 1, "{}": "0.5"}}'.format,
    "nan": '{{"step": 1, "{}": NaN}}'.format,
    "inf": '{{"step": 1, "{}": Infinity}}'.format,
    "boolean": '{{"step": 1, "{}": true}}'.format,
    "list": '{{"step": 1, "{}": [0.5]}}'.format,
    "too large": ('{{"step": 1, "{}": 1' + "0" * 400 + "}}").format,
    "no mapping": '["{}"]'.format,
    "only text": '"{}"'.format,
    "deep": (DEEP + "{}").format,
    "cut off": '{{"step": 1, "{}'.format,
}


@pytest.mark.parametrize("line", LINES)
def test_logs_without_numbers_are_refused(tmp_path, line):
    run = write_run(tmp_path)
    (run / "log.jsonl").write_text(LINES[line]("valid_NDCG@10") + "\n")
    assert refusal(tmp_path, run).startswith("log.jsonl: not a readable log (")
    for name in ("reward", "eval_ndcg@10", "seconds"):
        log = '{"step": 1, "reward": 0.5}\n' + LINES[line](name) + "\n"
        (run / "log.jsonl").write_text(log)
        with pytest.raises(InputError) as caught:
            curves([run], [tmp_path / "curves.png"])
        assert str(caught.value).startswith(f"{run}/log.jsonl: not a readable log (")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "curves.png").exists()


def test_a_line_without_a_step_is_not_drawn(tmp_path):
    run = write_run(tmp_path)
    (run / "log.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"reward": 0.5}\n')
    with pytest.raises(InputError) as caught:
        curves([run], [tmp_path / "curves.png"])
    assert str(caught.value) == f"{run}/log.jsonl: line 2 has no step; train with rl"
