"""Make the catalogue and splits that all other stages read from raw events."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import polars as pl

from rere.config.data import Amazon2018, Amazon2023, MovieLens, OwnTables, Rules, Splits, Yelp
from rere.config.options import Options
from rere.data.audit import audit
from rere.data.dataset import SPLIT_SCHEMA, ProcessedData
from rere.data.filtering import filter_events
from rere.data.ids import add_target_counts, assign_codes, assign_ids
from rere.data.readers.amazon import read_amazon
from rere.data.readers.events import RawData
from rere.data.readers.movielens import read_movielens
from rere.data.readers.own_tables import read_own_tables
from rere.data.readers.ready_made_splits import read_ready_made_splits
from rere.data.readers.yelp import read_yelp
from rere.data.splitting import chronological_split, leave_one_out_split, make_samples
from rere.data.statistics import dataset_statistics
from rere.data.titles import clean_titles
from rere.errors import InputError
from rere.files import replacing, sha256, write_json

log = logging.getLogger(__name__)

MIN_SAMPLES = 10
"""An 8:1:1 split of fewer may have an empty part."""

NOT_LISTED = "not listed"
"""What is wrong with an item that has events, but no entry in the file of titles."""

PATHS = {"folder", "raw", "output"}
"""Options that stats.json leaves out."""


def preprocess(options: Options, raw: Path, output: Path) -> None:
    """Write items, users, train, valid and test (.parquet), stats.json and audit.json to `output`.

    `options` are of one of `rere.config.data.SOURCES`, `raw` is the folder with its files. Raises
    InputError for malformed raw files, and if too few events are left for three splits.
    """
    if output.resolve() in (raw.resolve(), *raw.resolve().parents):
        raise InputError(f"{output}: would replace the raw files in {raw}; choose another folder")
    processed, checksums = process(options, raw)
    items = add_target_counts(processed.items, processed.splits["train"])
    stats = {
        "options": options.model_dump(mode="json", exclude=PATHS),
        "raw_sha256": checksums,
        **processed.stats,
        "users": pl.concat(frame["user_id"] for frame in processed.splits.values()).n_unique(),
        **dataset_statistics(items, processed.splits),
    }
    with replacing(output) as temporary:
        temporary.mkdir()
        items.write_parquet(temporary / "items.parquet")
        processed.users.write_parquet(temporary / "users.parquet")
        for split, frame in processed.splits.items():
            frame.select(*SPLIT_SCHEMA).write_parquet(temporary / f"{split}.parquet")
        write_json(temporary / "stats.json", stats)
        numbers = audit(items, processed.splits, processed.core, processed.num_unlisted)
        write_json(temporary / "audit.json", numbers)


def process(options: Options, raw: Path) -> tuple[ProcessedData, dict[str, str]]:
    """Return the catalogue and splits, and the sha256 of each source file by its name."""
    if isinstance(options, Splits):
        processed = read_ready_made_splits(raw)
        return processed, sha256_by_name(processed.source_files)
    raw_data = read_raw(options, raw)
    # Hash in another thread: it takes seconds for large files, and processing leaves a core idle.
    with ThreadPoolExecutor(1) as thread:
        checksums = thread.submit(sha256_by_name, raw_data.files)
        return process_events(options, raw_data), checksums.result()


def sha256_by_name(files: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in files}


def read_raw(options: Rules, raw: Path) -> RawData:
    """Return the events and titles in a folder of raw files."""
    match options:
        case MovieLens():
            return read_movielens(options, raw)
        case Amazon2018() | Amazon2023():
            return read_amazon(options, raw)
        case Yelp():
            return read_yelp(options, raw)
        case OwnTables():
            return read_own_tables(options, raw)
    raise TypeError(f"no reader for {type(options).__name__}")


def process_events(rules: Rules, raw: RawData) -> ProcessedData:
    """Return the catalogue and splits of raw events; the stats count each dropped event and title.

    They depend on neither the order of the raw rows nor the time zone.
    """
    codes, raw_ids = assign_codes(raw.events["item"])
    used = raw.titles.join(raw_ids.to_frame("item"), on="item", how="semi", maintain_order="left")
    titles = clean_titles(used, rules.max_title_words)
    events, untitled = drop_untitled(raw.events.with_columns(item=codes), raw_ids, titles)
    if events.is_empty():
        raise InputError(
            f"{raw.files[-1]}: has a title for none of the {len(raw.events)} events of "
            f"{raw.files[0].name}; is it of the same items?"
        )
    kept, users, start, dropped = filter_events(events, rules)
    dropped = {f"of an item {fault}": count for fault, count in untitled.items()} | dropped
    with_ids, items, kept_users = assign_ids(kept, users, titles)
    rows = make_samples(with_ids, rules.max_history)
    split = leave_one_out_split if rules.split == "leave_one_out" else chronological_split
    splits = split(rows)
    if len(rows) < MIN_SAMPLES or any(frame.is_empty() for frame in splits.values()):
        raise InputError(
            f"core: {rules.core} leaves {len(rows)} samples of {len(raw.events)} events in "
            f"{raw.files[0].parent}, and three splits need {MIN_SAMPLES}; choose a smaller core "
            f"or add events ({format_dropped(dropped)})"
        )
    num_unlisted = untitled.get(NOT_LISTED, 0)
    if num_unlisted:
        warn_of_unlisted(raw, num_unlisted, raw_ids, titles)
    stats = {
        "lines": raw.line_counts,
        "window": {"start": iso(start), "end": iso(rules.end)},
        "titles_read": len(raw.titles),
        "titles_dropped": {
            "of an item without events": len(raw.titles) - len(used),
            "of an item listed again": len(used) - len(titles),
            **{f"of an item {fault}": n for fault, n in count_values(titles["fault"]).items()},
        },
        "interactions_read": len(raw.events),
        "interactions_dropped": dropped,
        "interactions_kept": len(kept),
    }
    return ProcessedData(raw.files, items, kept_users, splits, stats, rules.core, num_unlisted)


def warn_of_unlisted(
    raw: RawData, num_events: int, raw_ids: pl.Series, titles: pl.DataFrame
) -> None:
    """Say in the log which items have events, but no entry in the file of titles."""
    unlisted = raw_ids.filter(~raw_ids.is_in(titles["item"].implode()))
    log.warning(
        "%s: %d of %d events are dropped, of %d items that %s does not list, such as %a",
        raw.files[0],
        num_events,
        len(raw.events),
        len(unlisted),
        raw.files[-1].name,
        unlisted.min(),
    )


def drop_untitled(
    events: pl.DataFrame, raw_ids: pl.Series, titles: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the events of items with a usable title, and counts of the others by fault.

    The items of `events` are codes, whose raw ids are `raw_ids`; those returned are row numbers of
    `titles`.
    """
    rows = titles.select("item", "fault").with_row_index("row")
    joined = raw_ids.to_frame("item").join(rows, on="item", how="left", maintain_order="left")
    fault = pl.when(pl.col("row").is_null()).then(pl.lit(NOT_LISTED)).otherwise("fault")
    of_events = joined.select("row", fault=fault)[events["item"]]
    titled = events.with_columns(item=of_events["row"]).filter(of_events["fault"].is_null())
    return titled, count_values(of_events["fault"])


def count_values(values: pl.Series) -> dict[str, int]:
    """Return how often each value that is not null occurs."""
    return dict(values.drop_nulls().value_counts().sort(values.name).rows())


def format_dropped(dropped: dict[str, int]) -> str:
    """Return counts of dropped events as text."""
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return f"dropped: {counts or 'none'}"


def iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
