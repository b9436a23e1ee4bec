"""Training curves: validation NDCG, reward, hit rate, distinct items and KL, by step and seconds.

One line per method, the mean of its seeds. Validations have a band from the lowest to the highest
seed.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import seaborn as sns
from matplotlib import rc_context
from matplotlib.figure import Figure

from rere.errors import InputError
from rere.reporting.figures import STYLE, move_legend, save_figure
from rere.reporting.runs import read_log_fields

VALIDATION = "valid NDCG@10"
FIELDS = {
    "eval_ndcg@10": VALIDATION,
    "reward": "reward",
    "hit_rate": "hit rate",
    "distinct": "distinct items",
    "kl": "KL",
}
"""Fields of the step log and their axis labels; each field that a log has gets a row of panels."""
X_AXES = ("step", "seconds")
SMOOTHING = 12
"""Values of steps are averaged over windows of a twelfth of the run; validations are not."""


def curves(runs: list[Path], outputs: list[Path]) -> None:
    """Draw the step logs of run folders, one line per method, to each of `outputs`.

    Folders are {dataset}/{backbone}/{method}/seed{seed}; the legend shows the names that differ.
    Raises InputError if a log is missing or malformed, or if no log has any of FIELDS.
    """
    points = read_logs(runs)
    if not set(points.columns) & set(FIELDS.values()):
        raise InputError(f"{runs[0]}/log.jsonl: has none of {', '.join(FIELDS)}; train with rl")
    with rc_context(fname=STYLE):
        save_figure(draw_curves(points), outputs)


def read_logs(runs: Sequence[Path]) -> pl.DataFrame:
    """The smoothed logs of all runs, with a column `method`, without columns that are all null."""
    logs = [
        read_log(run / "log.jsonl").with_columns(method=pl.lit(label))
        for run, label in zip(runs, label_runs(runs), strict=True)
    ]
    points = pl.concat(logs)
    return points[[column.name for column in points if column.null_count() < len(points)]]


def read_log(path: Path) -> pl.DataFrame:
    """A log.jsonl as one row per step with columns X_AXES and labels of FIELDS, null if missing."""
    fields = (*X_AXES, *FIELDS)
    lines = read_log_fields(path, fields)
    if not lines:
        raise InputError(f"{path}: has no lines; train the run again")
    points = pl.DataFrame(lines, schema=dict.fromkeys(fields, pl.Float64)).rename(FIELDS)
    stepless = points.with_row_index(offset=1).filter(pl.col("step").is_null())
    if len(stepless):
        raise InputError(f"{path}: line {stepless['index'][0]} has no step; train with rl")
    # A validation has a line of its own, after the line of its step.
    points = points.group_by("step").agg(pl.all().drop_nulls().last()).sort("step")
    window = max(1, len(points) // SMOOTHING)
    # Step 0 has a validation only, not the mean of the steps after it.
    return points.with_columns(
        pl.when(pl.col(name).is_not_null()).then(
            pl.col(name).rolling_mean(window, min_samples=1, center=True)
        )
        for name in FIELDS.values()
        if name != VALIDATION
    )


def label_runs(runs: Sequence[Path]) -> list[str]:
    """A label for each run: those of its data set, backbone and method that differ between runs."""
    names = [run.parts[-4:-1] for run in runs]
    differ = [len(set(each)) > 1 for each in zip(*names, strict=False)]
    return [
        ", ".join(name for name, differs in zip(each, differ, strict=False) if differs) or each[-1]
        for each in names
    ]


def draw_curves(points: pl.DataFrame) -> Figure:
    """A row of panels for each field, a column for each of X_AXES."""
    names = [name for name in FIELDS.values() if name in points.columns]
    xs = [x for x in X_AXES if x in points.columns]
    # A method's seeds share their mean seconds, so that seaborn averages over them.
    points = points.with_columns(pl.col(xs).mean().over("method", "step"))
    data = points.to_dict(as_series=False)
    figure = Figure(figsize=(None, 0.7 + 1.3 * len(names)))
    grid = figure.subplots(len(names), len(xs), squeeze=False, sharex="col", sharey="row")
    for name, row in zip(names, grid, strict=True):
        is_validation = name == VALIDATION
        for x, axes in zip(xs, row, strict=True):
            sns.lineplot(
                data,
                x=x,
                y=name,
                hue="method",
                style="method",
                markers=is_validation,
                errorbar=("pi", 100) if is_validation else None,
                err_kws={"alpha": 0.1, "linewidth": 0} if is_validation else None,
                ax=axes,
            )
    figure.align_ylabels(grid[:, 0])
    move_legend(figure)
    return figure
