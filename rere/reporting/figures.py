"""A table as bars: HR@10 and NDCG@10 of each method, with 95 % intervals over users."""

from pathlib import Path

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rere.config.run import NO_BACKBONE
from rere.files import replacing

PANELS = ("HR@10", "NDCG@10")
WIDTH = 6.75
"""Inches: two columns of a paper."""
# Apart in luminance, so that they are apart in grey too.
FILL = {True: "#c9c9c9", False: "#5b9bc8"}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}
# Without a date the same table gives the same bytes.
METADATA = {".pdf": {"CreationDate": None}}


def figure(table: Path, outputs: list[Path]) -> None:
    """Draw a table's .csv, one row of panels a (dataset, backbone), in each format asked for.

    Methods without a backbone are drawn beside every backbone of their data set. The format
    follows an output's suffix: .pdf, .png.
    """
    names = ("dataset", "backbone", "method")
    summary = pl.read_csv(table, schema_overrides=dict.fromkeys(names, pl.String))
    with rc_context(STYLE):
        write(draw(facets(summary)), outputs)


def write(drawn: Figure, outputs: list[Path]) -> None:
    """Save a figure in each format asked for; it follows an output's suffix."""
    for output in outputs:
        with replacing(output) as temporary:
            drawn.savefig(temporary, metadata=METADATA.get(output.suffix))


def facets(summary: pl.DataFrame) -> list[pl.DataFrame]:
    """The table's rows for each (dataset, backbone), those without a backbone in all of them."""
    parts = []
    for rows in summary.partition_by("dataset", maintain_order=True):
        backbones = rows["backbone"].unique(maintain_order=True).to_list()
        chosen = [name for name in backbones if name != NO_BACKBONE] or [NO_BACKBONE]
        parts += [rows.filter(pl.col("backbone").is_in([name, NO_BACKBONE])) for name in chosen]
    return parts


def draw(parts: list[pl.DataFrame]) -> Figure:
    """Panels side by side for each facet, as high as its methods need."""
    heights = [0.24 * len(part) + 0.5 for part in parts]
    drawn = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    drawn.get_layout_engine().set(hspace=0.04, wspace=0.04)
    grid = drawn.subplots(
        len(parts), len(PANELS), squeeze=False, sharey="row", height_ratios=heights
    )
    shown = pl.concat(parts)
    for part, row in zip(parts, grid, strict=True):
        for metric, axes in zip(PANELS, row, strict=True):
            bars(axes, part, metric)
            axes.set_title(metric, loc="right")
            # One scale a data set, so that its backbones compare; the fifth is for the numbers.
            largest = shown.filter(dataset=part["dataset"][0])[f"{metric}_high"].max()
            axes.set_xlim(0, 1.2 * largest or 1)
        row[0].set_title(heading(part), loc="left", fontweight="bold")
    return drawn


def bars(axes: Axes, part: pl.DataFrame, metric: str) -> None:
    """A bar, an interval and a number for each method, the first at the top."""
    positions = range(len(part))
    colours = [FILL[name == NO_BACKBONE] for name in part["backbone"]]
    low, high = part[f"{metric}_low"], part[f"{metric}_high"]
    axes.barh(positions, part[metric], height=0.72, color=colours)
    axes.hlines(positions, low, high, color="black", linewidth=0.9)
    for position, value, end in zip(positions, part[metric], high, strict=True):
        axes.annotate(
            f"{value:.3f}",
            (max(value, end), position),
            xytext=(3, 0),
            textcoords="offset points",
            verticalalignment="center_baseline",
        )
    axes.set_yticks(positions, part["method"])
    axes.set_ylim(len(part) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)


def heading(part: pl.DataFrame) -> str:
    """The data set and, if there is one, the backbone of a facet."""
    backbones = [name for name in part["backbone"].unique() if name != NO_BACKBONE]
    return ", ".join([part["dataset"][0], *backbones])
