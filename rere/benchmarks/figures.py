"""Benchmarks as curves: time and memory, and the quality of rollouts."""

from pathlib import Path

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from rere.benchmarks import rollouts
from rere.benchmarks.speed import curves
from rere.benchmarks.speed.preprocessing import PLAIN, PREPROCESSING, REVIEWS
from rere.reporting.figures import STYLE, WIDTH, save_figure

CURVES_STYLE = {**STYLE, "axes.spines.left": True, "ytick.major.size": 3.5}
# Curves differ in luminance, dashes and markers, so that they differ in grey too.
THEIRS = {"color": "#b5b5b5", "marker": "s"}
OURS = {"color": "black", "marker": "^"}
SEARCHES = {
    "generate": {"label": "transformers generate", **THEIRS},
    "vocabulary": {"label": "rere, vocabulary", "color": "#3a7fb0", "marker": "o", "ls": "--"},
    "catalogue": {"label": "rere, catalogue", **OURS},
}
DATA_STAGES = {
    PLAIN: {"label": "plain Python", **THEIRS},
    PREPROCESSING: {"label": "rere preprocess", **OURS},
}
STRATEGIES = {
    ("beam", "catalogue"): ("beam, catalogue", "black", "^", "-"),
    ("beam", "vocabulary"): ("beam, vocabulary", "#3a7fb0", "o", "--"),
    ("stochastic_beam", "catalogue"): ("stochastic beam", "#8c3b12", "D", "-."),
    ("oversample", "catalogue"): ("oversample", "#6f9a2a", "v", (0, (5, 3))),
    ("iid", "catalogue"): ("iid", "#d99a2b", "x", ":"),
    ("unconstrained", "vocabulary"): ("unconstrained", "#b5b5b5", "s", "-"),
}
SPEED_HEIGHT, ROLLOUTS_HEIGHT = 2.3, 2.7
"""Inches per row of panels."""


def draw_speed(table: Path, outputs: list[Path]) -> None:
    """Draw a {benchmark}.curves.csv to each output; the suffix sets the format."""
    with rc_context(CURVES_STYLE):
        save_figure(speed_figure(pl.read_csv(table, schema=curves.SCHEMA)), outputs)


def draw_rollouts(table: Path, outputs: list[Path]) -> None:
    """Draw a rollouts benchmark's .csv to each output; the suffix sets the format."""
    with rc_context(CURVES_STYLE):
        save_figure(rollouts_figure(pl.read_csv(table, schema=rollouts.SCHEMA)), outputs)


def speed_figure(points: pl.DataFrame) -> Figure:
    """Draw seconds per row of the searches, and below, if measured, the cost of preprocessing."""
    preprocessing = points.filter(panel=REVIEWS)
    num_rows = 1 if preprocessing.is_empty() else 2
    figure = Figure(figsize=(WIDTH, SPEED_HEIGHT * num_rows), layout="constrained")
    above, *below = [figure] if num_rows == 1 else figure.subfigures(num_rows, 1)
    panels = above.subplots(1, len(curves.PANELS), sharey=True)
    for name, axes in zip(curves.PANELS, panels, strict=True):
        draw_costs(axes, points.filter(panel=name), "seconds", SEARCHES)
        axes.set_xlabel(name)
    panels[0].set_ylabel("seconds per row")
    draw_legend(above, panels[0])
    for part in below:
        panels = part.subplots(1, 2)
        labels = {"seconds": "seconds", "peak_mb": "peak MB"}
        for axes, (column, label) in zip(panels, labels.items(), strict=True):
            draw_costs(axes, preprocessing, column, DATA_STAGES)
            axes.set(xlabel=REVIEWS, ylabel=label)
        draw_legend(part, panels[0])
    return figure


def rollouts_figure(rows: pl.DataFrame) -> Figure:
    """Draw distinct items and hits by group size, and missed top 10s by number of beams."""
    figure = Figure(figsize=(WIDTH, ROLLOUTS_HEIGHT), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    distinct, hits, missed = figure.subplots(1, 3)
    # Numbers of beams that are not group sizes are only compared with the true top 10.
    sizes = rows.filter(strategy="iid")["candidates"].to_list()
    groups = rows.filter(pl.col("candidates").is_in(sizes))
    draw_quality(distinct, groups, pl.col("distinct") / pl.col("candidates"))
    distinct.set(xlabel="candidates", ylabel="distinct items per candidate")
    draw_quality(hits, groups, pl.col("hit_rate"))
    hits.set(xlabel="candidates", ylabel="share of rows with the target")
    draw_quality(missed, rows, pl.col("missed_top10"))
    missed.set(xlabel="beams", ylabel="share of rows with an incomplete top 10")
    draw_legend(figure, hits, num_columns=3)
    return figure


def draw_costs(axes: Axes, points: pl.DataFrame, column: str, styles: dict[str, dict]) -> None:
    """Draw one panel's curves of a column against x, both axes logarithmic."""
    for what, style in styles.items():
        curve = points.filter(what=what)
        axes.plot(curve["x"], curve[column], markersize=3.5, linewidth=1.2, **style)
    axes.set_yscale("log")
    set_ticks(axes, points["x"])


def draw_quality(axes: Axes, rows: pl.DataFrame, value: pl.Expr) -> None:
    """Draw one panel's curves of a share against the logarithm of the number of candidates."""
    points = rows.select("strategy", "scoring", "candidates", value.alias("value")).drop_nulls()
    for (strategy, scoring), (label, color, marker, dashes) in STRATEGIES.items():
        curve = points.filter(strategy=strategy, scoring=scoring)
        if curve.is_empty():
            continue
        style = {"color": color, "marker": marker, "linestyle": dashes, "label": label}
        # Unclipped, because many curves end on the axis.
        style |= {"markersize": 3.5, "linewidth": 1.2, "clip_on": False, "zorder": 3}
        axes.plot(curve["candidates"], curve["value"], **style)
    axes.set_ylim(bottom=0)
    set_ticks(axes, points["candidates"])


def set_ticks(axes: Axes, values: pl.Series) -> None:
    """Make the x axis logarithmic, with a tick at each value."""
    axes.set_xscale("log")
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    ticks = values.unique().sort().to_list()
    axes.set_xticks(ticks, map(abbreviate, ticks))
    axes.minorticks_off()


def draw_legend(figure: FigureBase, axes: Axes, num_columns: int | None = None) -> None:
    handles, labels = axes.get_legend_handles_labels()
    num_columns = num_columns or len(labels)
    figure.legend(handles, labels, loc="outside upper center", ncols=num_columns, frameon=False)


def abbreviate(number: int) -> str:
    """Return 1000000 as 1M, 1000 as 1k."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)
