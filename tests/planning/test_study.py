"""The plans of all jobs of a study."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from study_configs import changed

from rere.cli import parse
from rere.config.training import SftOptions
from rere.errors import InputError
from rere.planning import study as study_module
from rere.planning.hardware import GPUS
from rere.planning.plan import Target, Texts, load_config, plan_recommend, plan_training
from rere.planning.sample import Sample
from rere.planning.study import USABLE, Job, list_jobs, plan_job, plan_study
from rere.planning.work import Writing
from rere.study import load_study

TRAINING = {"batch_size": 8, "rows_per_pass": 8, "valid_rows": 4}
PLANNED = {
    "datasets": {"cycle": {"source": "ml-100k"}},
    "backbones": {"fixed": {"source": "tiny", "corpus": "cycle"}},
    "methods": {
        "sft": {"sft": TRAINING},
        "rere": {"init": "sft", "rl": {"prompts": 8, "rows_per_pass": 4, "group_size": 4}},
        "d3": {"init": "sft", "decode": {"algorithm": "d3", "num_beams": 5}},
        "base": {"decode": {"algorithm": "beam", "num_beams": 7, "scoring": "vocabulary"}},
        "bigrec": {"init": "sft", "decode": {"algorithm": "bigrec"}},
        "popularity": {"baseline": {"model": "popularity"}},
    },
    "evaluation": {"num_beams": 8},
    "tables": {
        "main": {
            "datasets": ["cycle"],
            "backbones": ["fixed"],
            "methods": ["rere", "d3", "base", "bigrec", "popularity"],
            "seeds": [0, 1],
        }
    },
}
JOBS = [
    ("base", "decode", ""),
    ("bigrec", "decode", ""),
    ("d3", "decode", ""),
    ("rere", "recommend", "/num_beams=8"),
    ("rere", "rl", ""),
    ("sft", "sft", ""),
]


def link_results(folder: Path, data: Path, model: Path) -> Path:
    """A folder as a study's results/, with the data and backbone of PLANNED."""
    for name, target in {"data/cycle": data, "backbones/fixed": model}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).symlink_to(target)
    return folder


def test_the_jobs_are_those_of_the_tables_and_what_they_start_from():
    jobs = [job for job, _ in list_jobs(load_study(PLANNED))]
    assert [(job.method, job.stage, job.evaluation) for job in jobs] == JOBS
    assert {job[:2] for job in jobs} == {("cycle", "fixed")}
    searches = {job.method: job.options for job in jobs if job.stage == "decode"}
    assert searches["d3"].num_beams == 5
    assert (searches["base"].num_beams, searches["base"].scoring) == (7, "vocabulary")
    assert isinstance(searches["bigrec"], Writing)
    assert (searches["bigrec"].num_beams, searches["bigrec"].scoring) == (1, "vocabulary")


def test_a_job_has_the_options_that_its_backbone_gives():
    fixed = PLANNED["backbones"]["fixed"] | {"training": {"rows_per_pass": 2}}
    jobs = [job for job, _ in list_jobs(load_study(PLANNED | {"backbones": {"fixed": fixed}}))]
    found = {job.stage: job.options.rows_per_pass for job in jobs if job.stage in ("sft", "rl")}
    assert found == {"sft": 2, "rl": 2}


def test_jobs_of_two_tables_come_once():
    config = changed()
    few = {"methods": ["sft"], "evaluation": {"rows": 9}}
    config["tables"]["few"] = config["tables"]["main"] | few
    jobs = list_jobs(load_study(config))
    assert len({job[:-1] for job, _ in jobs}) == len(jobs)
    own = [(job.stage, job.evaluation, tables) for job, tables in jobs if job.method == "sft"]
    assert own == [
        ("recommend", "/num_beams=20", {"main": {0}}),
        ("recommend", "/rows=9-num_beams=20", {"few": {0}}),
        ("sft", "", {"main": {0}, "few": {0}}),
    ]


