"""Run folders as reports read them: identity, metrics, costs, and the metrics of each row."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rere.config.run import Run
from rere.data.splits import read_items
from rere.errors import InputError
from rere.evaluation.metrics import read_test_predictions, row_metrics
from rere.study import parse

COSTS = ("seconds", "peak_memory_mb")
"""What run.json says a run cost; a run may have none."""
VALIDATION = "valid_NDCG@10"
"""What the log of a sequential baseline says of an epoch; its best one is the model's."""


class Scored(NamedTuple):
    """A run, where it is, its metrics.json with costs and validation, and its rows' metrics."""

    run: Run
    folder: Path
    metrics: dict[str, Any]
    rows: pl.DataFrame


def read_run(folder: Path, data: dict[str, Path]) -> Scored:
    """A run folder's metrics; raises InputError if it lacks a file or its data set."""
    metrics = read_json(folder / "metrics.json")
    run = parse(Run, metrics)
    if run.dataset not in data:
        raise InputError(f"{folder}: is a run on {run.dataset}; give that data set's folder too")
    items = read_items(data[run.dataset])
    predictions = read_test_predictions(folder / "predictions.parquet", data[run.dataset], items)
    provenance = folder / "run.json"
    costs = read_json(provenance) if provenance.is_file() else {}
    metrics |= {name: costs.get(name) for name in COSTS}
    metrics[VALIDATION] = best_validation(folder / "log.jsonl")
    return Scored(run, folder, metrics, row_metrics(predictions, items))


def best_validation(log: Path) -> float | None:
    """The best epoch's VALIDATION in a run's log; None without a log, or one of other training."""
    if not log.is_file():
        return None
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return max((line[VALIDATION] for line in lines if VALIDATION in line), default=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{log}: not readable as JSON lines ({error}); train again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises InputError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no mapping")
    return value


def check_comparable(scored: list[Scored]) -> None:
    """Raise InputError unless runs differ and those of a data set have the same rows."""
    seen: dict[Run, Scored] = {}
    first: dict[str, Scored] = {}
    for each in scored:
        twin = seen.setdefault(each.run, each)
        if twin is not each:
            raise InputError(f"{twin.folder} and {each.folder} are the same run; give one")
        other = first.setdefault(each.run.dataset, each)
        if not other.rows["row_id"].equals(each.rows["row_id"]):
            raise InputError(f"{other.folder} and {each.folder} have other test rows; rerun one")
