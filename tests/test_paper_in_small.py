"""The paper's study in small: from raw files with a known structure to tables, figures and claims.

The ordinary tests check its data and its options, and run each of its methods once. `make
test-study` runs the whole.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
import yaml
from planted_logs import DATASETS
from snakemake_runs import PAPER, PAPER_IN_SMALL, each_method_once, planned, study_of
from stand_ins import STAND_INS
from study_configs import trained

from rere.backbones import count_parameters, load_model
from rere.config.study import FigureKind, Study
from rere.data.dataset import SPLITS, read_items, read_split
from rere.data.preprocess import preprocess

OWN: dict[str, Any] = yaml.safe_load(PAPER[-1].read_text())
"""What config/paper.yaml says itself."""
METHODS = [name for name, method in OWN["methods"].items() if method is not None]
KINDS = ["", *(f".{kind}" for kind in get_args(FigureKind)[1:])]
slow = pytest.mark.slow

# ------------------------------------------------------------------------------- what is planted

DROPPED = {
    "of an item not listed": 3,
    "of an item with a title of more than 20 words": 5,
    "of an item with markup for a title": 4,
    "of an item without a title": 6,
    "outside of the window": 13,
    "outside of the core": 32,
}
"""What each log but that of the movies has beside the steps of its users."""
# Users take eight steps. 15 reviews are there twice and kept: five of a first item, ten of a last
# one. An event is a row but for each user's first; rows are split 8:1:1, rounded down.
FOUND = {
    "toys": {
        "users": 120,
        "items": 48,
        "kept": 120 * 8 + 15,
        "rows": (684, 85, 86),  # of 120 * 7 + 15 = 855; 684, 769.5
        "start": "2014-10-01",  # two years before the paper's: 24 items, then 40, then 48
    },
    "industrial": {
        "users": 150,
        "items": 48,
        "kept": 150 * 8 + 15,
        "rows": (852, 106, 107),  # of 150 * 7 + 15 = 1065; 852, 958.5
        "start": "1996-10-01",
    },
    "office": {
        "users": 60,
        "items": 32,
        "kept": 60 * 8 + 15,
        "rows": (348, 43, 44),  # of 60 * 7 + 15 = 435; 348, 391.5
        "start": "2016-10-01",
    },
    "yelp": {
        "users": 140,
        "items": 48,
        "kept": 140 * 8 + 15,
        "rows": (796, 99, 100),  # of 140 * 7 + 15 = 995; 796, 895.5
        "start": "2021-01-01",
    },
    "ml-1m": {
        "users": 60,
        "items": 32,
        "kept": 60 * 8,
        "rows": (336, 42, 42),  # of 60 * 7 = 420; 336, 378
        "start": None,
    },
}


@pytest.mark.parametrize("name", DATASETS)
def test_the_data_stage_finds_what_is_planted(paper_files, paper_in_small, tmp_path, name):
    expected, options = FOUND[name], paper_in_small.datasets[name]
    preprocess(options, paper_files / options.folder, tmp_path / "data")
    stats, audit = (
        json.loads((tmp_path / "data" / f"{file}.json").read_text()) for file in ("stats", "audit")
    )
    assert (stats["users"], stats["items"]) == (expected["users"], expected["items"])
    assert stats["interactions_kept"] == expected["kept"]
    rows = tuple(stats["splits"][split]["rows"] for split in SPLITS)
    assert rows == expected["rows"]
    assert stats["window"]["start"] == expected["start"]
    dropped = {reason: count for reason, count in stats["interactions_dropped"].items() if count}
    is_movies = name == "ml-1m"
    assert dropped == ({"outside of the core": 32} if is_movies else DROPPED)
    assert stats["titles_dropped"]["of an item without events"] == 3
    # Two items share a title; the last reviews of ten users come twice, and their rows are last.
    assert stats["items_sharing_their_title"] == (0 if is_movies else 2)
    repeated = 0 if is_movies else 10 / expected["rows"][2]
    assert audit["share_of_test_targets_equal_to_their_last_item"] == pytest.approx(repeated)
    assert audit["share_of_test_targets_that_train_does_not_know"] == 0
    assert audit["share_of_test_rows_of_users_in_train"] == 1
    assert audit["events_of_unlisted_items"] == (0 if is_movies else 3)


@pytest.mark.parametrize(
    ("least", "start", "items"),
    [(24, "2016-10-01", 24), (25, "2015-10-01", 40), (41, "2014-10-01", 48)],
)
def test_the_window_moves_back_until_it_has_enough_items(
    paper_files, paper_in_small, tmp_path, least, start, items
):
    options = paper_in_small.datasets["toys"].model_copy(update={"min_items": least})
    preprocess(options, paper_files / options.folder, tmp_path / "data")
    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    assert (stats["window"]["start"], stats["items"]) == (start, items)


@pytest.mark.parametrize("name", ["toys", "yelp"])
def test_the_last_item_tells_the_target(paper_files, paper_in_small, tmp_path, name):
    """But for the users who jump to another chain, at one of their seven steps each."""
    options = paper_in_small.datasets[name]
    preprocess(options, paper_files / options.folder, tmp_path / "data")
    items = read_items(tmp_path / "data")
    place = [divmod(int(re.sub(r"\D", "", raw)) - 100, 100) for raw in items["raw_id"]]
    rows = read_split(tmp_path / "data", "train")
    pairs = [(place[h[-1]], place[t]) for h, t in rows.select("history", "target").iter_rows()]
    follows = [(chain, (position + 1) % 8) == target for (chain, position), target in pairs]
    assert 0.9 < sum(follows) / len(follows) < 1


def test_backbones_of_four_families_stand_in(paper_files, paper_in_small):
    sizes = {}
    for name, backbone in paper_in_small.backbones.items():
        if name in STAND_INS:
            model = load_model(paper_files / backbone.model)
            sizes[name] = model.config.model_type, count_parameters(model)
    assert [family for family, _ in sizes.values()] == ["qwen2", "llama", "gemma", "gpt2", "llama"]
    counts = [count for _, count in sizes.values()]
    assert counts[:4] == sorted(counts[:4]) and max(counts) < 1e6


# ------------------------------------------------------------------------------------ the overlay


def differences(paper: Any, small: Any, where: str = "") -> Iterator[str]:
    """Yield the place of each value that differs in more than a number."""
    if isinstance(paper, dict) and isinstance(small, dict):
        for key in paper.keys() | small.keys():
            yield from differences(paper.get(key), small.get(key), f"{where}.{key}".lstrip("."))
    elif is_number(paper) and is_number(small):
        assert paper >= small or "learning_rate" in where, where
    elif paper != small:
        yield where


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_it_differs_from_the_papers_study_in_numbers_and_places_only(paper_in_small):
    found = set(differences(study_of(PAPER).model_dump(), paper_in_small.model_dump()))
    assert found == {
        *(f"datasets.{name}.folder" for name in DATASETS),
        *(f"backbones.{name}.model" for name in STAND_INS),
        *("evaluation.rows", "tables.others"),
    }


def test_each_name_of_the_paper_is_in_a_table(paper_in_small):
    for axis in ("datasets", "backbones"):
        used = {name for table in paper_in_small.tables.values() for name in getattr(table, axis)}
        assert used == OWN[axis].keys()
    runs = [run for table in paper_in_small.tables for run in paper_in_small.runs(table)]
    assert {run.method for run in runs} >= {
        m for name in METHODS for m in members(paper_in_small, name)
    }


def members(study: Study, name: str) -> list[str]:
    """The method of this name, or the methods of the grid."""
    if name in study.methods:
        return [name]
    return [member for member in study.methods if member.startswith(f"{name}-")]


def test_its_training_runs_have_commands(paper_in_small):
    assert len(trained(paper_in_small)) == len(trained(study_of(PAPER))) + 2


def test_the_whole_is_planned(paper_files, paper_in_small, tmp_path):
    shutil.copytree(paper_files / "raw", tmp_path / "raw")
    shutil.copytree(paper_files / "stand-ins", tmp_path / "stand-ins")
    jobs = planned(tmp_path, PAPER_IN_SMALL)
    runs = {run for table in paper_in_small.tables for run in paper_in_small.runs(table)}
    assert jobs["metrics"] == len(runs)
    assert jobs | {"preprocess": 5, "backbone": 5, "table": 12, "explorer": 12, "claims": 1} == jobs
    figures = [name for table in paper_in_small.tables for name in paper_in_small.figures(table)]
    assert sum(jobs[rule] for rule in ("figure", "curves", "figure_of_kind")) == len(figures)
    assert "fetch" not in jobs


# ------------------------------------------------------- each method, on one data set and seed


@slow
def test_each_method_of_the_paper_is_in_the_table(paper_once):
    study = study_of(PAPER_IN_SMALL)
    found = read_metrics(paper_once, "main")
    names = [
        name
        for each in OWN["tables"].values()
        for method in each["methods"]
        for name in members(study, method)
    ]
    assert found.keys() == {("industrial", name) for name in names}
    assert {m for name in METHODS for m in members(study, name)} <= {*names}
    check_order_is_learnt(found, ["industrial"])


@slow
def test_each_kind_of_training_takes_its_steps(paper_once):
    runs = paper_once / "results" / "runs" / "industrial" / "qwen2-0.5b"
    # A tenth of 852 rows by 8 prompts is 10.65; by 8 rows the same.
    for name in (
        "rere_faithful",
        "rere_from_base",
        "dapo",
        "sampling-rollout=iid",
        "s_dpo_faithful",
    ):
        lines = (runs / name / "seed0" / "log.jsonl").read_text().splitlines()
        assert max(json.loads(line)["step"] for line in lines) == 11, name


@slow
def test_some_weights_that_rl_trains_are_kept(paper_once):
    """Validation prefers them to the initial ones, which all these runs share."""
    rows = pl.read_csv(paper_once / "results" / "tables" / "main.runs.csv")
    values = dict(rows.select("method", "NDCG@10").iter_rows())
    rl = rows.filter(pl.col("best_step") > 0)["method"].to_list()
    changed = [name for name in rl if "base" not in name and values[name] != values["sft"]]
    assert len(changed) > 3


@slow
def test_figures_of_every_kind_are_drawn(paper_once):
    check_figures(paper_once, [f"main{kind}" for kind in KINDS])
    assert planned(paper_once, PAPER_IN_SMALL, **each_method_once()) == {}


@slow
def test_one_seed_decides_no_claim(paper_once):
    verdicts = read_verdicts(paper_once)
    decided = {"traditional", "llm-based", "from-sft"}  # those of the table `main`
    expected = {name: "not decided" if name in decided else "not run" for name in OWN["claims"]}
    assert {name: verdict for name, (verdict,) in verdicts.items()} == expected


# ------------------------------------------------------------------------------------ the whole


@pytest.mark.study
def test_each_name_of_the_paper_has_its_files(paper_study, paper_in_small):
    results = paper_study / "results"
    for name in OWN["datasets"]:
        assert (results / "data" / name / "audit.json").is_file()
    for name in OWN["backbones"]:
        assert (results / "backbones" / name / "model.safetensors").is_file()
        assert [*results.glob(f"runs/*/{name}/rere*/seed0/*/metrics.json")], name
    for name in METHODS:
        for member in members(paper_in_small, name):
            assert [*results.glob(f"runs/*/*/{member}/seed0/*/metrics.json")], member
    for name in OWN["tables"]:
        for ending in ("csv", "runs.csv", "md", "tex", "explorer.html"):
            assert (results / "tables" / f"{name}.{ending}").stat().st_size > 100, name
        check_figures(paper_study, paper_in_small.figures(name))
    for name, (first, *others) in read_verdicts(paper_study).items():
        assert "not run" not in (first, *others), name
        # Verdicts on each data set of its table.
        assert len([first, *others]) == (3 if OWN["claims"][name].get("each_dataset") else 1)


@pytest.mark.study
def test_each_table_has_all_runs(paper_study, paper_in_small):
    for name in paper_in_small.tables:
        rows = pl.read_csv(paper_study / "results" / "tables" / f"{name}.runs.csv")
        found = rows.select("dataset", "backbone", "method", "seed").rows()
        expected = [(r.dataset, r.backbone, r.method, r.seed) for r in paper_in_small.runs(name)]
        assert found == expected, name


@pytest.mark.study
def test_the_planted_order_is_learnt(paper_study):
    check_order_is_learnt(read_metrics(paper_study, "main"), ["toys", "industrial", "yelp"])
    others = read_metrics(paper_study, "others")
    for dataset in ("office", "ml-1m"):
        assert others[dataset, "sft"] > others[dataset, "popularity"], dataset


@pytest.mark.study
def test_each_family_learns(paper_study):
    table = pl.read_csv(paper_study / "results" / "tables" / "backbones.csv")
    names = table["backbone"].unique()
    assert len(names) == 4
    for name in names:
        rows = table.filter(backbone=name)
        found = dict(zip(rows["method"], rows["NDCG@10"], strict=True))
        assert found["sft"] > 2 * found["base"], name


@pytest.mark.study
def test_the_whole_has_nothing_left_to_do(paper_study):
    assert planned(paper_study, PAPER_IN_SMALL) == {}


# ------------------------------------------------------------------------------- what is read


def read_metrics(folder: Path, table: str) -> dict[tuple[str, str], float]:
    """NDCG@10 of each data set and method of a table with one backbone."""
    rows = pl.read_csv(folder / "results" / "tables" / f"{table}.csv")
    return {
        (each[0], each[1]): each[2] for each in rows.select("dataset", "method", "NDCG@10").rows()
    }


def check_order_is_learnt(found: dict[tuple[str, str], float], datasets: list[str]) -> None:
    """Check that models of sequences beat the popularity of items, which says little here."""
    for dataset in datasets:
        for method in ("item_knn", "sasrec_faithful", "sft"):
            assert found[dataset, method] > 1.5 * found[dataset, "popularity"], (dataset, method)


def check_figures(folder: Path, names: list[str]) -> None:
    for name in names:
        for ending, magic in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
            content = (folder / "results" / "figures" / f"{name}.{ending}").read_bytes()
            assert content.startswith(magic) and len(content) > 1000, name


def read_verdicts(folder: Path) -> dict[str, list[str]]:
    """The verdicts on each claim, one for each data set that has its own."""
    text = (folder / "results" / "claims.md").read_text()
    found: dict[str, list[str]] = {}
    for name, verdict in re.findall(r"^`([\w-]+)`: \*\*([\w ]+)\*\*$", text, re.MULTILINE):
        found.setdefault(name, []).append(verdict)
    assert found.keys() == OWN["claims"].keys()
    return found
