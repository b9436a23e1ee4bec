"""The design space of a table: one panel per axis, with the methods that differ on it."""

from pathlib import Path

import polars as pl
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rere.config.study import DesignSpace
from rere.errors import InputError, hint
from rere.reporting.figures import STYLE, plain, read_table, save_figure
from rere.reporting.markup import split_facets

MAX_COLUMNS = 2


def axes_figure(table: Path, outputs: list[Path], options: DesignSpace) -> None:
    """Draw the last metric of a table's .csv, one panel per axis, to each of `outputs`.

    Raises InputError for an axis with a method that the table lacks.
    """
    summary = read_table(table, options.metrics[-1:])
    methods = list(dict.fromkeys(summary["method"]))
    for name in [name for axis in options.axes.values() for name in axis]:
        if name not in methods:
            raise InputError(f"{table}: axes: has no {name}; {hint(name, methods)}")
    with rc_context(fname=STYLE):
        save_figure(draw_axes(summary, options), outputs)


def draw_axes(summary: pl.DataFrame, options: DesignSpace) -> Figure:
    """A panel for each axis of each (dataset, backbone), two beside each other."""
    metric = options.metrics[-1]
    facets = split_facets(summary, options)
    longest = max(map(len, options.axes.values()))
    num_columns = min(MAX_COLUMNS, len(options.axes))
    per_facet = -(-len(options.axes) // num_columns)
    height = (0.17 * longest + 0.55) * per_facet * len(facets)
    figure = Figure(figsize=(None, height))
    grid = figure.subplots(per_facet * len(facets), num_columns, squeeze=False, sharex=True)
    for number, (title, facet) in enumerate(facets):
        rows = grid[number * per_facet : (number + 1) * per_facet]
        panels = [panel for row in rows for panel in row]
        for panel, (axis, names) in zip(panels, options.axes.items(), strict=False):
            chosen = [facet.filter(method=name) for name in names]
            draw_axis(panel, pl.concat(chosen), metric, options)
            where = f" ({title})" if len(facets) > 1 else ""
            panel.set_title(plain(axis + where), loc="left", fontweight="bold")
            # Panels differ in their numbers of methods: all rows are equally high.
            panel.set_ylim(longest - 0.5, -0.5)
            panel.tick_params(labelbottom=True)
        for panel in panels[len(options.axes) :]:
            panel.set_visible(False)
        for row in rows:
            for panel in row:
                panel.locator_params(axis="x", nbins=5)
    figure.supxlabel(metric, fontsize="medium")
    sns.despine(figure, left=True)
    return figure


def draw_axis(panel: Axes, rows: pl.DataFrame, metric: str, options: DesignSpace) -> None:
    """Draw a point and an interval for each method, and a line at the reference, else the first."""
    heights = range(len(rows))
    low, high = rows[f"{metric}_low"], rows[f"{metric}_high"]
    methods = rows["method"].to_list()
    reference = options.reference if options.reference in methods else methods[0]
    is_reference = [name == reference for name in methods]
    colors = ["C4" if each else "C1" for each in is_reference]
    panel.hlines(heights, low, high, color=colors)
    panel.scatter(rows[metric], heights, color=colors, s=14, zorder=3)
    for value, each in zip(rows[metric], is_reference, strict=True):
        if each:
            panel.axvline(value, color="C4", linewidth=0.6, linestyle="--", zorder=1)
    panel.set_yticks(heights, [plain(shorten(name, options)) for name in rows["method"]])
    panel.tick_params(left=False)
    panel.grid(visible=False)


def shorten(name: str, options: DesignSpace) -> str:
    """A method's label; of a grid's member without one, the value or the options that differ."""
    if name in options.labels or "=" not in name:
        return options.label(name)
    return name.partition("=" if name.count("=") == 1 else "-")[2]
