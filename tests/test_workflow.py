"""The whole workflow, run by Snakemake on a small study, and which jobs changes run again."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import polars as pl
import psutil
import pytest
from browser import CHROMIUM, browser
from docutils.core import publish_parts
from snakemake_runs import PAPER, QUICK, ROOT, SMALL, planned, snakemake, start, write_raw

from rere.config.run import ADAPTED_FILES, BASELINE_FILES, CARD

FULL = [*QUICK, ROOT / "config" / "full.yaml"]
SEQUENTIAL = [*QUICK, ROOT / "config" / "sequential.yaml"]
ABLATIONS = [*QUICK, ROOT / "config" / "ablations.yaml"]

METHODS = {
    "none": ["popularity", "item_knn", "sasrec"],
    "small": ["d3", "sprec", "sft", "rere"],
}
UNTRAINED = ("popularity", "item_knn", "d3")
BEAMLESS = (*METHODS["none"], "d3")
FACTORS = ("factors.safetensors", "factors.test.safetensors")
MAIN = [(backbone, method, 0) for backbone in METHODS for method in METHODS[backbone]]
"""Runs of the table `main`."""
RUNS = [*MAIN, ("small", "rere", 1)]
"""The table `seeds` has the last, too, and `item_knn` and `rere` of seed 0."""
INITIAL = ("small", "sft", 1)
"""Trained for the last, and not evaluated."""
FORMATS = ("pdf", "png")
RERE, SFT_RUN = (f"results/runs/small/small/{method}/seed0" for method in ("rere", "sft"))
SFT_LOG = f"{SFT_RUN}/log.jsonl"
LISTS, BEAMS = "rows=40-list_length=20", "rows=40-list_length=20-num_beams=20"
"""Folders of small.yaml's `evaluation`: of baselines and decode methods, and of beam search."""

slow = pytest.mark.slow


def ranked(backbone: str, method: str, seed: int) -> str:
    """The folder of a run's predictions below results/."""
    part = LISTS if method in BEAMLESS else BEAMS
    return f"runs/small/{backbone}/{method}/seed{seed}/{part}"


# ------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("configs", "seeds"), [(QUICK, 1), (FULL, 3)], ids=["config.yaml", "full.yaml"]
)
def test_the_provided_studies_are_planned_without_network(tmp_path, monkeypatch, configs, seeds):
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    assert planned(tmp_path, configs) == {
        "fetch": 1,
        "preprocess": 1,
        "backbone": 1,
        "baseline": 3,
        "sequential": 3 * seeds,
        "sft": 2 * seeds,
        "preference": 2 * seeds,
        "rl": seeds,
        "recommend": 5 * seeds,
        "decode": 2 * seeds,
        "metrics": 3 + 10 * seeds,
        "table": 1,
        "explorer": 1,
        "figure": 1,
        "curves": 1,
        "claims": 1,
    }


@pytest.mark.parametrize(("table", "runs"), [("faithful", 3), ("tuned", 10)])
def test_the_tables_of_sequential_baselines_are_planned(tmp_path, table, runs):
    assert planned(tmp_path, SEQUENTIAL, f"results/tables/{table}.csv") == {
        "fetch": 1,
        "preprocess": 1,
        "sequential": runs,
        "metrics": runs,
        "table": 1,
    }


PAPER_FILES = {
    "toys": ["Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"],
    "industrial": ["Industrial_and_Scientific_5.json", "meta_Industrial_and_Scientific.json"],
    "yelp": ["yelp_dataset.tar"],
}


@pytest.mark.parametrize("given", ["nothing", "yelp", "all"])
def test_the_papers_study_is_planned_without_network(tmp_path, monkeypatch, given):
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    names = {"nothing": [], "yelp": ["yelp"], "all": [*PAPER_FILES]}[given]
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for file in PAPER_FILES[name]:
            (tmp_path / "data" / name / file).touch()
    folders = ", ".join(f"{name}: {{folder: data/{name}}}" for name in names)
    jobs = planned(tmp_path, PAPER, "--config", f"datasets={{{folders}}}")
    assert jobs.pop("fetch", 0) == 3 - len(names)
    assert jobs == {
        **{"preprocess": 3, "backbone": 4},
        # Six networks, three seeds; the grids of two networks have four members, that of one two.
        **{"baseline": 3 * 3, "sequential": 3 * (6 * 3 + 4 + 2 + 4)},
        # On the main backbone and all data sets, and those of one data set; then three backbones.
        "sft": 3 * 3 + 3 + 3 * 3,
        "preference": 3 * 4 * 3,
        "rl": 3 * 4 * 3 + 18 * 3 + 3 * 2 * 3,
        "decode": 3 * 3 * 3 + 3 + 3 * 3,
        "recommend": 204,
        "metrics": 336,
        **{"table": 11, "explorer": 11, "figure": 10, "figure_of_kind": 14, "curves": 7},
        "claims": 1,
    }


@pytest.mark.parametrize(
    ("table", "jobs"),
    [
        ("main", {"sft": 9, "preference": 18, "rl": 9, "decode": 18}),
        ("backbones", {"sft": 12, "rl": 24, "decode": 12}),
        ("sampling", {"sft": 3, "rl": 3 * 7}),
        ("reward", {"sft": 3, "rl": 3 * 6}),
        ("algorithm", {"sft": 3, "rl": 3 * 6}),
        ("generation", {"sft": 3, "rl": 3 * 3}),
        ("axes", {"sft": 3, "rl": 3 * (1 + 1 + 4 + 5 + 2 + 3 + 2)}),
        ("initialisation", {"sft": 3, "rl": 3 * 2, "decode": 3}),
        ("protocols", {"sft": 9, "preference": 36, "rl": 36, "decode": 27}),
        ("cost", {"sft": 6, "preference": 3, "rl": 6}),
        ("tuning", {"sequential": 30}),
    ],
)
def test_a_table_of_the_paper_is_planned(tmp_path, table, jobs):
    found = planned(tmp_path, PAPER, f"results/tables/{table}.csv")
    stages = ("sft", "preference", "rl", "decode")
    assert found | jobs == found
    assert {stage for stage in stages if stage in found} == {s for s in stages if s in jobs}
    assert found["table"] == 1


