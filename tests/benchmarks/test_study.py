"""Benchmarks in a study's config and in the workflow."""

import pytest
from snakemake_runs import SMALL, planned, snakemake, write_raw
from study_configs import SHIPPED, changed, config_error

from rere.study import load_study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"speed__dataset": "ml100k"},
            "speed.dataset: there is no ml100k; did you mean ml-100k?",
        ),
        (
            {"speed__models": [{"backbone": "tini"}]},
            "speed.models.backbone: there is no tini; did you mean tiny?",
        ),
        (
            {"speed__models": [{"backbone": "tiny", "method": "stf"}]},
            "speed.models.method: there is no stf; did you mean sft?",
        ),
        (
            {"speed__models": [{"backbone": "tiny", "method": "sasrec"}]},
            "speed.models.method: sasrec is a baseline, which trains no model to benchmark",
        ),
        ({"speed__beem": [2]}, "speed.beem: unknown key; did you mean beams?"),
        ({"speed__beams": []}, "speed.beams: empty; give at least one"),
        ({"speed__models": []}, "speed.models: empty; give at least one"),
        (
            {"speed__beams": [1]},
            "speed.beams: input should be greater than or equal to 2, not 1",
        ),
        ({"speed__measures": "sped"}, "speed.measures: there is no sped; did you mean speed?"),
        (
            {"rollouts__dataset": "ml100k"},
            "rollouts.dataset: there is no ml100k; did you mean ml-100k?",
        ),
        (
            {"rollouts__backbone": "tini"},
            "rollouts.backbone: there is no tini; did you mean tiny?",
        ),
        ({"rollouts__method": "stf"}, "rollouts.method: there is no stf; did you mean sft?"),
        (
            {"rollouts__method": "sasrec"},
            "rollouts.method: sasrec is a baseline, which trains no model to benchmark",
        ),
        (
            {"rollouts__group_size": [2]},
            "rollouts.group_size: unknown key; did you mean group_sizes?",
        ),
        (
            {"rollouts__beams": [8]},
            "rollouts.beams: input should be greater than or equal to 10, not 8",
        ),
    ],
)
def test_one_line_names_the_key_and_the_remedy(changes, message):
    changes = {f"benchmarks__{key}": value for key, value in changes.items()}
    assert config_error(changed(**changes)) == f"benchmarks.{message}"


def test_a_table_may_not_have_the_name_of_a_benchmark():
    config = changed(tables__speed=SHIPPED["tables"]["main"])
    assert config_error(config) == (
        "tables.speed: its files would be those of benchmarks.speed; choose another name"
    )


@pytest.mark.parametrize("section", ["speed", "search"])
def test_an_old_section_fails_with_the_new_one(section):
    config = changed(**{section: {"mine": {"dataset": "ml-100k"}}})
    assert config_error(config) == f"{section}: renamed; write benchmarks"


def test_the_folders_of_the_models():
    benchmarks = load_study(SHIPPED).benchmarks
    assert [model.name for model in benchmarks["speed"].models] == ["wide", "tiny sft"]
    assert benchmarks["speed"].folders == [
        "results/backbones/wide",
        "results/runs/ml-100k/tiny/sft/seed0/model",
    ]
    assert benchmarks["rollouts"].name == "tiny sft"
    assert benchmarks["rollouts"].folders == ["results/runs/ml-100k/tiny/sft/seed0/model"]


TARGETS = {
    name: [f"results/tables/{name}.csv", f"results/figures/{name}.pdf"]
    for name in ("speed", "rollouts")
}


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("speed", {"benchmark_speed": 1, "benchmark_speed_curves": 1}),
        ("rollouts", {"benchmark_rollouts": 1}),
    ],
)
def test_a_benchmark_is_made_on_demand(tmp_path, name, rules):
    write_raw(tmp_path / "raw")
    made = {"preprocess": 1, "backbone": 1, "sft": 1, **rules, "draw_benchmark": 1}
    assert planned(tmp_path, SMALL, *TARGETS[name]) == made
    assert not {*rules, "draw_benchmark"} & planned(tmp_path, SMALL).keys()


@pytest.mark.parametrize("table", ["sped.csv", "rollouts.curves.csv"])
def test_no_rule_makes_a_table_of_another_name(tmp_path, table):
    write_raw(tmp_path / "raw")
    done = snakemake(tmp_path, SMALL, "--dry-run", f"results/tables/{table}")
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout
