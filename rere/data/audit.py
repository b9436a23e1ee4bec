"""Measure which test rows of a data set are easy, unusual or known from training.

audit.json    one number per key, null where the splits do not have what it needs
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from rere.data.dataset import PREPROCESS
from rere.data.filtering import k_core
from rere.errors import InputError
from rere.files import read_json

DAY = 86_400


def audit(
    items: pl.DataFrame,
    splits: dict[str, pl.DataFrame],
    core: int | None,
    num_unlisted: int | None,
) -> dict[str, int | float | None]:
    """Return the numbers of audit.json for non-empty splits.

    `splits` may have `previous`, the timestamp of each history's last event. Numbers that need it,
    timestamps, or the `core` of the events are None without. `num_unlisted` is the number of events
    of items that the file of titles lacks; None if unknown. A row's `target` is the item to
    predict. `known_items` of train are those it knows.
    """
    train, valid, test = splits["train"], splits["valid"], splits["test"]
    history, target = pl.col("history"), pl.col("target")
    known = known_items(train).implode()
    shared = items.filter(pl.col("title").is_duplicated())["item_id"].implode()
    later, users = pl.concat([valid, test]), train["user_id"].unique().implode()
    return {
        "events_of_unlisted_items": num_unlisted,
        "test_rows": len(test),
        "share_of_test_targets_equal_to_their_last_item": share(
            test, history.list.last() == target
        ),
        "share_of_test_targets_in_their_history": share(test, history.list.contains(target)),
        "share_of_test_targets_in_the_second_of_their_last_item": share_in_same_unit(test, 1),
        "share_of_test_targets_on_the_day_of_their_last_item": share_in_same_unit(test, DAY),
        "share_of_test_targets_that_train_does_not_know": share(test, ~target.is_in(known)),
        "share_of_test_targets_whose_title_others_have": share(test, target.is_in(shared)),
        "share_of_test_rows_with_a_history_of_train_or_valid_and_another_target": (
            share_contradicted(test, pl.concat([train, valid]))
        ),
        "share_of_valid_rows_with_a_history_of_train_and_another_target": share_contradicted(
            valid, train
        ),
        "share_of_test_rows_of_users_in_train": share(test, pl.col("user_id").is_in(users)),
        "valid_and_test_targets_of_users_in_train": later["user_id"].is_in(users).sum(),
        "train_targets_after_the_first_valid_target": num_after_first(train, valid),
        "train_targets_after_the_first_test_target": num_after_first(train, test),
        **shares_outside_train_core(train, core),
    }


def known_items(train: pl.DataFrame) -> pl.Series:
    """Return the items that are a target or in a history of `train`."""
    return pl.concat([train["target"], train["history"].explode()]).unique()


def share(rows: pl.DataFrame, condition: pl.Expr) -> float:
    """Return the fraction of the rows for which a condition holds."""
    return rows.select(condition.mean()).item()


def share_in_same_unit(rows: pl.DataFrame, unit: int) -> float | None:
    """Return the fraction of targets in the same `unit` of time (seconds) as the event before."""
    if "previous" not in rows.columns:
        return None
    return share(rows, pl.col("timestamp") // unit == pl.col("previous") // unit)


def share_contradicted(rows: pl.DataFrame, earlier: pl.DataFrame) -> float:
    """Return the fraction of rows whose history an earlier row has with another target."""
    targets = earlier.group_by("history").agg(
        num_targets=pl.col("target").n_unique(), first_target=pl.col("target").first()
    )
    joined = rows.join(targets, on="history", how="left", maintain_order="left")
    differs = (pl.col("num_targets") > 1) | (pl.col("first_target") != pl.col("target"))
    return share(joined, differs.fill_null(False))


def num_after_first(rows: pl.DataFrame, others: pl.DataFrame) -> int | None:
    """Return the number of rows later than the first of `others`; None without timestamps."""
    first = others["timestamp"].min()
    return None if first is None else (rows["timestamp"] > first).sum()


def shares_outside_train_core(train: pl.DataFrame, core: int | None) -> dict[str, float | None]:
    """Return the fractions of train's users, items and rows that its own k-core would drop.

    They are in train because the k-core of all events uses later ones. Train's events are its
    targets and the first item of each user.
    """
    names = ("users", "items", "rows")
    keys = [f"share_of_train_{name}_that_the_core_of_train_lacks" for name in names]
    if core is None:
        return dict.fromkeys(keys)
    first = train.unique("user_id", keep="first", maintain_order=True)
    events = pl.concat(
        [
            first.select(user="user_id", item=pl.col("history").list.first()),
            train.select(user="user_id", item="target"),
        ]
    )
    kept = k_core(events, core)
    users, items = kept["user"].unique().implode(), kept["item"].unique().implode()
    inside = pl.col("user_id").is_in(users) & pl.col("target").is_in(items)
    shares = (
        1 - kept["user"].n_unique() / events["user"].n_unique(),
        1 - kept["item"].n_unique() / events["item"].n_unique(),
        share(train, ~inside),
    )
    return dict(zip(keys, shares, strict=True))


def audit_table(folders: Sequence[Path]) -> str:
    """Return the audits of data sets as a text table: one row per number, one column per data set.

    Raises InputError if a folder has no audit.
    """
    audits = [read_audit(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    widths = [max(10, len(name)) for name in names]
    rows = [
        ("", names),
        *((key, [format_number(each.get(key)) for each in audits]) for key in audits[0]),
    ]
    first = max(len(key) for key, _ in rows)
    lines = [
        "  ".join([f"{key.replace('_', ' '):{first}}", *map(str.rjust, cells, widths)])
        for key, cells in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def read_audit(folder: Path) -> dict[str, int | float | None]:
    """Return the audit.json of a data folder; raise InputError if it is missing or malformed."""
    path = folder / "audit.json"
    found = read_json(path, PREPROCESS)
    if not all(value is None or type(value) in (int, float) for value in found.values()):
        raise InputError(f"{path}: holds more than numbers; make it again: {PREPROCESS}")
    return found


def format_number(number: int | float | None) -> str:
    """Return a number as the table shows it: fractions with four decimals, None as `-`."""
    if number is None:
        return "-"
    return f"{number:.4f}" if isinstance(number, float) else str(number)