def test_other_data_sets_of_the_paper_and_a_small_backbone_are_planned(tmp_path):
    others = [f"results/data/{name}/audit.json" for name in ("office", "ml-1m")]
    assert planned(tmp_path, PAPER, *others) == {"fetch": 2, "preprocess": 2}
    lengths = "results/tokens/industrial/smollm2-135m.json"
    assert planned(tmp_path, PAPER, lengths)["token_lengths"] == 1


def test_a_backbone_gives_options_to_its_jobs(tmp_path):
    run = "results/runs/industrial/{}/rere_faithful/seed0/log.jsonl"
    targets = [run.format(backbone) for backbone in ("qwen2-0.5b", "qwen2.5-7b")]
    done = snakemake(tmp_path, PAPER, "--dry-run", *targets)
    assert done.returncode == 0, done.stdout
    for sharded in (False, True):
        assert done.stdout.count(f"--sharded={sharded}") == 2  # `sft` and `rl`
    assert "--training" not in done.stdout


@pytest.mark.parametrize(
    ("table", "rl", "others"),
    [
        ("sampling", 6, {}),
        ("reward", 8, {"sequential": 1}),
        ("algorithm", 13, {}),
        ("generation", 3, {}),
        ("initialisation", 2, {}),
    ],
)
def test_an_ablation_has_one_sft_model_and_three_seeds_of_rl(tmp_path, table, rl, others):
    target = f"results/tables/{table}.csv"
    assert planned(tmp_path, ABLATIONS, target) == {
        **dict.fromkeys(("fetch", "preprocess", "backbone", "sft", "table"), 1),
        "rl": 3 * rl,
        "recommend": 1 + 3 * rl,
        "metrics": 1 + 3 * rl,
        **others,
    }


def test_evidence_compares_three_seeds_of_rl_and_of_more_sft(tmp_path):
    assert planned(tmp_path, ABLATIONS, "results/tables/evidence.csv") == {
        **dict.fromkeys(("fetch", "preprocess", "backbone", "table"), 1),
        **{"sft": 4, "rl": 3, "recommend": 7, "metrics": 7},
    }


ADAPTERS = {"lora_rank": 2, "save": "adapters"}
SAVED_AS_ADAPTERS = {"methods": {"sft": {"sft": ADAPTERS}, "rere": {"rl": ADAPTERS}}}


def test_a_study_of_adapters_is_planned(tmp_path):
    write_raw(tmp_path / "raw")
    targets = [f"{RERE}/metrics.json", RERE.replace("rere", "bigrec") + "/metrics.json"]
    assert planned(tmp_path, SMALL, *targets, **SAVED_AS_ADAPTERS) == {
        **dict.fromkeys(("preprocess", "backbone", "sft_adapters", "rl_adapters"), 1),
        **{"recommend": 1, "decode": 1, "metrics": 2},
    }
    # Another method of the study is trained as before.
    assert "preference" in planned(
        tmp_path, SMALL, RERE.replace("rere", "s_dpo") + "/log.jsonl", **SAVED_AS_ADAPTERS
    )
    target = f"{RERE}/model/model.safetensors"
    done = snakemake(tmp_path, SMALL, "--dry-run", target, **SAVED_AS_ADAPTERS)
    assert done.returncode != 0 and "MissingRuleException" in done.stdout


@slow
def test_a_study_of_adapters_runs(study_copy):
    shutil.rmtree(study_copy / "results" / "runs")
    target = f"{RERE}/{BEAMS}/predictions.parquet"
    done = snakemake(study_copy, SMALL, target, **SAVED_AS_ADAPTERS)
    assert done.returncode == 0, done.stdout
    for run in (SFT_RUN, RERE):
        folder = study_copy / run / "model"
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert names == {*ADAPTED_FILES, CARD}
    assert planned(study_copy, SMALL, target, **SAVED_AS_ADAPTERS) == {}
    # The base of the adapters is an input of what loads them.
    weights = study_copy / "results" / "backbones" / "small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert "recommend" in planned(study_copy, SMALL, target, **SAVED_AS_ADAPTERS)


SAMPLE = {
    **{"datasets": ["ml-100k"], "backbones": ["tiny"], "seeds": [0], "methods": ["d3", "sft"]},
    "evaluation": {"rows": 40, "num_beams": 20},
}
SFT = "results/runs/ml-100k/tiny/sft/seed0"


def test_tables_of_two_evaluations_share_trained_models(tmp_path):
    targets = ["results/tables/main.csv", "results/tables/sample.csv"]
    assert planned(
        tmp_path, QUICK, *targets, tables={"main": {"methods": ["d3", "sft"]}, "sample": SAMPLE}
    ) == {
        **dict.fromkeys(("fetch", "preprocess", "backbone", "sft"), 1),
        **{"sequential": 2, "recommend": 2, "decode": 2, "metrics": 4, "table": 2},
    }


def test_the_path_of_a_run_has_the_options_that_apply_to_it(tmp_path):
    def commands(*targets, **changes):
        done = snakemake(tmp_path, QUICK, "--dry-run", *targets, **changes)
        assert done.returncode == 0, done.stdout
        return done.stdout

    tables = {"sample": SAMPLE}
    d3 = "results/runs/ml-100k/tiny/d3/seed0/rows=40"
    text = commands(f"{SFT}/rows=40-num_beams=20/metrics.json", f"{d3}/metrics.json", tables=tables)
    assert "--rows=40 --list-length=50 --dtype=auto --num-beams=20" in text
    assert "--evaluation rows=40-list_length=50-dtype=auto-num_beams=20-" in text
    assert f"--model {SFT}/model" in text
    assert "--factors results/runs/ml-100k/none/sasrec/seed0/rows=40/factors.test" in text
    # Without these options it is that of the defaults, whatever `evaluation` says.
    text = commands(f"{SFT}/metrics.json", evaluation={"rows": 40, "batch_size": 3})
    assert "--rows=None --list-length=50 --dtype=auto --num-beams=50" in text
    assert "--batch-size=3" in text


def launches(folder: Path, *arguments: str) -> dict[str, set[str]]:
    """How a dry run of the quick study starts `rere`, by stage."""
    done = snakemake(folder, QUICK, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout
    found: dict[str, set[str]] = {}
    for launch, stage in re.findall(r"^ +(.*-m rere) (\S+) ", done.stdout, re.M):
        found.setdefault(stage, set()).add(launch)
    return found


def only_which(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide all programs, so nvidia-smi, but for one that the Slurm plugin needs on import."""
    (folder / "which").symlink_to(shutil.which("which"))
    monkeypatch.setenv("PATH", str(folder))


PYTHON, LEASE = "python -m rere", "python -m rere lease --gpus={} -- "
TORCHRUN = "torchrun --standalone --nproc-per-node={} -m rere"


def test_without_gpus_a_job_is_a_process_or_several_on_cpus(tmp_path, monkeypatch):
    only_which(tmp_path, monkeypatch)
    found = launches(tmp_path, "--resources", "gpu=3", "--set-resources", "rl:gpu=3")
    assert found.pop("rl") == {TORCHRUN.format(3)}
    assert {"sft", "recommend", "baseline"} <= found.keys()
    assert set().union(*found.values()) == {PYTHON}


def test_each_job_leases_its_gpus(tmp_path, machine_with):
    machine_with(4)
    several = ["sft:gpu=2", "rl:gpu=9", "decode:gpu=0", "sequential:gpu=2"]
    found = launches(tmp_path, "--set-resources", *several)
    assert found.pop("sft") == {LEASE.format(2) + TORCHRUN.format(2)}
    assert found.pop("rl") == {LEASE.format(4) + TORCHRUN.format(4)}  # the profile has four
    assert found.pop("decode") == {LEASE.format(0) + PYTHON}
    assert found.pop("baseline") == {PYTHON, LEASE.format(2) + PYTHON}
    assert found.pop("preference") == found.pop("recommend") == {LEASE.format(1) + PYTHON}
    assert "preprocess" in found and set().union(*found.values()) == {PYTHON}


@slow
def test_other_gpus_run_no_finished_job_again(small_study, machine_with):
    several = ["--resources", "gpu=2", "--set-resources", "rl:gpu=2", "sft:gpu=2", "decode:gpu=0"]
    assert planned(small_study, SMALL, *several) == {}
    machine_with(2)
    assert planned(small_study, SMALL, *several) == {}


@slow
def test_two_processes_of_a_job_recommend_as_one_does(small_study, tmp_path):
    folder, run = tmp_path / "study", "results/runs/small/small/sft/seed0"
    predictions = f"{run}/rows=40-list_length=20-num_beams=20/predictions.parquet"
    shutil.copytree(small_study, folder, symlinks=True)
    two = ["--resources", "gpu=2", "--set-resources", "sft:gpu=2", "recommend:gpu=2"]
    done = snakemake(folder, SMALL, predictions, *two, "--forcerun", "sft")
    assert done.returncode == 0, done.stdout
    one, several = (pl.read_parquet(at / predictions) for at in (small_study, folder))
    assert one.drop("scores").equals(several.drop("scores"))
    scores = (each["scores"].explode().to_numpy() for each in (one, several))
    np.testing.assert_allclose(*scores, atol=1e-4)
    assert not any(folder.glob("results/runs/**/checkpoints"))


@pytest.mark.parametrize("path", sorted((ROOT / "workflow" / "rules").glob("*.smk")))
def test_every_rule_states_its_resources(path):
    rules = re.split(r"^(?=(?:use )?rule )", path.read_text(), flags=re.M)[1:]
    for rule in rules:
        if "shell:" in rule or "resources:" in rule:
            stated = set(re.findall(r"^        (\w+)=", rule.partition("resources:")[2], re.M))
            assert {"mem_mb", "runtime", "disk_mb"} <= stated, rule.splitlines()[0]
            assert "threads:" in rule or rule.startswith("use"), rule.splitlines()[0]


def resources(folder: Path, rule: str, *arguments: str) -> dict[str, int]:
    """The resources of a rule's job in a dry run of the quick study."""
    done = snakemake(folder, QUICK, "--dry-run", *arguments)
    found = re.search(rf"^rule {rule}:\n(?:    .*\n)*?    resources: (.*)", done.stdout, re.M)
    pairs = (each.partition("=") for each in found[1].split(", "))
    return {name: int(value) for name, _, value in pairs if value.isdecimal()}


def test_jobs_take_what_is_planned_for_them(tmp_path, machine_with, monkeypatch):
    names = {"dataset": "ml-100k", "backbone": "tiny", "method": "rere"}
    sizes = {
        **{"weights": 4 * 10**9, "checkpoint": 10**10},
        "cpu": {"peak": 2 * 10**10, "seconds": 6000},
        "gpus": {"fast": {"seconds": 60}, "slow": {"seconds": 600}, "small": {"seconds": None}},
    }
    jobs = [
        {**names, "stage": "rl", "evaluation": "", **sizes},
        {
            **names,
            "stage": "recommend",
            "evaluation": "/num_beams=20",
            **sizes,
            "cpu": {"peak": 10**10, "seconds": None},
        },
    ]
    before = resources(tmp_path, "rl")
    assert (before["mem_mb"], before["runtime"], before["disk_mb"]) == (32_000, 1440, 64_000)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "plan.json").write_text(json.dumps({"jobs": jobs}))
    two = ["--resources", "gpu=2", "--set-resources", "rl:gpu=2"]
    with monkeypatch.context() as without_gpus:
        only_which(tmp_path, without_gpus)
        after = resources(tmp_path, "rl")
        assert (after["mem_mb"], after["disk_mb"]) == (26_500, 41_000)
        assert after["runtime"] == 30 + 3 * 100
        assert resources(tmp_path, "rl", *two)["mem_mb"] == 53_000
    machine_with(2)  # there weights count twice, in each process
    assert resources(tmp_path, "rl", *two)["mem_mb"] == 28_000
    assert resources(tmp_path, "rl")["runtime"] == 30 + 3 * 10
    assert resources(tmp_path, "rl", "--set-resources", "rl:gpu=0")["mem_mb"] == 26_500
    assert resources(tmp_path, "rl", "--set-resources", "rl:mem_mb=9")["mem_mb"] == 9
    recommend = "results/runs/ml-100k/tiny/rere/seed0/num_beams=20/predictions.parquet"
    assert resources(tmp_path, "recommend", recommend)["mem_mb"] == 14_000
    alone = resources(tmp_path, "recommend", recommend, "--set-resources", "recommend:gpu=0")
    assert alone["runtime"] == 8 * 60  # by the plan it does not fit


def test_a_second_attempt_takes_more(tmp_path):
    write_raw(tmp_path / "raw")
    target = "results/data/small/items.parquet"
    changes = {"datasets": {"small": {"core": 99}}}
    done = snakemake(tmp_path, SMALL, target, "--retries", "1", **changes)
    taken = re.findall(r" mem_mb=(\d+).* runtime=(\d+)|runtime=(\d+).* mem_mb=(\d+)", done.stdout)
    assert [sorted(map(int, filter(None, each))) for each in taken] == [
        [240, 16_000],
        [480, 32_000],
    ]


def test_a_plan_needs_data_and_backbones(tmp_path):
    assert planned(tmp_path, QUICK, "plan") == {
        **dict.fromkeys(("fetch", "preprocess", "backbone", "plan"), 1)
    }


@slow
def test_a_planned_study_runs_no_finished_job_again(study_copy):
    done = snakemake(study_copy, SMALL, "plan", "--config", "overwrite=True")
    assert done.returncode == 0, done.stdout
    rows = json.loads((study_copy / "results" / "plan.json").read_text())["jobs"]
    assert {row["method"] for row in rows} == set(METHODS["small"])
    assert all(row["cpu"]["peak"] > row["weights"] > 0 for row in rows)
    assert all(row["cpu"]["seconds"] > 0 for row in rows)
    assert planned(study_copy, SMALL) == {}
    assert planned(study_copy, SMALL, "plan", "--config", "overwrite=True") == {}


def test_a_reward_has_the_baseline_of_the_default_evaluation(tmp_path):
    method = {"init": "sft", "collaborative": "sasrec", "rl": {"reward": ["collaborative"]}}
    target = "results/runs/ml-100k/tiny/added/seed0/log.jsonl"
    done = snakemake(
        tmp_path, QUICK, "-n", target, methods={"added": method}, evaluation={"rows": 40}
    )
    assert "results/runs/ml-100k/none/sasrec/seed0/factors.safetensors" in done.stdout


def test_the_study_of_ready_made_splits_is_planned(tmp_path):
    (tmp_path / "data" / "industrial").mkdir(parents=True)
    configs = [*SEQUENTIAL, ROOT / "config" / "industrial.yaml"]
    assert planned(tmp_path, configs, "results/tables/industrial-sequential.csv") == {
        **{"preprocess": 1, "baseline": 3, "sequential": 6, "metrics": 9, "table": 1}
    }


@pytest.mark.parametrize(
    ("table", "jobs"),
    [
        ("smollm2-first", {"sft": 2, "rl": 1, "recommend": 3, "metrics": 3}),
        ("smollm2-second", {"sft": 3, "preference": 1, "rl": 4, "recommend": 8, "metrics": 8}),
        ("smollm2", {"sft": 9, "preference": 3, "rl": 12, "recommend": 24, "metrics": 24}),
    ],
)
def test_slices_of_a_small_published_model_are_planned(tmp_path, table, jobs):
    (tmp_path / "data" / "industrial").mkdir(parents=True)
    configs = [*QUICK, ROOT / "config" / "smollm2.yaml"]
    once = dict.fromkeys(("preprocess", "backbone", "table"), 1)
    assert planned(tmp_path, configs, f"results/tables/{table}.csv") == once | jobs


@pytest.mark.skipif(shutil.which("conda") is None, reason="conda is not installed")
def test_the_conda_environments_are_planned(tmp_path):
    done = snakemake(tmp_path, QUICK, "--dry-run", "--sdm", "conda")
    assert done.returncode == 0, done.stdout


def test_a_published_backbone_needs_no_data(tmp_path):
    published = {"source": "pretrained", "model": "Qwen/Qwen2-0.5B"}
    target = "results/backbones/qwen/config.json"
    assert planned(tmp_path, QUICK, target, backbones={"qwen": published}) == {"backbone": 1}


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (
            [],
            {"tables": {"main": {"methods": ["sft", "rerre"], "reference": "sft"}}},
            "config: tables.main.methods: there is no rerre; did you mean rere?",
        ),
        (
            ["--dry-run"],
            {"methods": {"rere": {"rl": {"learning_rate": "1e-5"}}}},
            "config: methods.rere.rl.learning_rate: '1e-5' is a string to YAML; write 1.0e-5",
        ),
        (
            ["results/tables/main.csv"],
            {"tabels": {}},
            "config: tabels: unknown key; did you mean tables?",
        ),
        (
            [],
            {"overwrite": False, "methods": {"rere": {"rl": {"beta": 0.5}}}},
            f"config: overlay.yaml: methods.rere is not that of {QUICK[0]}, and would overwrite "
            "results/runs/ml-100k/tiny/rere/seed0; choose another name, or write `overwrite: true`",
        ),
    ],
    ids=["method", "value", "key", "overwrite"],
)
def test_a_wrong_config_stops_with_one_line(tmp_path, arguments, changes, message):
    # Even an existing table does not hide the error.
    table = tmp_path / "results" / "tables" / "main.csv"
    table.parent.mkdir(parents=True)
    table.write_text("kept")
    done = snakemake(tmp_path, QUICK, *arguments, **changes)
    assert done.returncode != 0
    notice, *lines = done.stdout.splitlines()
    assert notice.startswith("Using workflow specific profile")
    assert lines == [message]
    assert table.read_text() == "kept"


