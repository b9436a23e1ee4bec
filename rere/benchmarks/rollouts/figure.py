"""Ways to get candidates as curves: distinct items, hits, and what beam search misses."""

from pathlib import Path

import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rere.benchmarks.rollouts.table import SCHEMA
from rere.reporting.figures import STYLE, WIDTH, write

# Apart in luminance, dashes and markers, so that they are apart in grey too.
LINES = {
    ("beam", "catalogue"): ("beam, catalogue", "black", "^", "-"),
    ("beam", "vocabulary"): ("beam, vocabulary", "#3a7fb0", "o", "--"),
    ("stochastic_beam", "catalogue"): ("stochastic beam", "#8c3b12", "D", "-."),
    ("oversample", "catalogue"): ("oversample", "#6f9a2a", "v", (0, (5, 3))),
    ("iid", "catalogue"): ("iid", "#d99a2b", "x", ":"),
    ("unconstrained", "vocabulary"): ("unconstrained", "#b5b5b5", "s", "-"),
}
HEIGHT = 2.7
DISTINCT = pl.col("distinct") / pl.col("candidates")


def figure(table: Path, outputs: list[Path]) -> None:
    """Draw a search.csv in each format asked for; it follows an output's suffix."""
    rows = pl.read_csv(table, schema=SCHEMA)
    with rc_context({**STYLE, "axes.spines.left": True, "ytick.major.size": 3.5}):
        write(draw(rows), outputs)


def draw(rows: pl.DataFrame) -> Figure:
    """Two panels against the size of a group, one against the number of beams."""
    drawn = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    drawn.get_layout_engine().set(wspace=0.06)
    distinct, hits, error = drawn.subplots(1, 3)
    # More beams than any group has candidates are there for their error alone.
    sizes = rows.filter(what="iid")["candidates"].to_list()
    groups = rows.filter(pl.col("candidates").is_in(sizes))
    curves(distinct, groups, DISTINCT)
    distinct.set(xlabel="candidates", ylabel="distinct items a candidate")
    curves(hits, groups, pl.col("hit_rate"))
    hits.set(xlabel="candidates", ylabel="rows with the target")
    curves(error, rows, pl.col("missed_top10"))
    error.set(xlabel="beams", ylabel="rows that miss part of the top 10")
    drawn.legend(
        *hits.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    return drawn


def curves(axes: Axes, rows: pl.DataFrame, value: pl.Expr) -> None:
    """One panel, a curve a way, against the logarithm of the number of candidates."""
    points = rows.select("what", "scoring", "candidates", value.alias("value")).drop_nulls()
    for (what, scoring), (label, color, marker, dashes) in LINES.items():
        curve = points.filter(what=what, scoring=scoring)
        if curve.is_empty():
            continue
        style = {"color": color, "marker": marker, "linestyle": dashes, "label": label}
        # Unclipped, since many a curve ends on the axis.
        axes.plot(
            curve["candidates"],
            curve["value"],
            markersize=3.5,
            linewidth=1.2,
            clip_on=False,
            zorder=3,
            **style,
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    ticks = points["candidates"].unique().sort().to_list()
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
