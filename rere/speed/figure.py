"""The measurements as curves: seconds a row against catalogue size, beams and prompt length."""

from pathlib import Path

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rere.reporting.figures import STYLE, WIDTH, write
from rere.speed.curves import PANELS, SCHEMA

# Apart in luminance, dashes and markers, so that they are apart in grey too.
LINES = {
    "generate": {"label": "transformers generate", "color": "#b5b5b5", "marker": "s"},
    "vocabulary": {"label": "rere, vocabulary", "color": "#3a7fb0", "marker": "o", "ls": "--"},
    "catalogue": {"label": "rere, catalogue", "color": "black", "marker": "^"},
}
HEIGHT = 2.3


def figure(curves: Path, outputs: list[Path]) -> None:
    """Draw a speed.curves.csv in each format asked for; it follows an output's suffix."""
    points = pl.read_csv(curves, schema=SCHEMA)
    with rc_context({**STYLE, "axes.spines.left": True, "ytick.major.size": 3.5}):
        write(draw(points), outputs)


def draw(points: pl.DataFrame) -> Figure:
    """A panel for each of PANELS, on one scale of seconds."""
    drawn = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    row = drawn.subplots(1, len(PANELS), sharey=True)
    for panel, axes in zip(PANELS, row, strict=True):
        lines(axes, points.filter(panel=panel))
        axes.set_xlabel(panel)
    row[0].set_ylabel("seconds a row")
    drawn.legend(
        *row[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    return drawn


def lines(axes: Axes, points: pl.DataFrame) -> None:
    """One panel's curves, both axes logarithmic."""
    for what, style in LINES.items():
        curve = points.filter(what=what)
        axes.plot(curve["x"], curve["seconds"], markersize=3.5, linewidth=1.2, **style)
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