@pytest.mark.parametrize(
    "path",
    [
        "results/runs/ml-100k/tiny/rerre/seed0/metrics.json",
        "results/runs/ml-100k/none/rere/seed0/predictions.parquet",
        "results/runs/ml-100k/none/rere/seed0/model/config.json",
        "results/backbones/none/config.json",
        "results/runs/ml-100k/tiny/sasrec/seed0/predictions.parquet",
        "results/runs/ml-100k/tiny/rere/seedX/metrics.json",
        "results/runs/ml-100k/tiny/rere/seed00/metrics.json",
        "results/runs/ml-100k/tiny/rere/seed0/rows=40/metrics.json",
        "results/tables/other.csv",
    ],
)
def test_a_path_that_the_config_does_not_define_is_refused(tmp_path, path):
    done = snakemake(tmp_path, QUICK, "--dry-run", path)
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout


def test_a_failing_stage_prints_why_and_writes_no_output(tmp_path):
    write_raw(tmp_path / "raw")
    target = "results/data/small/items.parquet"
    changes = {"datasets": {"small": {"core": 99}}}
    done = snakemake(tmp_path, SMALL, target, **changes)
    assert done.returncode != 0
    message = "rere preprocess ml-100k: core: 99 leaves 0 samples of 720 events"
    assert message in (tmp_path / "logs" / "preprocess" / "small.log").read_text()
    assert message in done.stdout
    assert "Traceback" not in done.stdout
    assert list((tmp_path / "results").rglob("*.*")) == []


