"""A table's metric by the seconds of training, and gains of RL by the hits of its rollouts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib import rc_context
from matplotlib.figure import Figure

from rere.config.run import NO_BACKBONE
from rere.config.study import Shown
from rere.errors import InputError
from rere.reporting.figures import (
    DEFAULTS,
    NAMES,
    STYLE,
    mark,
    place_markers,
    plain,
    read_columns,
    save_figure,
    scale_by_factors,
)
from rere.reporting.markup import split_facets
from rere.reporting.runs import read_log_fields

Starts = Mapping[str, Sequence[str]]
"""The methods whose models each method starts from or uses."""
SHARES = {
    "hits": "rollout groups that hold the target",
    "signal": "groups of the update that add to it",
}
"""What the panels of the figure of hits have on their x axis."""
LEAST_GAIN = 0.001
"""The axis of gains goes this far at least, below and above them and 0."""


def cost_figure(runs: Path, starts: Starts, outputs: list[Path], options: Shown = DEFAULTS) -> None:
    """Draw the last metric of a table's .runs.csv by the seconds of training to each of `outputs`.

    The seconds of a run include those of the runs that it starts from or uses. Raises InputError if
    the table lacks one of these.
    """
    metric = options.metrics[-1]
    frame = read_columns(runs, ["seed", "seconds", metric])
    points = frame.with_columns(cost=pl.Series(total_costs(frame, starts, runs), dtype=pl.Float64))
    with rc_context(fname=STYLE):
        save_figure(draw_cost(points, options), outputs)


def total_costs(frame: pl.DataFrame, starts: Starts, path: Path) -> list[float]:
    """The seconds of each run with those of all runs that it starts from, each counted once."""
    rows = frame.to_dicts()
    totals = []
    for row in rows:
        needed, found = [row], []
        while needed:
            each = needed.pop()
            if each not in found:
                found.append(each)
                needed += [
                    find_start(rows, each, name, path) for name in starts.get(each["method"], ())
                ]
        totals.append(sum(each["seconds"] for each in found))
    return totals


def find_start(
    rows: Sequence[Mapping[str, Any]], run: Mapping[str, Any], method: str, path: Path
) -> Mapping[str, Any]:
    """The run of `method` that a run starts from: that of its seed, else the only one."""
    same = [
        row
        for row in rows
        if row["method"] == method
        and row["dataset"] == run["dataset"]
        and row["backbone"] in (run["backbone"], NO_BACKBONE)
    ]
    same = [row for row in same if row["seed"] == run["seed"]] or same
    if len(same) != 1:
        raise InputError(
            f"{path}: {run['method']} starts from {method}, of which it has no run of seed "
            f"{run['seed']:.0f}; add {method} to the table"
        )
    return same[0]


def draw_cost(points: pl.DataFrame, options: Shown = DEFAULTS) -> Figure:
    """One panel per (dataset, backbone): a point per method, and a line through the best ones.

    Points are means over seeds, their bars the lowest and highest seed. A method is on the line if
    no cheaper one is as good.
    """
    metric = options.metrics[-1]
    facets = split_facets(points, options)
    figure = Figure(figsize=(None, 2.9 if len(facets) < 3 else 2.5 * (-(-len(facets) // 2))))
    num_columns = min(2, len(facets))
    grid = figure.subplots(-(-len(facets) // num_columns), num_columns, squeeze=False)
    styles = mark(points["method"])
    for axes, (title, facet) in zip(grid.flat, facets, strict=False):
        means = facet.group_by("method", maintain_order=True).agg(
            pl.col("cost").mean(),
            pl.col(metric).mean(),
            low=pl.col(metric).min(),
            high=pl.col(metric).max(),
        )
        best = pareto(means, metric)
        # The line ends at the most expensive method.
        costs, values = [*best["cost"], means["cost"].max()], [*best[metric], best[metric].max()]
        axes.step(costs, values, where="post", color="grey", linewidth=0.8, zorder=1)
        for method, cost, value, low, high in means.iter_rows():
            axes.errorbar(cost, value, [[value - low], [high - value]], **styles[method])
        axes.set_xscale("log")
        scale_by_factors(axes.xaxis, "{:g}".format)
        axes.set_title(plain(title), loc="left", fontweight="bold")
        axes.set_ylabel(metric)
    for axes in grid.flat[len(facets) :]:
        axes.set_visible(False)
    label = "seconds of training, with those of the models it starts from"
    figure.supxlabel(label, fontsize="medium")
    place_markers(figure, styles, options)
    return figure


def pareto(means: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The rows that no row of the same or a lower cost equals or exceeds, by cost."""
    ordered = means.sort("cost", metric, descending=[False, True])
    before = pl.col(metric).cum_max().shift(1)
    return ordered.filter(before.is_null() | (pl.col(metric) > before))


