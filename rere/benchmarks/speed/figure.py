"""The measurements as curves: a search's seconds a row, and what preprocessing takes.

Above, seconds a row of a search against catalogue size, beams and prompt length; below, where they
were measured, seconds and MB of preprocessing against the number of reviews.
"""

from pathlib import Path

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from rere.reporting.figures import STYLE, WIDTH, write
from rere.benchmarks.speed.curves import PANELS, SCHEMA
from rere.benchmarks.speed.preprocessing import GROWTH, PLAIN, PREPROCESSING

# Apart in luminance, dashes and markers, so that they are apart in grey too.
THEIRS = {"color": "#b5b5b5", "marker": "s"}
OURS = {"color": "black", "marker": "^"}
SEARCHES = {
    "generate": {"label": "transformers generate", **THEIRS},
    "vocabulary": {"label": "rere, vocabulary", "color": "#3a7fb0", "marker": "o", "ls": "--"},
    "catalogue": {"label": "rere, catalogue", **OURS},
}
SIDES = {
    PLAIN: {"label": "plain Python", **THEIRS},
    PREPROCESSING: {"label": "rere preprocess", **OURS},
}
HEIGHT = 2.3
"""Inches of a row of panels."""


def figure(curves: Path, outputs: list[Path]) -> None:
    """Draw a speed.curves.csv in each format asked for; it follows an output's suffix."""
    points = pl.read_csv(curves, schema=SCHEMA)
    with rc_context({**STYLE, "axes.spines.left": True, "ytick.major.size": 3.5}):
        write(draw(points), outputs)


def draw(points: pl.DataFrame) -> Figure:
    """A panel for each of PANELS, on one scale of seconds, and two of preprocessing."""
    grown = points.filter(panel=GROWTH)
    heights = 1 if grown.is_empty() else 2
    drawn = Figure(figsize=(WIDTH, HEIGHT * heights), layout="constrained")
    above, *below = [drawn] if heights == 1 else drawn.subfigures(heights, 1)
    row = above.subplots(1, len(PANELS), sharey=True)
    for panel, axes in zip(PANELS, row, strict=True):
        lines(axes, points.filter(panel=panel), "seconds", SEARCHES)
        axes.set_xlabel(panel)
    row[0].set_ylabel("seconds a row")
    legend(above, row[0])
    for part in below:
        row = part.subplots(1, 2)
        for axes, column, label in zip(
            row, ("seconds", "peak_mb"), ("seconds", "MB at the peak"), strict=True
        ):
            lines(axes, grown, column, SIDES)
            axes.set_xlabel(GROWTH)
            axes.set_ylabel(label)
        legend(part, row[0])
    return drawn


def legend(part: FigureBase, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    part.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def lines(axes: Axes, points: pl.DataFrame, column: str, styles: dict[str, dict]) -> None:
    """One panel's curves, both axes logarithmic."""
    for what, style in styles.items():
        curve = points.filter(what=what)
        axes.plot(curve["x"], curve[column], markersize=3.5, linewidth=1.2, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    ticks = points["x"].unique().sort().to_list()
    axes.set_xticks(ticks, [short(x) for x in ticks])
    axes.minorticks_off()


def short(number: int) -> str:
    """1000000 as 1M, 1000 as 1k."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)