# --------------------------------------------------------------------------------------- killed


def start_sft(study: Path, epochs: float) -> tuple[subprocess.Popen[str], dict]:
    """Start SFT with a checkpoint after each step, and wait for one; return process and changes."""
    changes = {"methods": {"sft": {"sft": {"epochs": epochs, "checkpoint_seconds": 0.0}}}}
    process = start(study, SMALL, SFT_LOG, start_new_session=True, **changes)
    while not list(study.glob(f"{SFT_RUN}/checkpoints/checkpoint-*")):
        assert process.poll() is None
        time.sleep(0.01)
    return process, changes


@slow
def test_a_killed_study_resumes_from_its_checkpoints(study_copy):
    """After unlocking, the same command resumes the interrupted job."""
    process, often = start_sft(study_copy, epochs=5.0)
    with process:
        os.killpg(process.pid, signal.SIGKILL)

    locked = snakemake(study_copy, SMALL, SFT_LOG, **often)
    assert locked.returncode != 0
    assert "Directory cannot be locked" in locked.stdout
    unlocked = snakemake(study_copy, SMALL, "--unlock")
    assert unlocked.returncode == 0, unlocked.stdout

    done = snakemake(study_copy, SMALL, SFT_LOG, **often)
    assert done.returncode == 0, done.stdout
    assert re.search(r"checkpoint-\d+: the run resumes from here", done.stdout)
    assert json.loads((study_copy / SFT_RUN / "run.json").read_text())["resumed"] == 1
    assert not (study_copy / SFT_RUN / "checkpoints").exists()
    steps = [json.loads(line)["step"] for line in (study_copy / SFT_LOG).read_text().splitlines()]
    assert sorted(set(steps)) == list(range(steps[-1] + 1))


@slow
def test_sigterm_ends_jobs_and_study_without_a_lock(study_copy):
    process, often = start_sft(study_copy, epochs=500.0)
    with process:
        jobs = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    assert psutil.wait_procs(jobs, timeout=30)[1] == []
    assert list(study_copy.glob(f"{SFT_RUN}/checkpoints/checkpoint-*"))
    assert planned(study_copy, SMALL, SFT_LOG, **often) == {"sft": 1}


# -------------------------------------------------------------------------------------- results


@slow
def test_results_has_the_expected_files(small_study):
    model = ["config.json", "model.safetensors", "tokenizer.json"]
    expected = {f"data/small/{name}.parquet" for name in ("items", "users")}
    expected |= {f"data/small/{name}.parquet" for name in ("train", "valid", "test")}
    expected |= {"data/small/stats.json", "data/small/audit.json"}
    expected |= {"claims.md", *(f"backbones/small/{name}" for name in model)}
    for table in ("main", "seeds"):
        suffixes = ("csv", "runs.csv", "md", "tex", "explorer.html")
        expected |= {f"tables/{table}.{suffix}" for suffix in suffixes}
        which = [f"{table}{curves}.{kind}" for curves in ("", ".curves") for kind in FORMATS]
        expected |= {f"figures/{name}" for name in which}
    for backbone, method, seed in (*RUNS, INITIAL):
        trained = ["run.json"]
        if method not in UNTRAINED:
            trained += ["log.jsonl", *(FACTORS if backbone == "none" else ())]
        weights = [*model, "catalogue.safetensors"]
        leaves_model = backbone == "small" and method not in UNTRAINED
        trained += [f"model/{name}" for name in weights] if leaves_model else []
        trained += [f"model/{name}" for name in BASELINE_FILES] if backbone == "none" else []
        evaluated = ranked(backbone, method, seed)
        folder = evaluated if method in BEAMLESS else str(Path(evaluated).parent)
        expected |= {f"{folder}/{name}" for name in trained}
        if (backbone, method, seed) != INITIAL:
            expected |= {f"{evaluated}/{name}" for name in ("predictions.parquet", "metrics.json")}
    results = small_study / "results"
    found = {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()}
    assert expected <= found
    allowed = {
        "README.md",
        ".snakemake_timestamp",
        "generation_config.json",
        "tokenizer_config.json",
    }
    assert {Path(path).name for path in found - expected} <= allowed


