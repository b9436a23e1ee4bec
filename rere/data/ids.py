"""Dense integer ids for raw ids, and how often each item is a target."""

import numpy as np
import polars as pl

from rere.data.dataset import ITEMS_SCHEMA, USERS_SCHEMA


def assign_codes(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return a code for each raw id (str), (events,) u32, and the raw id of each code.

    Codes are whole numbers from 0, in no particular order.
    """
    distinct = raw.unique().alias("raw")
    coded = distinct.to_frame().with_row_index("code")
    joined = raw.alias("raw").to_frame().join(coded, on="raw", how="left", maintain_order="left")
    return joined["code"], distinct


def assign_ids(
    events: pl.DataFrame, users: pl.Series, titles: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return events (user_id, item_id, timestamp), items and users with dense ids.

    Items have item_id, title and raw_id, users user_id and raw_id.

    `events` (user, item, timestamp) have codes. `users` has the raw id of each user code, `titles`
    (item, title) the raw id and title of each item code.
    """
    user_ids, user_codes = codes_to_ids(events["user"], users)
    item_ids, item_codes = codes_to_ids(events["item"], titles["item"])
    events = pl.DataFrame(
        {
            "user_id": user_ids.cast(pl.Int64),
            "item_id": item_ids.cast(pl.Int32),
            "timestamp": events["timestamp"],
        }
    )
    items = titles[item_codes].with_row_index("item_id").select("item_id", "title", raw_id="item")
    return events, items, number_users(users[user_codes])


def number_users(raw: pl.Series) -> pl.DataFrame:
    """Return users with USERS_SCHEMA: each raw id's position is its user_id."""
    return raw.alias("raw_id").to_frame().with_row_index("user_id").cast(USERS_SCHEMA)


def codes_to_ids(codes: pl.Series, raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return the dense id of each code, and the code of each dense id.

    `raw` has the raw id of each code. Dense ids are in the order of the raw ids that occur.
    """
    distinct = codes.unique()
    code_of_id = distinct[sorted_positions(raw[distinct])]
    id_of_code = np.empty(len(raw), dtype=np.int64)
    id_of_code[code_of_id.to_numpy()] = np.arange(len(code_of_id))
    return pl.Series(id_of_code[codes.to_numpy()]), code_of_id


def sorted_positions(raw: pl.Series) -> pl.Series:
    """Return the positions of distinct raw ids (str) in sorted order.

    They are sorted as numbers if all are whole numbers, else by code point.
    """
    keys = raw.alias("text").to_frame().with_row_index("position")
    numbers = raw.cast(pl.Int64, strict=False)
    if not numbers.has_nulls():
        # `1` and `01` are equal as numbers; their text breaks the tie.
        return keys.with_columns(number=numbers).sort("number", "text")["position"]
    return keys.sort("text")["position"]


def sorted_distinct(raw: pl.Series) -> pl.Series:
    """Return the distinct raw ids (str), in the order of `sorted_positions`."""
    distinct = raw.unique()
    return distinct[sorted_positions(distinct)]


def add_target_counts(items: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Return items with `count`, how often each is a target of `train`, in ITEMS_SCHEMA."""
    counts = train.group_by(item_id="target").agg(count=pl.len())
    items = items.cast({"item_id": pl.Int32})
    items = items.join(counts, on="item_id", how="left", maintain_order="left")
    return items.with_columns(pl.col("count").fill_null(0)).select(*ITEMS_SCHEMA).cast(ITEMS_SCHEMA)
