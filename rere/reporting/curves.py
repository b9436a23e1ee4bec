"""Training curves: validation NDCG, reward, hits, distinct items and KL, by step and by seconds.

A line a method, the mean of its seeds; validations in a band from the lowest seed to the highest.
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
from rere.reporting.figures import STYLE, WIDTH, write

PANELS = {
    "eval_ndcg@10": "valid NDCG@10",
    "reward": "reward",
    "hit_rate": "hit rate",
    "distinct": "distinct items",
    "kl": "KL",
}
"""Fields of a log's lines, a row of panels each, where any log has it."""
AXES = {"step": "step", "seconds": "seconds"}
HEIGHT = 1.2
"""Inches of a row."""
SMOOTHED = 12
"""A step's value is shown as a mean over a window of this part of the run; validations are not."""
# Colours apart in luminance, and dashes, so that sixteen methods are apart in grey too.
COLOURS = ("black", "#0072b2", "#e69f00", "#bbbbbb")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.2, 1, 1.2)))
COLUMN, CHARACTER, LINE = 0.6, 0.07, 0.17
"""Inches that a column of the legend takes, each character of the longest label, and a line."""


class Curve(NamedTuple):
    """A run's log: the method that is its label, and a frame of step, seconds and PANELS."""

    label: str
    points: pl.DataFrame


def curves(runs: list[Path], outputs: list[Path]) -> None:
    """Draw the logs of run folders, a line and a style a method, in each format asked for.

    Folders are {dataset}/{backbone}/{method}/seed{seed}; what differs between them is in the
    legend. Raises InputError for a log that is missing or malformed, and where none holds a
    field of PANELS.
    """
    drawn = [
        Curve(label, read_log(run / "log.jsonl"))
        for run, label in zip(runs, labels(runs), strict=True)
    ]
    if not panels(drawn):
        raise InputError(f"{runs[0]}/log.jsonl: holds none of {', '.join(PANELS)}; train with rl")
    with rc_context({**STYLE, "axes.spines.left": True, "ytick.major.size": 3.5}):
        write(draw(drawn), outputs)


def read_log(path: Path) -> pl.DataFrame:
    """A log.jsonl as a frame of step, seconds and PANELS; null where a line lacks the field."""
    schema = dict.fromkeys((*AXES, *PANELS), pl.Float64)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [{name: line.get(name) for name in schema} for line in lines]
        points = pl.DataFrame(rows, schema=schema)
    except (OSError, ValueError, AttributeError, TypeError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable log ({reason})") from None
    # A validation follows its step, whose time it may not repeat.
    return points.with_columns(pl.col("seconds").forward_fill())


def labels(runs: Sequence[Path]) -> list[str]:
    """For each run what tells its method from the others': of data set, backbone and method."""
    names = [run.parts[-4:-1] for run in runs]
    differ = [len(set(each)) > 1 for each in zip(*names, strict=False)]
    return [
        ", ".join(name for name, told in zip(each, differ, strict=False) if told) or each[-1]
        for each in names
    ]


def panels(drawn: Sequence[Curve]) -> list[str]:
    """The fields that any of the curves has."""
    return [name for name in PANELS if any(known(curve.points, name) for curve in drawn)]


def known(points: pl.DataFrame, name: str) -> bool:
    return points[name].null_count() < len(points)


def draw(drawn: Sequence[Curve]) -> Figure:
    """A row of panels for each field, a column for each of AXES that any log has."""
    names = panels(drawn)
    xs = [x for x in AXES if any(known(curve.points, x) for curve in drawn)]
    methods: dict[str, list[pl.DataFrame]] = {}
    for label, points in drawn:
        methods.setdefault(label, []).append(points)
    ncols = max(1, min(4, int(WIDTH / (COLUMN + CHARACTER * max(map(len, methods))))))
    height = HEIGHT * len(names) + LINE * math.ceil(len(methods) / ncols) + 0.4
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(names), len(xs), squeeze=False, sharex="col", sharey="row")
    for name, row in zip(names, grid, strict=True):
        for x, axes in zip(xs, row, strict=True):
            lines(axes, methods, x, name)
        row[0].set_ylabel(PANELS[name])
    for x, axes in zip(xs, grid[-1], strict=True):
        axes.set_xlabel(AXES[x])
    figure.align_ylabels(grid[:, 0])
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=ncols,
        frameon=False,
        handlelength=3,
    )
    return figure


def lines(axes: Axes, methods: Mapping[str, Sequence[pl.DataFrame]], x: str, name: str) -> None:
    """One panel: a line for each method, of all its logs."""
    is_validation = name.startswith("eval_")
    for number, (label, logs) in enumerate(methods.items()):
        points = over_seeds(logs, x, name)
        if not is_validation:
            window = max(1, len(points) // SMOOTHED)
            points = points.with_columns(
                pl.col("mean").rolling_mean(window, min_samples=1, center=True)
            )
        style = look(number)
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


def over_seeds(logs: Sequence[pl.DataFrame], x: str, name: str) -> pl.DataFrame:
    """The field at each step, over a method's logs: x (their mean), mean, low and high."""
    points = pl.concat(logs).filter(pl.all_horizontal(pl.col(x, name).is_not_null()))
    value = pl.col(name)
    return (
        points.group_by("step")
        .agg(pl.col(x).mean().alias("x"), mean=value.mean(), low=value.min(), high=value.max())
        .sort("step")
    )


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of a figure's method, counted from 0; the 17th is the first again."""
    dashes, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[dashes % len(DASHES)]}