@slow
def test_the_table_has_one_row_per_method(small_study):
    table = pl.read_csv(small_study / "results" / "tables" / "main.csv")
    assert table.select("dataset", "backbone", "method", "seeds", "rows").rows() == [
        ("small", backbone, method, 1, 40) for backbone in METHODS for method in METHODS[backbone]
    ]
    untested = table.filter(pl.col("NDCG@10_p").is_null())["method"]
    assert untested.to_list() == ["sft"]
    for k, wider in ((1, 3), (3, 5), (5, 10), (10, 20)):
        assert (table[f"HR@{k}"] <= table[f"HR@{wider}"]).all()
    each = pl.read_csv(small_study / "results" / "tables" / "main.runs.csv")
    identity = each.select("dataset", "backbone", "method", "seed")
    assert identity.rows() == [("small", *run) for run in MAIN]
    beams = "rows=40-list_length=20-dtype=auto-num_beams=20-scoring=catalogue-length_penalty=0.0"
    assert each["evaluation"].to_list() == [
        *["rows=40-list_length=20"] * 3,
        "rows=40-list_length=20-dtype=auto",
        *[beams] * 3,
    ]
    assert each["seconds"].null_count() == 0
    seeds = pl.read_csv(small_study / "results" / "tables" / "seeds.csv")
    assert seeds.select("method", "seeds").rows() == [("item_knn", 1), ("rere", 2)]


@slow
def test_all_methods_rank_the_same_rows(small_study):
    rows = None
    for backbone, method, seed in RUNS:
        run = small_study / "results" / ranked(backbone, method, seed)
        predictions = pl.read_parquet(run / "predictions.parquet")
        rows = predictions["row_id"] if rows is None else rows
        assert predictions["row_id"].equals(rows)
        assert predictions["items"].list.len().to_list() == [20] * 40
        metrics = json.loads((run / "metrics.json").read_text())
        identity = {"dataset": "small", "backbone": backbone, "method": method, "seed": seed}
        assert metrics.items() >= identity.items()


@slow
def test_run_json_has_the_provenance_of_a_run(small_study):
    for backbone, method, seed in RUNS:
        run = small_study / "results" / ranked(backbone, method, seed)
        run = run if method in BEAMLESS else run.parent
        provenance = json.loads((run / "run.json").read_text())
        assert provenance.keys() == {
            *("command", "options", "seed", "seconds", "resumed", "best_step", "peak_memory_mb"),
            *("chosen", "commit", "python", "packages", "inputs_sha256"),
        }
        assert provenance["seed"] == seed
        assert "results/data/small/test.parquet" in provenance["inputs_sha256"]
    rere = json.loads((small_study / RERE / "run.json").read_text())
    weights = "results/runs/small/small/sft/seed0/model/model.safetensors"
    assert weights in rere["inputs_sha256"]
    assert (rere["options"]["steps"], rere["options"]["group_size"]) == (2, 4)


@slow
def test_every_job_has_a_log_and_a_benchmark(small_study):
    jobs = {
        path.relative_to(small_study / "logs").with_suffix("")
        for path in small_study.glob("logs/**/*.log")
    }
    assert jobs == {
        path.relative_to(small_study / "benchmarks").with_suffix("")
        for path in small_study.glob("benchmarks/**/*.tsv")
    }
    assert len(jobs) == 32


@slow
@pytest.mark.parametrize(
    ("job", "command", "progress"),
    [
        ("preprocess/small", "preprocess ml-100k --", None),
        ("sft/small/small/sft/seed0", "sft --init results/backbones/small", "sft: 5/5 ["),
        (
            "preference/small/small/sprec/seed0",
            "preference --init results/runs/small/small/sft/seed0",
            "preference: 4/4 [",
        ),
        (f"decode/small/small/d3/seed0/{LISTS}", "decode d3 --model", "recommend: 40/40 ["),
        ("rl/small/small/rere/seed1", "rl --init results/runs/small/small/sft/seed1", "rl: 2/2 ["),
        (
            f"recommend/small/small/rere/seed0/{BEAMS}",
            "recommend --model",
            "recommend: 40/40 [",
        ),
        (f"baseline/small/sasrec/seed0/{LISTS}", "baseline sasrec --data", "sasrec: "),
        (f"metrics/small/none/sasrec/seed0/{LISTS}", "metrics --predictions", None),
    ],
)
def test_a_log_shows_the_command_and_its_progress(small_study, job, command, progress):
    log = (small_study / "logs" / f"{job}.log").read_text()
    first, *lines = log.splitlines()
    assert first.startswith(f"+ python -m rere {command}")
    assert "\r" not in log
    assert progress is None or any(line.startswith(progress) for line in lines)


@slow
def test_training_logs_one_line_per_step(small_study):
    lines = (small_study / RERE / "log.jsonl").read_text().splitlines()
    steps = [step for step in map(json.loads, lines) if "reward" in step]
    assert [step["step"] for step in steps] == [1, 2]


