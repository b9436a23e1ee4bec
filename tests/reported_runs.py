"""Small runs, their data sets and their logs, for tables and figures."""

import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl
from data_frames import items_frame, split_frame, users_frame

from rere.config.run import NO_BACKBONE, Run
from rere.data.dataset import read_split
from rere.evaluation.metrics import metrics
from rere.evaluation.predictions import write_predictions

DATASETS, BACKBONES = ("ml-100k", "toys_"), ("tiny", "large_1.5b")
SKILL = {"popularity": 0.1, "sft": 0.3, "rere_0.1": 0.7}
"""Probability that a method's list has the target among its first ten items."""
ROWS, ITEMS = 60, 40
HOSTILE = '</script><b id="evil">& <!-- data -->\u2028'
"""A title that a page must show as text."""


def make_data(folder: Path, seed: int) -> Path:
    """Write a random data set with users, a train and a test split; return its folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    items = items_frame([f"t{i % 36}" for i in range(ITEMS)], rng.integers(0, 9, ITEMS))
    items.write_parquet(folder / "items.parquet")
    users = np.sort(rng.integers(0, 30, ROWS))
    histories = rng.integers(0, ITEMS, (ROWS, 3)).tolist()
    test = split_frame(histories, rng.integers(0, ITEMS, ROWS), users)
    test.write_parquet(folder / "test.parquet")
    train = split_frame(rng.integers(0, ITEMS, (9, 2)).tolist(), rng.integers(0, ITEMS, 9))
    train.write_parquet(folder / "train.parquet")
    users_frame(30).write_parquet(folder / "users.parquet")
    return folder


def make_run(root: Path, run: Run, rows: int | None = None) -> Path:
    """Write the predictions and metrics of a run with its method's SKILL; return its folder."""
    rng = np.random.default_rng([run.seed, *run.folder.encode()])
    test = read_split(root / "data" / run.dataset, "test", rows)
    ranked = []
    for target in test["target"]:
        others = [item for item in rng.permutation(ITEMS).tolist() if item != target][:25]
        if rng.random() < SKILL[run.method]:
            others.insert(int(rng.integers(10)), target)
        ranked.append(others)
    return write_run(root, run, test, ranked)


def write_run(root: Path, run: Run, test: pl.DataFrame, ranked: list[list[int]]) -> Path:
    """Write the predictions and metrics of a run with these lists; return its folder."""
    folder, data = root / run.folder, root / "data" / run.dataset
    scores = [[-float(rank) for rank in range(len(row))] for row in ranked]
    write_predictions(folder / "predictions.parquet", test, ranked, scores)
    metrics(folder / "predictions.parquet", data, run, folder / "metrics.json")
    return folder


def planned_runs() -> list[Run]:
    """Runs in the order of a study; those without a backbone once per data set."""
    runs = [
        Run(
            dataset=dataset,
            backbone=NO_BACKBONE if method == "popularity" else backbone,
            method=method,
            seed=seed,
        )
        for dataset, backbone, method, seed in itertools.product(
            DATASETS, BACKBONES, SKILL, (0, 1, 2)
        )
    ]
    return list(dict.fromkeys(runs))


def write_log(folder: Path, lines: list[dict]) -> Path:
    """Write the log of a run; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def training_log(steps: int = 4, **more: float) -> list[dict]:
    """One line per step and a validation after every second step, as `rere rl` writes them."""
    lines = []
    for step in range(1, steps + 1):
        fields = {"loss": 0.1, "reward": 0.1 * step, "hit_rate": 0.5, "distinct": 16.0, **more}
        lines.append({"step": step, "seconds": 2.0 * step, **fields})
        if step % 2 == 0:
            lines.append({"step": step, "eval_ndcg@10": 0.01 * step})
    return lines
