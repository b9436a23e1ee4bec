"""Training curves: validation NDCG, reward, hit rate, distinct items and KL, by step and seconds.

One line per method, the mean of its seeds. Validations have a band from the lowest to the highest
seed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rere.errors import InputError
from rere.reporting.figures import STYLE, WIDTH, save_figure

FIELDS = {
    "eval_ndcg@10": "valid NDCG@10",
    "reward": "reward",
    "hit_rate": "hit rate",
    "distinct": "distinct items",
    "kl": "KL",
}
"""Fields of the step log and their axis labels; each field that a log has gets a row of panels."""
X_AXES = ("step", "seconds")
ROW_HEIGHT = 1.2
"""Inches."""
SMOOTHING = 12
"""Values of steps are averaged over a window of this fraction of the run; validations are not."""
# Colours differ in luminance and lines in dashes, so sixteen methods can be told apart in grey.
COLOURS = ("black", "#0072b2", "#e69f00", "#bbbbbb")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.2, 1, 1.2)))
LEGEND_COLUMN, LEGEND_CHARACTER, LEGEND_LINE = 0.6, 0.07, 0.17
"""Inches: the width of a legend column without text and of a character, and the line height."""


class Curve(NamedTuple):
    """The step log of one run, with the label of its method."""

    label: str
    points: pl.DataFrame  # columns X_AXES and FIELDS


def curves(runs: list[Path], outputs: list[Path]) -> None:
    """Draw the step logs of run folders, one line per method, to each of `outputs`.

    Folders are {dataset}/{backbone}/{method}/seed{seed}; the legend shows the names that differ.
    Raises InputError if a log is missing or malformed, or if no log has any of FIELDS.
    """
    logs = [
        Curve(label, read_log(run / "log.jsonl"))
        for run, label in zip(runs, label_runs(runs), strict=True)
    ]
    if not logged_fields(logs):
        raise InputError(f"{runs[0]}/log.jsonl: has none of {', '.join(FIELDS)}; train with rl")
    with rc_context({**STYLE, "axes.spines.left": True, "ytick.major.size": 3.5}):
        save_figure(draw_curves(logs), outputs)


def read_log(path: Path) -> pl.DataFrame:
    """A log.jsonl as a frame with columns X_AXES and FIELDS; null where a line lacks a field."""
    schema = dict.fromkeys((*X_AXES, *FIELDS), pl.Float64)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [{name: line.get(name) for name in schema} for line in lines]
        points = pl.DataFrame(rows, schema=schema)
    except (OSError, ValueError, AttributeError, TypeError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable log ({reason})") from None
    # A validation follows the line of its step and may not repeat its seconds.
    return points.with_columns(pl.col("seconds").forward_fill())


def label_runs(runs: Sequence[Path]) -> list[str]:
    """A label for each run: those of its data set, backbone and method that differ between runs."""
    names = [run.parts[-4:-1] for run in runs]
    differ = [len(set(each)) > 1 for each in zip(*names, strict=False)]
    return [
        ", ".join(name for name, differs in zip(each, differ, strict=False) if differs) or each[-1]
        for each in names
    ]


def logged_fields(logs: Sequence[Curve]) -> list[str]:
    """The FIELDS that at least one log has values of."""
    return [name for name in FIELDS if any(has_values(curve.points, name) for curve in logs)]


def has_values(points: pl.DataFrame, name: str) -> bool:
    return points[name].null_count() < len(points)


def draw_curves(logs: Sequence[Curve]) -> Figure:
    """A row of panels for each logged field, a column for each of X_AXES that any log has."""
    names = logged_fields(logs)
    xs = [x for x in X_AXES if any(has_values(curve.points, x) for curve in logs)]
    methods: dict[str, list[pl.DataFrame]] = {}
    for label, points in logs:
        methods.setdefault(label, []).append(points)
    column = LEGEND_COLUMN + LEGEND_CHARACTER * max(map(len, methods))
    ncols = max(1, min(4, int(WIDTH / column)))
    height = ROW_HEIGHT * len(names) + LEGEND_LINE * math.ceil(len(methods) / ncols) + 0.4
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(names), len(xs), squeeze=False, sharex="col", sharey="row")
    for name, row in zip(names, grid, strict=True):
        for x, axes in zip(xs, row, strict=True):
            draw_panel(axes, methods, x, name)
        row[0].set_ylabel(FIELDS[name])
    for x, axes in zip(xs, grid[-1], strict=True):
        axes.set_xlabel(x)
    figure.align_ylabels(grid[:, 0])
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=ncols,
        frameon=False,
        handlelength=3,
    )
    return figure


def draw_panel(
    axes: Axes, methods: Mapping[str, Sequence[pl.DataFrame]], x: str, name: str
) -> None:
    """Draw one field against `x`: a line for each method, averaged over its logs."""
    is_validation = name.startswith("eval_")
    for number, (label, logs) in enumerate(methods.items()):
        points = average_over_seeds(logs, x, name)
        if not is_validation:
            window = max(1, len(points) // SMOOTHING)
            points = points.with_columns(
                pl.col("mean").rolling_mean(window, min_samples=1, center=True)
            )
        style = line_style(number)
        axes.plot(
            points["x"],
            points["mean"],
            label=label,
            **style,
            linewidth=1.0,
            marker="." if is_validation else None,
            markersize=4,
        )
        if is_validation:
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(points["x"], points["low"], points["high"], **band)
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    axes.locator_params(axis="y", nbins=4)


def average_over_seeds(logs: Sequence[pl.DataFrame], x: str, name: str) -> pl.DataFrame:
    """A field at each step over a method's logs: mean `x`, and the field's mean, low and high."""
    points = pl.concat(logs).filter(pl.all_horizontal(pl.col(x, name).is_not_null()))
    value = pl.col(name)
    return (
        points.group_by("step")
        .agg(pl.col(x).mean().alias("x"), mean=value.mean(), low=value.min(), high=value.max())
        .sort("step")
    )


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of a figure's method, numbered from 0; styles repeat after sixteen."""
    dashes, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[dashes % len(DASHES)]}
