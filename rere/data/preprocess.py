"""Raw events to the catalogue and the splits that every other stage reads."""

from pathlib import Path

import polars as pl

from rere.config import Preprocess
from rere.data.filtering import k_core
from rere.data.movielens import raw_files, read_movielens
from rere.data.splits import ITEMS_SCHEMA
from rere.data.splitting import chronological_split, samples
from rere.data.statistics import describe
from rere.errors import InputError
from rere.files import replacing, sha256, write_json

LEAST_SAMPLES = 10
"""With fewer, an 8:1:1 split may leave a part without a row."""


def preprocess(options: Preprocess, raw: Path, output: Path) -> None:
    """Write items, train, valid and test (.parquet) and stats.json into the folder `output`.

    Depends on the events alone, neither on the order of the raw rows nor on the time zone. Exact
    duplicates of an event are kept. Raises InputError for malformed raw files, and when too few
    events are left for three splits.
    """
    if output.resolve() in (raw.resolve(), *raw.resolve().parents):
        raise InputError(f"{output}: would replace the raw files in {raw}; choose another folder")
    interactions, titles = read_movielens(raw)
    kept = k_core(interactions, options.core)
    events, items = number(kept, titles)
    rows = samples(events, options.max_history)
    if len(rows) < LEAST_SAMPLES:
        raise InputError(
            f"core: {options.core} leaves {len(rows)} samples of {len(interactions)} events in "
            f"{raw}, and three splits need {LEAST_SAMPLES}; choose a smaller core or add events"
        )
    splits = chronological_split(rows)
    items = with_counts(items, splits["train"])
    stats = {
        "options": options.model_dump(include=set(Preprocess.model_fields)),
        "raw_sha256": {path.name: sha256(path) for path in raw_files(raw)},
        "interactions_before_core": len(interactions),
        "interactions_after_core": len(kept),
        "users": kept["user"].n_unique(),
        **describe(items, splits),
    }
    with replacing(output) as temporary:
        temporary.mkdir()
        items.write_parquet(temporary / "items.parquet")
        for split, frame in splits.items():
            frame.write_parquet(temporary / f"{split}.parquet")
        write_json(temporary / "stats.json", stats)


def number(kept: pl.DataFrame, titles: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Raw ids replaced by dense ones: events (user_id, item_id, timestamp), items (item_id, title).

    `kept` (user, item, timestamp) are the events, `titles` (item, title) at least their items.
    """
    users = dense_ids(kept["user"])
    items = dense_ids(kept["item"])
    events = kept.select(
        user_id=pl.col("user").replace_strict(users, range(len(users)), return_dtype=pl.Int64),
        item_id=pl.col("item").replace_strict(items, range(len(items)), return_dtype=pl.Int32),
        timestamp="timestamp",
    )
    catalogue = items.to_frame().join(titles, on="item", how="left", maintain_order="left")
    return events, catalogue.with_row_index("item_id").select("item_id", "title")


def dense_ids(raw: pl.Series) -> pl.Series:
    """The distinct raw ids (str) in the order of their dense ones.

    They are ordered as numbers if all of them are whole numbers, else by code point.
    """
    ids = raw.unique().sort()
    numbers = ids.cast(pl.Int64, strict=False)
    if numbers.has_nulls():
        return ids
    # Stable, so that `1` and `01` keep the order of their text.
    return ids.to_frame().sort(pl.col(raw.name).cast(pl.Int64), maintain_order=True).to_series()


def with_counts(items: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Items (item_id, title) with how often each is a target of `train`, as the contract has it."""
    counts = train.group_by(item_id="target").agg(count=pl.len())
    items = items.cast({"item_id": pl.Int32})
    items = items.join(counts, on="item_id", how="left", maintain_order="left")
    return items.with_columns(pl.col("count").fill_null(0)).cast(ITEMS_SCHEMA)
