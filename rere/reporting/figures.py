"""A table as bars: HR@10 and NDCG@10 of each method, with 95 % intervals over users."""

from pathlib import Path

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rere.config.run import NO_BACKBONE
from rere.files import replacing

METRICS = ("HR@10", "NDCG@10")
WIDTH = 6.75
"""Inches: two columns of a paper."""
# Grey without a backbone, else blue; they differ in luminance and print in grey.
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
# Without a date, the same table gives the same bytes.
FILE_METADATA = {".pdf": {"CreationDate": None}}


def figure(table: Path, outputs: list[Path]) -> None:
    """Draw a table's .csv, one row of panels per (dataset, backbone), to each of `outputs`.

    Methods without a backbone appear beside every backbone of their data set.
    """
    names = ("dataset", "backbone", "method")
    summary = pl.read_csv(table, schema_overrides=dict.fromkeys(names, pl.String))
    with rc_context(STYLE):
        save_figure(draw_bars(split_facets(summary)), outputs)


def save_figure(figure: Figure, outputs: list[Path]) -> None:
    """Save a figure to each output, in the format of its suffix: .pdf or .png."""
    for output in outputs:
        with replacing(output) as temporary:
            figure.savefig(temporary, metadata=FILE_METADATA.get(output.suffix))


def split_facets(summary: pl.DataFrame) -> list[pl.DataFrame]:
    """The table's rows of each (dataset, backbone), with the data set's rows without a backbone."""
    facets = []
    for rows in summary.partition_by("dataset", maintain_order=True):
        backbones = rows["backbone"].unique(maintain_order=True).to_list()
        chosen = [name for name in backbones if name != NO_BACKBONE] or [NO_BACKBONE]
        facets += [rows.filter(pl.col("backbone").is_in([name, NO_BACKBONE])) for name in chosen]
    return facets


def draw_bars(facets: list[pl.DataFrame]) -> Figure:
    """One row of panels for each facet, as high as its methods need."""
    heights = [0.24 * len(facet) + 0.5 for facet in facets]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.04, wspace=0.04)
    grid = figure.subplots(
        len(facets), len(METRICS), squeeze=False, sharey="row", height_ratios=heights
    )
    every = pl.concat(facets)
    for facet, row in zip(facets, grid, strict=True):
        for metric, axes in zip(METRICS, row, strict=True):
            draw_panel(axes, facet, metric)
            axes.set_title(metric, loc="right")
            # Backbones of a data set share a scale; a fifth of the width is left for numbers.
            largest = every.filter(dataset=facet["dataset"][0])[f"{metric}_high"].max()
            axes.set_xlim(0, 1.2 * largest or 1)
        row[0].set_title(facet_title(facet), loc="left", fontweight="bold")
    return figure


def draw_panel(axes: Axes, facet: pl.DataFrame, metric: str) -> None:
    """Draw a bar, an interval and a number for each method, from top to bottom."""
    positions = range(len(facet))
    colours = [FILL[name == NO_BACKBONE] for name in facet["backbone"]]
    low, high = facet[f"{metric}_low"], facet[f"{metric}_high"]
    axes.barh(positions, facet[metric], height=0.72, color=colours)
    axes.hlines(positions, low, high, color="black", linewidth=0.9)
    for position, value, end in zip(positions, facet[metric], high, strict=True):
        axes.annotate(
            f"{value:.3f}",
            (max(value, end), position),
            xytext=(3, 0),
            textcoords="offset points",
            verticalalignment="center_baseline",
        )
    axes.set_yticks(positions, facet["method"])
    axes.set_ylim(len(facet) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)


def facet_title(facet: pl.DataFrame) -> str:
    """The data set and, if there is one, the backbone of a facet."""
    backbones = [name for name in facet["backbone"].unique() if name != NO_BACKBONE]
    return ", ".join([facet["dataset"][0], *backbones])
