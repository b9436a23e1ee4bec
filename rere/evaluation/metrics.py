"""Ranking metrics over the whole catalogue, for rows with exactly one relevant item.

With one relevant item the ideal DCG is 1, so a row's metrics follow from its target's rank r:
HR@K = [r <= K] and NDCG@K = [r <= K] / log2(r + 1) (Järvelin & Kekäläinen 2002 with gain 1
and the discount of Burges et al. 2005).

Two items may share a title. At title level (the paper's), a hit is a recommended title equal to
the target's, and a title counts once, at its best rank. At item level (`_item`), a hit is the
target item itself. `_norepeat` is title level without the rows whose target is the last item of
the history, which a method could hit by repeating that item.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rere.config.evaluation import CUTOFFS, METRICS
from rere.config.run import Run
from rere.data.dataset import read_items, read_split, sample_rows
from rere.errors import InputError
from rere.evaluation.predictions import PREDICT_AGAIN, read_predictions
from rere.evaluation.significance import bootstrap_interval
from rere.files import write_json

ITEM_METRICS = [f"{name}_item" for name in METRICS]
MAX_CUTOFF = max(CUTOFFS)
ABSENT = -1
"""Pads ranked lists to one length; not a valid item or title code."""


def metrics(predictions: Path, data: Path, run: Run, output: Path) -> None:
    """Write the metrics of one run's predictions on the data set in folder `data` as JSON.

    Raises InputError if the predictions are malformed or do not match the test split.
    """
    items = read_items(data)
    frame = read_test_predictions(predictions, data, items)
    write_json(output, run_metrics(run, frame, row_metrics(frame, items), items))


def run_metrics(
    run: Run, frame: pl.DataFrame, rows: pl.DataFrame, items: pl.DataFrame
) -> dict[str, Any]:
    """The content of a run's metrics.json.

    `frame` comes from `read_test_predictions`, `rows` are its `row_metrics`.
    """
    low, high = bootstrap_interval(rows.select(METRICS).to_numpy(), rows["user_id"].to_numpy())
    ranked = pad_lists(frame["items"])
    values: dict[str, Any] = {**run.model_dump(), "rows": len(rows)}
    values |= rows.select(METRICS + ITEM_METRICS).mean().row(0, named=True)
    norepeat = rows.filter(~pl.col("repeat")).select(METRICS)
    values |= norepeat.mean().rename(lambda name: f"{name}_norepeat").row(0, named=True)
    values[f"coverage@{MAX_CUTOFF}"] = coverage(ranked, len(items))
    values[f"popularity@{MAX_CUTOFF}"] = popularity(ranked, items["count"].to_numpy())
    for index, name in enumerate(METRICS):
        values |= {f"{name}_low": float(low[index]), f"{name}_high": float(high[index])}
    return values


def read_test_predictions(path: Path, data: Path, items: pl.DataFrame) -> pl.DataFrame:
    """Predictions sorted by row_id, with `repeat`: whether the target is the history's last item.

    Raises InputError unless their rows are those of the test split of `data`, all or the sample of
    that many, and their items are in its catalogue.
    """
    split, test = data / "test.parquet", read_split(data, "test")
    frame = read_predictions(path).join(test, on="row_id", how="left", suffix="_test")
    mismatched = frame.filter(
        pl.col("target").ne_missing(pl.col("target_test"))
        | pl.col("user_id").ne_missing(pl.col("user_id_test"))
    )
    if len(mismatched):
        row_id = mismatched["row_id"][0]
        raise InputError(
            f"{path}: row_id {row_id} is not in {split} with this user and target; {PREDICT_AGAIN}"
        )
    unknown = frame.filter(
        (pl.col("items").list.min() < 0) | (pl.col("items").list.max() >= len(items))
    )
    if len(unknown):
        row_id, catalogue = unknown["row_id"][0], data / "items.parquet"
        raise InputError(
            f"{path}: row_id {row_id} ranks an item not in {catalogue}; {PREDICT_AGAIN}"
        )
    missing = sample_rows(test, len(frame)).join(frame, on="row_id", how="anti")
    if len(missing):
        raise InputError(
            f"{path}: its {len(frame)} rows are neither all {len(test)} of {split} nor the sample "
            f"of {len(frame)}, which has row_id {missing['row_id'][0]}; {PREDICT_AGAIN}"
        )
    repeat = pl.col("history").list.last() == pl.col("target")
    return frame.sort("row_id").select("row_id", "user_id", "target", "items", repeat=repeat)


def row_metrics(frame: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Each row's METRICS (title level) and ITEM_METRICS, with its row_id, user_id and repeat.

    `frame` comes from `read_test_predictions`.
    """
    titles = title_codes(items)
    ranked, targets = pad_lists(frame["items"]), frame["target"].to_numpy()
    title = metrics_from_ranks(target_ranks(distinct_titles(ranked, titles), titles[targets]))
    item = metrics_from_ranks(target_ranks(ranked, targets))
    return frame.select("row_id", "user_id", "repeat").hstack(
        pl.DataFrame(np.hstack([title, item]), schema=METRICS + ITEM_METRICS)
    )


