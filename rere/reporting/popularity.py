"""A table's metric by the popularity of the target: head, middle and tail."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib import rc_context

from rere.config.evaluation import METRICS
from rere.config.study import Shown
from rere.data.dataset import read_items, read_split
from rere.evaluation.significance import bootstrap_interval
from rere.reporting.figures import DEFAULTS, NAMES, STYLE, draw_bars, save_figure
from rere.reporting.runs import read_runs
from rere.reporting.tables import MethodRuns, group_by_method

THIRDS = ("head", "middle", "tail")


def popularity_figure(
    runs: list[Path], data: list[Path], outputs: list[Path], options: Shown = DEFAULTS
) -> None:
    """Draw the last metric of each method on rows of popular and rare targets to `outputs`.

    `data` are the folders of the data sets, named after them. Raises InputError as `table` does.
    """
    summary = by_popularity(group_by_method(read_runs(runs, data)), data, options.metrics[-1])
    thirds = [name for name in THIRDS if name in summary]
    summary = summary.rename(
        {
            f"{name}{end}": f"{options.metrics[-1]}, {name}{end}"
            for name in thirds
            for end in ("", "_low", "_high")
        }
    )
    with rc_context(fname=STYLE):
        columns = [f"{options.metrics[-1]}, {name}" for name in thirds]
        save_figure(draw_bars(summary, options, columns), outputs)


def by_popularity(methods: list[MethodRuns], data: list[Path], metric: str) -> pl.DataFrame:
    """A row per method: the metric's mean over seeds and over the rows of each of THIRDS.

    With intervals over users, `_low` and `_high`. A third without rows has 0 in all of them.
    """
    folders = {folder.name: folder for folder in data}
    thirds = {}
    rows = []
    for method in methods:
        dataset = method.key[0]
        if dataset not in thirds:
            thirds[dataset] = target_thirds(folders[dataset], method)
        values = method.values[..., METRICS.index(metric)].mean(axis=0)
        row = dict(zip(NAMES, method.key, strict=True))
        for number, name in enumerate(THIRDS):
            chosen = thirds[dataset] == number
            row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), 0.0)
            if chosen.any():
                low, high = bootstrap_interval(values[chosen][:, None], method.users[chosen])
                row[name] = float(values[chosen].mean())
                row |= {f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}
        rows.append(row)
    return pl.DataFrame(rows)


def target_thirds(folder: Path, method: MethodRuns) -> np.ndarray:
    """The third of each test row's target, 0 to 2, in the order of the rows of `method`."""
    test = read_split(folder, "test").select("row_id", "target")
    rows = method.runs[0].rows.select("row_id").join(test, on="row_id", maintain_order="left")
    return item_thirds(read_items(folder)["count"].to_numpy())[rows["target"].to_numpy()]


def item_thirds(counts: np.ndarray) -> np.ndarray:
    """The third of each item, from its training targets `counts`: 0 head, 1 middle, 2 tail.

    Items are ordered by counts. An item is in the head if those with more than it have less than a
    third of all targets, in the middle if they have less than two thirds, else in the tail. Items
    with equal counts are together. One that is no target in train is in the tail.
    """
    values, index, items = np.unique(counts, return_inverse=True, return_counts=True)
    targets = values * items
    more = targets.sum() - np.cumsum(targets)  # of items with more than each value
    thirds = (3 * more >= targets.sum()).astype(int) + (3 * more >= 2 * targets.sum())
    return np.where(values == 0, 2, thirds)[index]