@slow
def test_the_same_seed_gives_the_same_predictions(small_study, study_copy):
    shutil.rmtree(study_copy / RERE)
    done = snakemake(study_copy, SMALL, f"{RERE}/{BEAMS}/predictions.parquet")
    assert done.returncode == 0, done.stdout
    for name in (f"{BEAMS}/predictions.parquet", "model/model.safetensors"):
        assert (study_copy / RERE / name).read_bytes() == (small_study / RERE / name).read_bytes()
    other = small_study / RERE.replace("seed0", "seed1") / "model" / "model.safetensors"
    assert other.read_bytes() != (small_study / RERE / "model" / "model.safetensors").read_bytes()


@slow
def test_the_report_opens_on_the_study_and_shows_its_results(small_study, tmp_path):
    report = tmp_path / "report.html"
    done = snakemake(small_study, SMALL, "--report", str(report))
    assert done.returncode == 0, done.stdout
    text = report.read_text()
    for name in ("main.csv", "main.png", "main.curves.png", "main.explorer.html", "audit.json"):
        assert name in text
    if CHROMIUM is None:
        return
    with browser(tmp_path / "browser") as page:
        page.open(report.as_uri())
        shown = page.wait("document.querySelector('.prose')?.innerText")
        assert shown.startswith("Which method recommends best?") and "Table main" in shown
        row = pl.read_csv(small_study / "results" / "tables" / "main.csv").row(0, named=True)
        found = page.text(".prose tbody tr:first-child td")[:6]
        metrics = [f"{row[name]:.4f}" for name in ("HR@10", "NDCG@10")]
        assert found == ["small", "none", "popularity", "1", *metrics]
        for category in ("Tables", "Figures", "Explorer", "Data"):
            link = f"[...document.querySelectorAll('.prose a')].find(a => a.text === '{category}')"
            page.evaluate(f"{link}.click()")
            assert page.wait(f"app.state.category === '{category}'")
        page.evaluate("app.showResultInfo('results/data/small/audit.json')")
        audit = json.loads((small_study / "results" / "data" / "small" / "audit.json").read_text())
        page.wait(f"document.querySelectorAll('nav td').length > {2 * len(audit)}")
        _, *cells = page.text("nav td")
        names = [name.replace("_", " ") for name in audit]
        assert [cell.strip() for cell in cells[::2]] == names
        assert cells[cells.index("test rows") + 1].strip() == str(audit["test_rows"])
        page.evaluate("app.showCategory('Explorer')")
        page.wait("!!document.querySelector('nav tbody a')")
        page.click("nav tbody a")
        assert page.wait("document.querySelector('iframe')?.src.startsWith('blob:')")
        assert "Content Security" not in str(page.messages)


def test_the_report_shows_labels_as_they_are(tmp_path):
    label = r'S_, "F" *T* |c| `d` e_ \ f'
    values = dict.fromkeys(("HR@10", "NDCG@10", "NDCG@10_low", "NDCG@10_high"), 0.5)
    row = {"dataset": "small", "backbone": "none", "method": "sft", "seeds": 1, **values}
    pl.DataFrame([row]).write_csv(tmp_path / "main.csv")
    study = SimpleNamespace(config={"tables": {"main": {"labels": {"sft": label}}}})
    text = (ROOT / "workflow" / "report" / "study.rst").read_text()
    template = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True)  # as Snakemake has it
    table = template.render(files=[SimpleNamespace(path=tmp_path / "main.csv")], snakemake=study)
    page = publish_parts(table[table.index("Table main") :], writer="html5")["html_body"]
    assert f"<p>{html.escape(label)}</p>" in page and "system-message" not in page


# ------------------------------------------------------------------------------ what runs again


@slow
def test_a_second_run_has_nothing_to_do(small_study):
    done = snakemake(small_study, SMALL)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


@slow
def test_a_moved_or_copied_checkout_has_nothing_to_do(study_copy):
    assert planned(study_copy.rename(study_copy.with_name("moved")), SMALL) == {}


@slow
def test_an_edited_or_swapped_file_runs_again_what_reads_it(study_copy):
    target = f"{SFT_RUN}/{BEAMS}/metrics.json"
    after_training = {"recommend": 1, "metrics": 1}

    # Touched, another file beside it, and intermediate files that nothing needs are gone.
    (study_copy / "raw" / "u.data").touch()
    (study_copy / "raw" / "README").write_text("new")
    (study_copy / SFT_RUN / "model" / "config.json").touch()
    (study_copy / SFT_RUN / "model" / CARD).write_text("edited")
    shutil.rmtree(study_copy / "results" / "backbones")
    assert planned(study_copy, SMALL, target) == {}

    # Bytes of the weights changed, by a program that sets the time back.
    weights = study_copy / SFT_RUN / "model" / "model.safetensors"
    status, content = weights.stat(), weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\1\2\3\4")
    os.utime(weights, (1, 1))
    assert planned(study_copy, SMALL, target) == after_training
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))

    # Raw events swapped for others of the same size, and older.
    events = study_copy / "raw" / "u.data"
    (study_copy / "older").write_text(events.read_text().replace("\t5\t", "\t4\t"))
    os.utime(study_copy / "older", (1, 1))
    (study_copy / "older").rename(events)
    assert planned(study_copy, SMALL, target) == {
        **{"preprocess": 1, "backbone": 1, "sft": 1},
        **after_training,
    }


REPORTED = {"table": 1, "explorer": 1, "figure": 1}
TWICE = {"table": 2, "explorer": 2, "figure": 2}
"""The tables `main` and `seeds`."""