def title_codes(items: pl.DataFrame) -> np.ndarray:
    """A code for each item's title, the same for equal titles: (items,) int32, from 0."""
    return items["title"].rank("dense").to_numpy().astype(np.int32) - 1


def distinct_titles(ranked: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """The codes of each row's titles, each at its best rank, padded with ABSENT.

    ranked (rows, length) items, best first, and titles (items,), their codes -> (rows, length).
    """
    return drop_duplicates(np.where(ranked == ABSENT, ABSENT, titles[ranked]))


def is_hit(titles: Any, targets: Any) -> Any:
    """Whether each recommended title is its row's target. The only definition of a hit.

    titles (..., k) and targets (...) integer codes, arrays or tensors -> (..., k) booleans. In
    training the codes are leaves, and `PrefixTree.hit_leaf` of the targets.
    """
    return titles == targets[..., None]


def target_ranks(ranked: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of the target in each row, from 1; 0 if it is absent.

    ranked (rows, length), best first, and targets (rows,), both items or both titles -> (rows,).
    """
    hits = is_hit(ranked, targets)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)


def drop_duplicates(ranked: np.ndarray) -> np.ndarray:
    """Each row's distinct values in order of first appearance, padded with ABSENT."""
    order = np.argsort(ranked, axis=1, kind="stable")
    ordered = np.take_along_axis(ranked, order, axis=1)
    repeated = np.zeros(ranked.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    blanked = np.where(repeated, ABSENT, ranked)
    to_front = np.argsort(blanked == ABSENT, axis=1, kind="stable")
    return np.take_along_axis(blanked, to_front, axis=1)


def metrics_from_ranks(ranks: np.ndarray) -> np.ndarray:
    """HR@K and NDCG@K in the order of METRICS: (rows,) ranks -> (rows, metrics) float64."""
    hits = (ranks[:, None] > 0) & (ranks[:, None] <= np.array(CUTOFFS))
    discounts = 1 / np.log2(np.maximum(ranks, 1) + 1)
    return np.hstack([hits, hits * discounts[:, None]])


def coverage(ranked: np.ndarray, catalogue: int) -> float:
    """Share of the catalogue's items that appear in the top 20 of at least one row."""
    shown = np.unique(ranked[:, :MAX_CUTOFF])
    return int((shown != ABSENT).sum()) / catalogue


def popularity(ranked: np.ndarray, counts: np.ndarray) -> float:
    """Mean over rows of the mean popularity percentile of the top 20, in (0, 1).

    An item's percentile is the share of items with fewer training targets, plus half the share
    with equally many, itself included. Random recommendations give 0.5.
    """
    percentiles = (pl.Series(counts).rank("average").to_numpy() - 0.5) / len(counts)
    top = ranked[:, :MAX_CUTOFF]
    shown = top != ABSENT
    sums = np.where(shown, percentiles[top], 0).sum(axis=1)
    return float((sums / shown.sum(axis=1)).mean())


def pad_lists(lists: pl.Series) -> np.ndarray:
    """Non-empty lists as rows of one int32 array, padded with ABSENT."""
    lengths = lists.list.len().to_numpy()
    array = np.full((len(lists), lengths.max()), ABSENT, dtype=np.int32)
    array[np.arange(array.shape[1]) < lengths[:, None]] = lists.explode().to_numpy()
    return array
