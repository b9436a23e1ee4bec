"""Benchmarks as curves: time and memory, and the quality of rollouts."""

from pathlib import Path

import polars as pl
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rere.benchmarks import rollouts
from rere.benchmarks.speed import curves
from rere.benchmarks.speed.preprocessing import PREPROCESSING, REVIEWS
from rere.reporting.figures import STYLE, move_legend, save_figure

LABELS = {
    "generate": "transformers generate",
    "vocabulary": "rere, vocabulary",
    "catalogue": "rere, catalogue",
    PREPROCESSING: "rere preprocess",
}
ROLLOUT_SHARES = {
    "distinct items per candidate": pl.col("distinct") / pl.col("candidates"),
    "share of rows with the target": pl.col("hit_rate"),
    "share with an incomplete top 10": pl.col("missed_top10"),
}


def draw_speed(table: Path, outputs: list[Path]) -> None:
    """Draw a {benchmark}.curves.csv to each output; the suffix sets the format."""
    with rc_context(fname=STYLE):
        save_figure(speed_figure(pl.read_csv(table, schema=curves.SCHEMA)), outputs)


def draw_rollouts(table: Path, outputs: list[Path]) -> None:
    """Draw a rollouts benchmark's .csv to each output; the suffix sets the format."""
    with rc_context(fname=STYLE):
        save_figure(rollouts_figure(pl.read_csv(table, schema=rollouts.SCHEMA)), outputs)


def speed_figure(points: pl.DataFrame) -> Figure:
    """Draw seconds per row of the searches, and below, if measured, the cost of preprocessing."""
    points = points.with_columns(pl.col("what").replace(LABELS))
    rows = [[(panel, "seconds", "seconds per row") for panel in curves.PANELS]]
    if REVIEWS in points["panel"]:
        rows.append([(REVIEWS, "seconds", "seconds"), (REVIEWS, "peak_mb", "peak MB")])
    figure = Figure(figsize=(None, 2.3 * len(rows)))
    parts = figure.subfigures(len(rows), squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        panels = part.subplots(1, len(row), sharey=row is rows[0])
        for axes, (panel, column, label) in zip(panels, row, strict=True):
            draw_lines(axes, points.filter(panel=panel), "x", column, "what")
            axes.set(yscale="log", xlabel=panel, ylabel=label)
        move_legend(part)
    return figure


def rollouts_figure(rows: pl.DataFrame) -> Figure:
    """Draw distinct items and hits by group size, and missed top 10s by number of beams."""
    # Numbers of beams that are not group sizes are only compared with the true top 10.
    sizes = rows.filter(strategy="iid")["candidates"].to_list()
    beam = pl.when(strategy="beam").then(pl.format("beam, {}", "scoring"))
    label = beam.otherwise(pl.col("strategy").str.replace("_", " "))
    rows = rows.filter(pl.col("strategy") != rollouts.CERTIFIED)
    rows = rows.select("candidates", strategy=label, **ROLLOUT_SHARES)
    groups = rows.filter(pl.col("candidates").is_in(sizes))
    figure = Figure()
    panels = figure.subplots(1, len(ROLLOUT_SHARES))
    for axes, name, points in zip(panels, ROLLOUT_SHARES, (groups, groups, rows), strict=True):
        draw_lines(axes, points, "candidates", name, "strategy")
        axes.axhline(0, linewidth=0)  # so that the scale includes zero
    axes.set_xlabel("beams")
    move_legend(figure)
    return figure


def draw_lines(axes: Axes, points: pl.DataFrame, x: str, y: str, name: str) -> None:
    """Draw a line for each value of the column `name`, with a tick at each logarithmic `x`."""
    data = points.to_dict(as_series=False)
    sns.lineplot(data, x=x, y=y, hue=name, style=name, markers=True, errorbar=None, ax=axes)
    axes.set_xscale("log")
    axes.set_xticks(points.drop_nulls(y)[x].unique())
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
