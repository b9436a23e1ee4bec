"""A table's metric by the size of the backbone, one line per method and family of models."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open

from rere.config.run import NO_BACKBONE
from rere.config.study import Shown
from rere.errors import InputError, first_line
from rere.files import read_json
from rere.reporting.figures import (
    DEFAULTS,
    STYLE,
    mark,
    place_markers,
    plain,
    read_table,
    save_figure,
    scale_by_factors,
)

BACKBONE = "`rere backbone`"
LINES = ("-", "--", ":", "-.")
"""Of families."""
NAME_LINE = 7
"""Height of a line of names above a panel, in points."""


class Size(NamedTuple):
    """What a backbone is."""

    family: str  # model_type of its config.json
    parameters: int


def backbones_figure(
    table: Path, backbones: list[Path], outputs: list[Path], options: Shown = DEFAULTS
) -> None:
    """Draw the last metric of a table's .csv by the size of its backbones to each of `outputs`.

    `backbones` are the folders of the backbones, named after them. Methods without a backbone are
    grey lines. Raises InputError for a table without backbones, or with one that is not given.
    """
    points = sized(read_table(table, options.metrics[-1:]), read_sizes(backbones), table)
    with rc_context(fname=STYLE):
        save_figure(draw_backbones(points, options), outputs)


def read_sizes(folders: Sequence[Path]) -> dict[str, Size]:
    """Family and number of parameters of each stored backbone, by its name."""
    sizes = {}
    for folder in folders:
        config = read_json(folder / "config.json", BACKBONE)
        weights, parameters = folder / "model.safetensors", 0
        try:
            with safe_open(weights, framework="np") as file:
                for name in file.keys():  # noqa: SIM118, as it is no mapping
                    count = 1
                    for length in file.get_slice(name).get_shape():
                        count *= length
                    parameters += count
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{weights}: not readable ({first_line(error)}); make it again: {BACKBONE}"
            ) from None
        sizes[folder.name] = Size(str(config.get("model_type", "model")), parameters)
    return sizes


def sized(summary: pl.DataFrame, sizes: dict[str, Size], table: Path) -> pl.DataFrame:
    """The rows of a table with `family` and `parameters`, null without a backbone."""
    names = [name for name in summary["backbone"].unique() if name != NO_BACKBONE]
    if not names:
        raise InputError(f"{table}: has no method with a backbone; leave the figure out")
    for name in names:
        if name not in sizes:
            raise InputError(f"{table}: has the backbone {name}; give its folder too")
    known = pl.DataFrame(
        [(name, *size) for name, size in sizes.items()],
        schema={"backbone": pl.String, "family": pl.String, "parameters": pl.Int64},
        orient="row",
    )
    return summary.join(known, on="backbone", how="left", maintain_order="left")


def draw_backbones(points: pl.DataFrame, options: Shown = DEFAULTS) -> Figure:
    """One panel per data set; methods differ by colour and marker, families by line."""
    metric = options.metrics[-1]
    datasets = points.partition_by("dataset", as_dict=True)
    figure = Figure()
    row = figure.subplots(1, len(datasets), squeeze=False)[0]
    with_backbone = points.filter(pl.col("backbone") != NO_BACKBONE)
    styles, families = mark(with_backbone["method"]), list(dict.fromkeys(with_backbone["family"]))
    lines = with_backbone.sort("parameters")
    for (dataset,), axes in zip(datasets, row, strict=True):
        for method, (number, family) in itertools.product(styles, enumerate(families)):
            line = lines.filter(dataset=dataset, method=method, family=family)
            if not len(line):
                continue
            value, low, high = (line[f"{metric}{end}"].to_numpy() for end in ("", "_low", "_high"))
            ends = [(value - low).clip(min=0), (high - value).clip(min=0)]
            style = styles[method] | {"linestyle": LINES[number % len(LINES)]}
            axes.errorbar(line["parameters"], value, ends, **style)
        draw_others(axes, datasets[dataset,].filter(backbone=NO_BACKBONE), metric, options)
        title = plain(options.label(dataset))
        axes.set_title(title, loc="left", fontweight="bold", pad=4 + 2 * NAME_LINE)
        axes.set_xscale("log")
        scale_by_factors(axes.xaxis, show_count)
        axes.margins(x=0.1)
        axes.set_ylim(bottom=0)
        name_backbones(axes, lines.filter(dataset=dataset), options)
        axes.set_xlabel("parameters")
    row[0].set_ylabel(metric)
    place_markers(figure, styles, options)
    return figure


def name_backbones(axes: Axes, rows: pl.DataFrame, options: Shown) -> None:
    """Write the name of each backbone above the panel, at its size, in one of two lines in turn."""
    sizes = rows.select("parameters", "backbone").unique().sort("parameters", "backbone")
    for number, (count, name) in enumerate(sizes.iter_rows()):
        axes.annotate(
            plain(options.label(name)),
            (count, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 1 + NAME_LINE * (number % 2)),
            textcoords="offset points",
            ha="center",
            fontsize=6,
            color="dimgrey",
        )


def show_count(count: float) -> str:
    """A number of parameters, as in the names of models: 500M, 7B."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:g}{letter}"
    return f"{count:g}"


def draw_others(axes: Axes, rows: pl.DataFrame, metric: str, options: Shown) -> None:
    """Draw methods without a backbone as grey lines, with their names beside the panel."""
    for method, value in rows.select("method", metric).iter_rows():
        axes.axhline(value, color="grey", linewidth=0.6, zorder=1)
        axes.annotate(
            plain(options.label(method)),
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
            color="dimgrey",
        )
