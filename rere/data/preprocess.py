"""Raw events to the catalogue and the splits that every other stage reads."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import polars as pl

from rere.config.data import Amazon2018, Amazon2023, MovieLens, OwnTables, Rules, Splits, Yelp
from rere.config.options import Options
from rere.data.audit import audit
from rere.data.filtering import choose
from rere.data.numbering import codes, number, with_counts
from rere.data.readers.amazon import read_amazon
from rere.data.readers.movielens import read_movielens
from rere.data.readers.own_tables import read_tables
from rere.data.readers.records import Raw
from rere.data.readers.splits import read_ready_made
from rere.data.readers.yelp import read_yelp
from rere.data.splits import SPLIT_SCHEMA, Made
from rere.data.splitting import chronological_split, leave_one_out, samples
from rere.data.statistics import describe
from rere.data.titles import clean
from rere.errors import InputError
from rere.files import replacing, sha256, write_json

LEAST_SAMPLES = 10
"""With fewer, an 8:1:1 split may leave a part without a row."""

PATHS = {"folder", "raw", "output"}


def preprocess(options: Options, raw: Path, output: Path) -> None:
    """Write items, train, valid and test (.parquet), stats.json and audit.json into `output`.

    `options` are those of a source of `rere.config`, `raw` the folder with its files. Raises
    InputError for malformed raw files, and when too few events are left for three splits.
    """
    if output.resolve() in (raw.resolve(), *raw.resolve().parents):
        raise InputError(f"{output}: would replace the raw files in {raw}; choose another folder")
    made, checksums = make(options, raw)
    items = with_counts(made.items, made.splits["train"])
    stats = {
        "options": options.model_dump(mode="json", exclude=PATHS),
        "raw_sha256": checksums,
        **made.stats,
        "users": pl.concat(frame["user_id"] for frame in made.splits.values()).n_unique(),
        **describe(items, made.splits),
    }
    with replacing(output) as temporary:
        temporary.mkdir()
        items.write_parquet(temporary / "items.parquet")
        for split, frame in made.splits.items():
            frame.select(*SPLIT_SCHEMA).write_parquet(temporary / f"{split}.parquet")
        write_json(temporary / "stats.json", stats)
        write_json(temporary / "audit.json", audit(items, made.splits, made.core))


def make(options: Options, raw: Path) -> tuple[Made, dict[str, str]]:
    """A catalogue and its splits, and the sha256 of each file that they were made from."""
    if isinstance(options, Splits):
        made = read_ready_made(raw)
        return made, hashed(made.files)
    found = read(options, raw)
    # The rules leave a core idle, which large files take seconds of.
    with ThreadPoolExecutor(1) as aside:
        checksums = aside.submit(hashed, found.files)
        return from_events(options, found), checksums.result()


def hashed(files: Iterable[Path]) -> dict[str, str]:
    """The sha256 of files, by their names."""
    return {path.name: sha256(path) for path in files}


def read(options: Rules, raw: Path) -> Raw:
    """The events and titles in a folder of raw files, as its source lays them out."""
    match options:
        case MovieLens():
            return read_movielens(options, raw)
        case Amazon2018() | Amazon2023():
            return read_amazon(options, raw)
        case Yelp():
            return read_yelp(options, raw)
        case OwnTables():
            return read_tables(options, raw)
    raise TypeError(f"no reader for {type(options).__name__}")


def from_events(rules: Rules, raw: Raw) -> Made:
    """Splits of raw events; they depend on neither the order of the raw rows nor the time zone.

    What became of every event and item is counted in the stats.
    """
    numbers, names = codes(raw.events["item"])
    listed = raw.titles.join(names.to_frame("item"), on="item", how="semi", maintain_order="left")
    titles = clean(listed, rules.max_title_words)
    events, untitled = with_titles(raw.events.with_columns(item=numbers), names, titles)
    if events.is_empty():
        raise InputError(
            f"{raw.files[-1]}: has a title for none of the {len(raw.events)} events of "
            f"{raw.files[0].name}; is it of the same items?"
        )
    kept, users, start, gone = choose(events, rules)
    numbered, items = number(kept, users, titles)
    rows = samples(numbered, rules.max_history)
    splits = leave_one_out(rows) if rules.split == "leave_one_out" else chronological_split(rows)
    if len(rows) < LEAST_SAMPLES or any(frame.is_empty() for frame in splits.values()):
        raise InputError(
            f"core: {rules.core} leaves {len(rows)} samples of {len(raw.events)} events in "
            f"{raw.files[0].parent}, and three splits need {LEAST_SAMPLES}; choose a smaller core "
            f"or add events ({told(untitled | gone)})"
        )
    stats = {
        "lines": raw.unreadable,
        "window": {"start": iso(start), "end": iso(rules.end)},
        "titles_read": len(raw.titles),
        "titles_dropped": {
            "of an item without events": len(raw.titles) - len(listed),
            "of an item listed again": len(listed) - len(titles),
            **{f"of an item {fault}": n for fault, n in counts(titles["fault"]).items()},
        },
        "interactions_read": len(raw.events),
        "interactions_dropped": untitled | gone,
        "interactions_kept": len(kept),
    }
    return Made(raw.files, items, splits, stats, rules.core)


def with_titles(
    events: pl.DataFrame, names: pl.Series, titles: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The events of items with a title that will do, items as rows of `titles`; what went.

    The items of `events` are numbers, of which `names` has the raw ids.
    """
    rows = titles.select("item", "fault").with_row_index("row")
    found = names.to_frame("item").join(rows, on="item", how="left", maintain_order="left")
    fault = pl.when(pl.col("row").is_null()).then(pl.lit("not listed")).otherwise("fault")
    found = found.select("row", fault=fault)
    of_events = found[events["item"]]
    gone = {f"of an item {fault}": count for fault, count in counts(of_events["fault"]).items()}
    titled = events.with_columns(item=of_events["row"]).filter(of_events["fault"].is_null())
    return titled, gone


def counts(faults: pl.Series) -> dict[str, int]:
    """How often each fault occurs."""
    return dict(faults.drop_nulls().value_counts().sort(faults.name).rows())


def told(gone: dict[str, int]) -> str:
    """What went, in words."""
    return "dropped: " + (", ".join(f"{n} {why}" for why, n in gone.items() if n) or "none")


def iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
