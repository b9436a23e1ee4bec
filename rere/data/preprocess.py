"""Raw events to the catalogue and the splits that every other stage reads."""

from pathlib import Path

import polars as pl

from rere.config import MovieLens, Splits
from rere.data.filtering import k_core
from rere.data.movielens import raw_files, read_movielens
from rere.data.numbering import number, with_counts
from rere.data.ready_made import read_ready_made
from rere.data.splits import Made
from rere.data.splitting import chronological_split, samples
from rere.data.statistics import describe
from rere.errors import InputError
from rere.files import replacing, sha256, write_json

LEAST_SAMPLES = 10
"""With fewer, an 8:1:1 split may leave a part without a row."""


def preprocess(options: MovieLens | Splits, raw: Path, output: Path) -> None:
    """Write items, train, valid and test (.parquet) and stats.json into the folder `output`.

    Raises InputError for malformed raw files, and when too few events are left for three splits.
    """
    if output.resolve() in (raw.resolve(), *raw.resolve().parents):
        raise InputError(f"{output}: would replace the raw files in {raw}; choose another folder")
    made = read_ready_made(raw) if isinstance(options, Splits) else from_events(options, raw)
    items = with_counts(made.items, made.splits["train"])
    stats = {
        "options": options.model_dump(include={"source", "core", "max_history"}),
        "raw_sha256": {path.name: sha256(path) for path in made.files},
        **made.stats,
        "users": pl.concat(made.splits.values())["user_id"].n_unique(),
        **describe(items, made.splits),
    }
    with replacing(output) as temporary:
        temporary.mkdir()
        items.write_parquet(temporary / "items.parquet")
        for split, frame in made.splits.items():
            frame.write_parquet(temporary / f"{split}.parquet")
        write_json(temporary / "stats.json", stats)


def from_events(options: MovieLens, raw: Path) -> Made:
    """Splits of raw events; they depend on neither the order of the raw rows nor the time zone.

    Exact duplicates of an event are kept.
    """
    interactions, titles = read_movielens(raw)
    kept = k_core(interactions, options.core)
    events, items = number(kept, titles)
    rows = samples(events, options.max_history)
    if len(rows) < LEAST_SAMPLES:
        raise InputError(
            f"core: {options.core} leaves {len(rows)} samples of {len(interactions)} events in "
            f"{raw}, and three splits need {LEAST_SAMPLES}; choose a smaller core or add events"
        )
    return Made(
        files=raw_files(raw),
        items=items,
        splits=chronological_split(rows),
        stats={
            "interactions_before_core": len(interactions),
            "interactions_after_core": len(kept),
        },
    )
