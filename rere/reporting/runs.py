"""Run folders as tables read them: identity, metrics, costs, and the metrics of each row."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from rere.config.run import Run
from rere.data.dataset import read_items
from rere.errors import InputError
from rere.evaluation.metrics import read_test_predictions, row_metrics
from rere.study import parse

COSTS = ("seconds", "peak_memory_mb", "best_step")
"""Fields of run.json; null for a run without one."""
VALIDATION = "valid_NDCG@10"
"""Field of each epoch in the log of a sequential baseline; the best epoch is kept."""


class ScoredRun(NamedTuple):
    """A run with its metrics."""

    run: Run
    folder: Path
    metrics: dict[str, Any]  # metrics.json, COSTS and VALIDATION
    rows: pl.DataFrame  # of `rere.evaluation.metrics.row_metrics`


def read_run(folder: Path, data: dict[str, Path]) -> ScoredRun:
    """A run folder's metrics; raises InputError if a file is missing or the data set unknown."""
    metrics = read_json(folder / "metrics.json")
    run = parse(Run, metrics)
    if run.dataset not in data:
        raise InputError(
            f"{folder}: is a run on {run.dataset}; give the folder of that data set too"
        )
    items = read_items(data[run.dataset])
    predictions = read_test_predictions(folder / "predictions.parquet", data[run.dataset], items)
    provenance = folder / "run.json"
    costs = read_json(provenance) if provenance.is_file() else {}
    metrics |= {name: costs.get(name) for name in COSTS}
    metrics[VALIDATION] = best_validation(folder / "log.jsonl")
    return ScoredRun(run, folder, metrics, row_metrics(predictions, items))


def best_validation(log: Path) -> float | None:
    """The best VALIDATION in a run's log; None without a log, or if no line has it."""
    if not log.is_file():
        return None
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return max((line[VALIDATION] for line in lines if VALIDATION in line), default=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{log}: not readable as JSON lines ({error}); train again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises InputError if it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a mapping; make it again")
    return value


def check_comparable(scored: list[ScoredRun]) -> None:
    """Raise InputError if a run comes twice, or two runs of a data set have different rows."""
    seen: dict[Run, ScoredRun] = {}
    first: dict[str, ScoredRun] = {}
    for each in scored:
        twin = seen.setdefault(each.run, each)
        if twin is not each:
            raise InputError(f"{twin.folder} and {each.folder} are the same run; give one")
        other = first.setdefault(each.run.dataset, each)
        if not other.rows["row_id"].equals(each.rows["row_id"]):
            raise InputError(
                f"{other.folder} and {each.folder} have different test rows; rerun one"
            )
