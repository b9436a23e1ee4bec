"""A table as bars: metrics of each method, with 95 % intervals over users.

The other figures of a table share its style, its legend and how files are read and written.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rere.config.run import NO_BACKBONE
from rere.config.study import Shown
from rere.errors import InputError, first_line
from rere.files import replacing_all
from rere.reporting.markup import split_facets

DEFAULTS = Shown()
STYLE = Path(__file__).with_name("rere.mplstyle")
NAMES = ("dataset", "backbone", "method")
MARKERS = "osD^vPX<>p*hd8"
"""One for each method of a legend; colours repeat earlier."""
LEGEND_ROW = 0.17
"""Inches."""


def figure(table: Path, outputs: list[Path], options: Shown = DEFAULTS) -> None:
    """Draw a table's .csv, one row of panels per (dataset, backbone), to each of `outputs`.

    Methods without a backbone appear beside every backbone of their data set. Raises InputError for
    a file that `rere table` cannot have written.
    """
    summary = read_table(table, options.metrics)
    with rc_context(fname=STYLE):
        save_figure(draw_bars(summary, options), outputs)


def read_table(path: Path, metrics: list[str]) -> pl.DataFrame:
    """The columns of a table's .csv that a figure shows."""
    return read_columns(
        path, [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    )


def read_columns(path: Path, numbers: Iterable[str]) -> pl.DataFrame:
    """The names and these numbers of a table's .csv or .runs.csv.

    Raises InputError if one is missing, or a cell empty.
    """
    schema = dict.fromkeys(NAMES, pl.String) | dict.fromkeys(numbers, pl.Float64)
    try:
        with path.open("rb") as file:
            summary = pl.read_csv(file, columns=[*schema], schema_overrides=schema)
        is_whole = len(summary) and not any(column.has_nulls() for column in summary)
        reason = "" if is_whole else "an empty cell or no rows"
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = first_line(error)
    if reason:
        raise InputError(f"{path}: not a table ({reason}); make it again: `rere table`")
    return summary


def save_figure(figure: Figure, outputs: list[Path]) -> None:
    """Save a figure to each output, in the format of its suffix: .pdf or .png."""
    with replacing_all(outputs) as files:
        for file in files:
            # Without a date, the same table gives the same bytes.
            metadata = {"CreationDate": None} if file.suffix == ".pdf" else None
            figure.savefig(file, metadata=metadata)


def draw_bars(
    summary: pl.DataFrame, options: Shown = DEFAULTS, columns: Sequence[str] | None = None
) -> Figure:
    """One row of panels for each (dataset, backbone), as high as its methods need.

    Its panels are of the table's metrics, or of other columns that have `_low` and `_high`.
    """
    columns = options.metrics if columns is None else columns
    facets = split_facets(summary, options)
    heights = [0.17 * len(facet) + 0.6 for _, facet in facets]
    figure = Figure(figsize=(None, sum(heights)))
    grid = figure.subplots(
        len(facets), len(columns), squeeze=False, sharey="row", height_ratios=heights
    )
    for (title, facet), row in zip(facets, grid, strict=True):
        for metric, axes in zip(columns, row, strict=True):
            draw_panel(axes, facet, metric)
            axes.set_title(metric, loc="right")
            axes.locator_params(axis="x", nbins=4 if len(columns) < 3 else 3)
            # Backbones of a data set share a scale; some of the width is left for numbers.
            largest = summary.filter(dataset=facet["dataset"][0])[f"{metric}_high"].max()
            axes.set_xlim(0, (1.2 if len(columns) < 3 else 1.35) * largest or 1)
        labels = [plain(options.label(name)) for name in facet["method"]]
        row[0].set_yticks(row[0].get_yticks(), labels)
        # Above the name of the metric, if a panel is too narrow for both.
        above = "\n" if len(columns) > 2 else ""
        row[0].set_title(plain(title) + above, loc="left", fontweight="bold")
    sns.despine(figure, left=True)
    return figure


def draw_panel(axes: Axes, facet: pl.DataFrame, metric: str) -> None:
    """Draw a bar, an interval and a number for each method, from top to bottom."""
    # Blue with a backbone, else grey; they differ in luminance.
    palette = dict.fromkeys(facet["backbone"], "C6") | {NO_BACKBONE: "lightgrey"}
    data = facet.to_dict(as_series=False)
    sns.barplot(data, x=metric, y="method", hue="backbone", palette=palette, legend=False, ax=axes)
    low, high = facet[f"{metric}_low"], facet[f"{metric}_high"]
    axes.hlines(facet["method"], low, high, color="black")
    for method, value, end in zip(facet["method"], facet[metric], high, strict=True):
        position = (max(value, end), method)
        axes.annotate(
            f"{value:.3f}", position, (3, 0), textcoords="offset points", va="center_baseline"
        )
    axes.set(xlabel="", ylabel="", ylim=(len(facet) - 0.5, -0.5))
    axes.tick_params(left=False)


def scale_by_factors(axis: Axis, form: Callable[[float], str]) -> None:
    """Give a logarithmic axis labels of `form` at 1, 2, 5, 10, 20 and so on, and no others."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())


def plain(label: str) -> str:
    """A label as text: a dollar sign would begin a formula."""
    return label.replace("$", r"\$")


def mark(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method, as options of `plot`."""
    names = enumerate(dict.fromkeys(methods))
    # Hollow, so that points on one another are seen.
    plain_style = {"linestyle": "", "markerfacecolor": "none"}
    return {
        name: {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)], **plain_style}
        for number, name in names
    }


def place_legend(figure: FigureBase, handles: Mapping[str, Any], has_lines: bool = True) -> None:
    """A legend above the panels, as wide as fits. The figure grows with its rows."""
    # A figure is about 96 characters wide, a line with its spaces 9, a marker 6.
    num_columns = max(1, 96 // ((9 if has_lines else 6) + max(map(len, handles))))
    if isinstance(figure, Figure):
        more_rows = -(-len(handles) // num_columns) - 1
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * more_rows)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=num_columns,
        handlelength=None if has_lines else 1,
    )


def place_markers(figure: FigureBase, styles: Mapping[str, Any], options: Shown) -> None:
    """A legend of methods by their styles of `mark`."""
    handles = {
        plain(options.label(name)): Line2D([], [], **style) for name, style in styles.items()
    }
    place_legend(figure, handles, has_lines=False)


def move_legend(figure: FigureBase) -> None:
    """Replace the panels' legends by one above them, as wide as fits."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for axes in figure.axes:
        axes.get_legend().remove()
    place_legend(figure, dict(zip(labels, handles, strict=True)))