# ----------------------------------------------------------------------------------------- hits


def hits_figure(
    table: Path, runs: list[Path], starts: Starts, outputs: list[Path], options: Shown = DEFAULTS
) -> None:
    """Draw the gain of RL runs over their initial models by their hits to each of `outputs`.

    `table` is a table's .runs.csv, `runs` are the folders of its RL runs that start from another
    method's model, with log.jsonl.
    """
    points = pl.DataFrame(list(gains(table, runs, starts, options.metrics[-1])))
    with rc_context(fname=STYLE):
        save_figure(draw_hits(points, options), outputs)


def gains(
    table: Path, runs: Sequence[Path], starts: Starts, metric: str
) -> Iterator[dict[str, Any]]:
    """Yield names, seed, `gain` and SHARES of each run.

    The gain is in the metric of the test rows, the shares are means over all steps of the log.
    """
    rows = read_columns(table, ["seed", metric]).to_dicts()
    by_key = {(*(row[name] for name in NAMES), row["seed"]): row for row in rows}
    for folder in runs:
        dataset, backbone, method, seed = folder.parts[-4:]
        key = (dataset, backbone, method, float(seed.removeprefix("seed")))
        if key not in by_key:
            raise InputError(f"{table}: has no run {folder}; make it again: `rere table`")
        row = by_key[key]
        (start,) = starts.get(method) or (None,)
        if start is None:
            raise InputError(f"{folder}: starts from no method of the table; leave it out")
        gain = row[metric] - find_start(rows, row, start, table)[metric]
        yield {name: row[name] for name in (*NAMES, "seed")} | {"gain": gain} | shares(folder)


def shares(run: Path) -> dict[str, float]:
    """SHARES of an RL run, from its log."""
    path = run / "log.jsonl"
    lines = read_log_fields(path, ["hit_rate", "zero_advantage"])
    means = {}
    for name in ("hit_rate", "zero_advantage"):
        values = [line[name] for line in lines if line[name] is not None]
        if not values:
            raise InputError(f"{path}: has no {name}; train with rl")
        means[name] = sum(values) / len(values)
    return {"hits": means["hit_rate"], "signal": 1 - means["zero_advantage"]}


def draw_hits(points: pl.DataFrame, options: Shown = DEFAULTS) -> Figure:
    """A row of panels per (dataset, backbone), one for each of SHARES; a point is a run."""
    facets = split_facets(points, options)
    figure = Figure(figsize=(None, 0.5 + 2.2 * len(facets)))
    grid = figure.subplots(len(facets), len(SHARES), squeeze=False, sharex="col", sharey="row")
    styles = mark(points["method"])
    for row, (title, facet) in zip(grid, facets, strict=True):
        for axes, share in zip(row, SHARES, strict=True):
            axes.axhline(0, color="grey", linewidth=0.8, zorder=1)
            for method, x, gain in facet.select("method", share, "gain").iter_rows():
                axes.plot(x, gain, **styles[method])
            axes.set_xlim(0, min(1.02, 1.15 * points[share].max()) or 1)
        lowest, highest = min(facet["gain"].min(), 0), max(facet["gain"].max(), 0)
        margin = max(0.1 * (highest - lowest), LEAST_GAIN)
        row[0].set_ylim(lowest - margin, highest + margin)
        row[0].set_ylabel(f"gain in {options.metrics[-1]}")
        row[0].set_title(plain(title), loc="left", fontweight="bold")
    for axes, label in zip(grid[-1], SHARES.values(), strict=True):
        axes.set_xlabel(f"share of {label}")
    figure.align_ylabels(grid[:, 0])
    place_markers(figure, styles, options)
    return figure
