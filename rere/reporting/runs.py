"""Run folders as tables read them: identity, metrics, costs, and the metrics of each row."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, NamedTuple

import polars as pl
from pydantic import ValidationError

from rere.config.evaluation import read_spelling
from rere.config.run import Run
from rere.data.dataset import read_items
from rere.errors import InputError
from rere.evaluation.metrics import read_test_predictions, row_metrics, run_metrics
from rere.evaluation.predictions import STAGES
from rere.files import read_json

COSTS = ("seconds", "peak_memory_mb", "best_step")
"""Fields taken from run.json; None without that file. best_step is None unless a language model was
trained."""
VALIDATION = "valid_NDCG@10"
"""Field of each epoch in the log of a sequential baseline; the best epoch's model is kept."""
TOLERANCE = 1e-9
"""Of values in metrics.json; sums in another order differ by less."""
MEASURE = "`rere metrics`"
MEASURE_AGAIN = f"make it again: {MEASURE}"
RUN = "the method's stage, such as `rere rl`"
RUN_AGAIN = f"make it again: {RUN}"


class ScoredRun(NamedTuple):
    """A run with its metrics."""

    run: Run
    folder: Path
    metrics: dict[str, Any]  # metrics.json, COSTS and VALIDATION
    rows: pl.DataFrame  # of `rere.evaluation.metrics.row_metrics`


def read_runs(folders: Sequence[Path], data: Sequence[Path]) -> list[ScoredRun]:
    """The runs in `folders` on the data sets in the folders `data`, which are named after them.

    Raises InputError if a run is malformed or given twice, if its metrics.json is not of its
    predictions, or if two runs of a data set have different test rows or options of `evaluation`.
    """
    scored = [read_run(folder, {path.name: path for path in data}) for folder in folders]
    check_comparable(scored)
    return scored


def read_run(folder: Path, data: dict[str, Path]) -> ScoredRun:
    """A run folder's metrics, computed from its predictions.

    Raises InputError if a file is missing or malformed, the data set unknown, or metrics.json of
    another run or of other predictions.
    """
    path, predictions = folder / "metrics.json", folder / "predictions.parquet"
    stored = read_json(path, MEASURE)
    run = read_identity(path, stored)
    if run.dataset not in data:
        raise InputError(
            f"{folder}: is a run on {run.dataset}; give the folder of that data set too"
        )
    items = read_items(data[run.dataset])
    frame = read_test_predictions(predictions, data[run.dataset], items)
    rows = row_metrics(frame, items)
    metrics = run_metrics(run, frame, rows, items)
    check_metrics(path, stored, metrics, predictions)
    trained = training_folder(folder, run)
    metrics |= read_costs(trained / "run.json")
    metrics[VALIDATION] = best_validation(trained / "log.jsonl")
    return ScoredRun(run, folder, metrics, rows)


def training_folder(folder: Path, run: Run) -> Path:
    """The folder of a run's run.json: above its `folder` if that has only an evaluation of it."""
    is_below = run.folder != run.seed_folder and folder.name == Path(run.folder).name
    return folder.parent if is_below and not (folder / "run.json").is_file() else folder


def read_identity(path: Path, stored: dict[str, Any]) -> Run:
    """The run that a metrics.json names.

    Raises InputError if a name is missing or of another type, or if the folder is that of another
    run: runs/{dataset}/{backbone}/{method}/seed{seed}, and below it perhaps the folder of its
    evaluation.
    """
    try:
        run = Run.model_validate(stored, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"{path}: {problem['loc'][0]}: {problem['msg']}; {MEASURE_AGAIN}"
        ) from None
    if not run.folder.isprintable():
        raise InputError(f"{path}: is of {run.folder!a}, no name of a run; {MEASURE_AGAIN}")
    named, parts = Path(run.folder).parts[1:], Path(os.path.abspath(path)).parts[:-1]
    if parts[-len(named) :] == named:
        return run
    for given in parts[-5:], parts[-6:]:
        if given[:1] == named[:1]:
            raise InputError(
                f"{path}: is of {'/'.join(named)} and lies in {'/'.join(given)}; {MEASURE_AGAIN}"
            )
    return run


def check_metrics(
    path: Path, stored: dict[str, Any], expected: dict[str, Any], predictions: Path
) -> None:
    """Raise InputError unless a metrics.json has the `expected` values, those of predictions."""
    for key in [*expected, *stored]:
        if key not in stored or key not in expected:
            fault = "has no" if key in expected else "has an unknown"
            raise InputError(f"{path}: {fault} {shorten(key)}; {MEASURE_AGAIN}")
    for key, right in expected.items():
        value = stored[key]
        if isinstance(right, int | float):
            is_right = is_number(value) and abs(value - right) <= TOLERANCE
        else:
            is_right = value == right
        if not is_right:
            raise InputError(
                f"{path}: {key} is {shorten(value)}, and {predictions} gives {right}; "
                f"{MEASURE_AGAIN}"
            )


def read_costs(path: Path) -> dict[str, float | None]:
    """The COSTS in a run.json, None where it lacks one; raises InputError for another value."""
    if not path.is_file():
        return dict.fromkeys(COSTS)
    record = read_json(path, RUN)
    for name in COSTS:
        value = record.get(name)
        is_absent = value is None and name == "best_step"
        if not is_absent and not (is_number(value) and value >= 0):
            raise InputError(f"{path}: {name} is {shorten(value)}, not a number; {RUN_AGAIN}")
    return {name: record.get(name) for name in COSTS}


def best_validation(log: Path) -> float | None:
    """The best VALIDATION in a run's log; None without a log, or if no line has it."""
    if not log.is_file():
        return None
    values = [line[VALIDATION] for line in read_log_fields(log, [VALIDATION])]
    return max((value for value in values if value is not None), default=None)


def read_log_fields(path: Path, fields: Sequence[str]) -> list[dict[str, float | None]]:
    """The `fields` of each line of a log.jsonl, None where a line lacks one.

    Raises InputError if the file is missing or malformed, or a field is not a finite number.
    """
    rows = []
    try:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            given = {name: value for name, value in json.loads(text).items() if name in fields}
            for name, value in given.items():
                if not is_number(value):
                    raise ValueError(f"line {number}: {name} is {shorten(value)}, not a number")
            rows.append({name: float(given[name]) if name in given else None for name in fields})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable log ({reason}); {RUN_AGAIN}") from None
    return rows


def is_number(value: Any) -> bool:
    """Whether a value in JSON is a finite number."""
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and abs(value) <= sys.float_info.max


def check_comparable(scored: list[ScoredRun]) -> None:
    """Raise InputError if a run comes twice, or two are not of the same evaluation.

    Two runs must agree in the options of `evaluation` that both have, and on a data set in rows.
    """
    seen: dict[str, ScoredRun] = {}
    first: dict[str, ScoredRun] = {}
    options: dict[str, tuple[str, ScoredRun]] = {}
    for each in scored:
        for name, value in read_spelling(each.run.evaluation).items():
            known, other = options.setdefault(name, (value, each))
            if value != known:
                raise InputError(
                    f"{other.folder} and {each.folder} have different rankings, by {name}={known} "
                    f"and {name}={value}; make the predictions of one again: {STAGES}"
                )
        twin = seen.setdefault(each.run.seed_folder, each)
        if twin is not each:
            raise InputError(f"{twin.folder} and {each.folder} are the same run; give one")
        other = first.setdefault(each.run.dataset, each)
        if not other.rows["row_id"].equals(each.rows["row_id"]):
            raise InputError(
                f"{other.folder} and {each.folder} have different test rows; make the "
                f"predictions of one again: {STAGES}"
            )