def test_each_job_has_the_plan_of_its_run(tmp_path, monkeypatch, capsys, data, fixed_model):
    read, reads = Texts.read, []
    monkeypatch.setattr(Texts, "read", lambda *paths: reads.append(paths) or read(*paths))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(PLANNED))
    results = link_results(tmp_path / "results", data, fixed_model)
    words = ["--config", tmp_path / "study.yaml", "--results", results, "--budget", 9]
    parse("plan study", list(map(str, [*words, "--output", tmp_path / "plan.json"]))).run()
    printed = capsys.readouterr().out
    assert "9 hours (A100) pay for: main." in printed
    assert len(reads) == 1
    rows = json.loads((tmp_path / "plan.json").read_text())["jobs"]
    assert [(row["method"], row["stage"], row["evaluation"]) for row in rows] == JOBS
    assert [row["tables"] for row in rows] == [{"main": [0, 1]}] * len(JOBS)

    study, model = load_study(PLANNED), str(fixed_model)
    here = Target.choose(torch.device("cpu"), "auto", None)
    *_, search, rl, sft = rows
    for row, options, plan in (
        (search, study.evaluation, plan_recommend),
        (rl, study.methods["rere"].options, plan_training),
        (sft, study.methods["sft"].options, plan_training),
    ):
        machines = {name: row["gpus"][name] for name in GPUS} | {"cpu": row["cpu"]}
        for name, found in machines.items():
            target = here
            if name != "cpu":
                gpu = GPUS[name].memory
                target = Target.choose(torch.device("cuda"), "auto", gpu)
            alone = plan(options, model, data, 0, target)
            assert (found["peak"], found["dtype"]) == (alone.peak, target.dtype)
            assert (found["memory"], found["processes"]) == (target.memory, 1)
            assert found["seconds"] > 0
        assert row["operations_without_sharing"] >= row["operations"] > row["tokens"] > 0
    # Weights in float32, and two numbers for each and a counter for each tensor.
    assert search["checkpoint"] == 0
    assert sft["checkpoint"] == pytest.approx(3 * sft["weights"], rel=0.01)
    assert sft["checkpoint"] == rl["checkpoint"]


def test_a_budget_that_pays_for_nothing_leaves_the_plan(tmp_path, data, fixed_model):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(PLANNED))
    results = link_results(tmp_path / "results", data, fixed_model)
    words = ["--config", tmp_path / "study.yaml", "--results", results, "--budget", 1e-9]
    command = parse("plan study", list(map(str, [*words, "--output", tmp_path / "plan.json"])))
    with pytest.raises(InputError, match="--budget 1e-09: pays for no table; the cheapest, main"):
        command.run()
    assert (tmp_path / "plan.json").exists()


def test_a_sharded_run_takes_as_many_gpus_as_it_needs(monkeypatch, data, fixed_model):
    """Where two GPUs have a byte too little, four are taken; a run that is not sharded has none."""
    sharded = {**TRAINING, "sharded": True}
    options = SftOptions(**sharded)
    cuda = Target(torch.device("cuda"), "bfloat16", 1e9)
    peaks = {
        n: plan_training(options, str(fixed_model), data, 0, cuda._replace(processes=n)).peak
        for n in (1, 2, 4)
    }
    assert peaks[1] > peaks[2] > peaks[4]
    gpu = GPUS["A100"]._replace(memory=(peaks[2] - 1) / USABLE)
    monkeypatch.setattr(study_module, "GPUS", {"A100": gpu})
    config = load_config(str(fixed_model))
    sample = Sample(config, Texts.read(str(fixed_model), data), data, 0)
    rows = [
        plan_job(Job("cycle", "fixed", "sft", "sft", "", each), config, sample)
        for each in (options, SftOptions(**TRAINING))
    ]
    found = [row["gpus"]["A100"] for row in rows]
    assert [each["processes"] for each in found] == [4, 0]
    assert found[0]["seconds"] > 0
    assert found[1]["seconds"] is None


def test_missing_data_are_named(tmp_path, fixed_model):
    results = link_results(tmp_path / "results", tmp_path / "nothing", fixed_model)
    with pytest.raises(InputError, match=r"cycle/items\.parquet: no such file"):
        plan_study(load_study(PLANNED), results)