@slow
@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        (
            {"methods": {"rere": {"rl": {"beta": 0.1}}}},
            {"rl": 2, "recommend": 2, "metrics": 2, "curves": 2, "claims": 1, **TWICE},
        ),
        (
            {"methods": {"sft": {"sft": {"patience": 9}}}},
            {
                **{"sft": 2, "preference": 1, "rl": 2, "recommend": 4, "decode": 1, "metrics": 5},
                **{"curves": 2, "claims": 1, **TWICE},
            },
        ),
        (
            {"methods": {"sasrec": {"baseline": {"dropout": 0.5}}}},
            {"sequential": 1, "decode": 1, "metrics": 2, "claims": 1, **REPORTED},
        ),
        (
            {"methods": {"d3": {"decode": {"alpha": 0.9}}}},
            {"decode": 1, "metrics": 1, **REPORTED},
        ),
        ({"evaluation": {"num_beams": 30}}, {"recommend": 4, "metrics": 4, "claims": 1, **TWICE}),
        (
            {"evaluation": {"rows": 30}},
            {
                **{"baseline": 2, "sequential": 1, "recommend": 4, "decode": 1, "metrics": 8},
                **{"claims": 1, **TWICE},
            },
        ),
        ({"tables": {"main": {"reference": "rere"}}}, REPORTED),
        ({"methods": {"unused": {"init": "sft", "rl": {}}}}, {}),
    ],
    ids=["rl", "sft", "baseline", "decode", "beams", "rows", "reference", "unused"],
)
def test_a_changed_option_runs_the_jobs_that_depend_on_it(small_study, changes, jobs):
    assert planned(small_study, SMALL, **changes) == jobs


@slow
@pytest.mark.parametrize(
    ("method", "jobs"),
    [
        ({"baseline": {"model": "sasrec", "epochs": 3}}, {"sequential": 1, "metrics": 1}),
        ({"init": "sft", "preference": {}}, {"preference": 1, "recommend": 1, "metrics": 1}),
        ({"init": "sft", "decode": {"algorithm": "bigrec"}}, {"decode": 1, "metrics": 1}),
        ({"init": "sft", "rl": {}}, {"rl": 1, "recommend": 1, "metrics": 1, "curves": 1}),
        (
            {"init": "sft", "rl": {}, "grid": {"beta": [0.0, 0.1], "reward": [["rule"]]}},
            {"rl": 2, "recommend": 2, "metrics": 2, "curves": 1},
        ),
        (
            {"init": "sft", "rl": {"reward": ["collaborative"]}, "collaborative": "sasrec"},
            # The baseline of the reward is that of the default `evaluation`.
            {"sequential": 1, "rl": 1, "recommend": 1, "metrics": 1, "curves": 1},
        ),
        (
            {"init": "sft", "seed": 1, "rl": {}},
            {"rl": 1, "recommend": 1, "metrics": 1, "curves": 1},
        ),
    ],
    ids=["baseline", "preference", "decode", "rl", "grid", "collaborative", "one seed"],
)
def test_an_added_method_runs_no_other_method(small_study, method, jobs):
    methods = [*METHODS["none"], *METHODS["small"], "added"]
    changes = {"methods": {"added": method}, "tables": {"main": {"methods": methods}}}
    assert planned(small_study, SMALL, **changes) == {**jobs, **REPORTED}


@slow
def test_collaborative_and_own_rewards_run(study_copy):
    """A real run; editing the user's module runs the method again."""
    (study_copy / "mine.py").write_text("def one(groups):\n    return groups.hit.float() + 1\n")
    budget = {"steps": 2, "prompts": 4, "rows_per_pass": 2, "group_size": 4, "validations": 1}
    reward = ["rule", "collaborative=0.1", "semantic", "mine:one"]
    method = {"init": "sft", "collaborative": "sasrec", "rl": {**budget, "reward": reward}}
    run = RERE.replace("rere", "added")
    changes = {"methods": {"added": method}}
    done = snakemake(study_copy, SMALL, f"{run}/log.jsonl", **changes)
    assert done.returncode == 0, done.stdout
    step = json.loads((study_copy / run / "log.jsonl").read_text().splitlines()[1])
    names = ("rule", "collaborative", "semantic", "mine:one")
    rule, collaborative, semantic, own = (step[f"reward_{name}"] for name in names)
    assert own == 4 + rule
    assert collaborative != 0
    assert step["reward"] == pytest.approx(rule + 0.1 * collaborative + semantic + own)
    factors = "results/runs/small/none/sasrec/seed0/factors.safetensors"
    assert factors in json.loads((study_copy / run / "run.json").read_text())["inputs_sha256"]

    assert planned(study_copy, SMALL, f"{run}/log.jsonl", **changes) == {}
    (study_copy / "mine.py").write_text("def one(groups):\n    return groups.hit.float()\n")
    assert planned(study_copy, SMALL, f"{run}/log.jsonl", **changes) == {"rl": 1}


def test_without_rl_there_are_no_curves(tmp_path):
    tables = {"main": {"methods": ["popularity", "sft"]}}
    assert "curves" not in planned(tmp_path, QUICK, tables=tables)
    done = snakemake(tmp_path, QUICK, "-n", "results/figures/main.curves.pdf", tables=tables)
    assert "MissingRuleException" in done.stdout


@slow
def test_a_path_with_another_seed_runs_only_its_jobs(small_study):
    path = RERE.replace("seed0", "seed7")
    assert planned(small_study, SMALL, f"{path}/metrics.json") == {
        "sft": 1,
        "rl": 1,
        "recommend": 1,
        "metrics": 1,
    }


# ------------------------------------------------------------------------------------ benchmarks


@slow
def test_benchmarks_make_tables_and_figures(study_copy):
    results = study_copy / "results"
    tables = [f"results/tables/{name}.csv" for name in ("speed", "rollouts")]
    done = snakemake(study_copy, SMALL, *tables, "results/figures/speed.pdf")
    assert done.returncode == 0, done.stdout
    rollouts = pl.read_csv(results / "tables" / "rollouts.csv")
    # 2 and 4 candidates of six kinds, 12 beams of two, two proofs.
    assert len(rollouts) == 2 * 6 + 2 + 2
    speed = pl.read_csv(results / "tables" / "speed.csv")
    assert speed["what"].unique(maintain_order=True).to_list() == [
        *("beam search", "beam search in bfloat16", "prefix tree")
    ]
    assert (results / "figures" / "speed.png").exists()
