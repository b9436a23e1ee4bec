"""Preprocessing against plain Python under the same rules, on synthetic Amazon reviews."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import polars as pl
import torch

from rere.benchmarks.plain import data as plain
from rere.benchmarks.reviews import Size, write_reviews
from rere.benchmarks.table import compare
from rere.benchmarks.timing import EMPTY, measure_peak_memory, run_in_process
from rere.config.data import Amazon2018
from rere.data.dataset import SPLIT_SCHEMA
from rere.data.preprocess import preprocess, process_events, read_raw

PREPROCESSING = "preprocessing"
PLAIN = "plain Python"
REVIEWS = "reviews"
"""The panel of the curves."""
CATEGORY = "Toys_and_Games"
RULES = Amazon2018(category=CATEGORY, start=date(2016, 10, 1), end=date(2018, 11, 1))
"""The paper's for Toys."""


class Cost(NamedTuple):
    """The cost of preprocessing, or of a part of it."""

    seconds: float
    peak_mb: float | None = None
    digest: str | None = None  # of the splits


def benchmark_preprocessing(size: Size, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the table's rows: from gzip, and from parsed rows to splits.

    Every side runs in a process of its own. From gzip, ours also computes checksums, statistics
    and the audit, and writes files; the plain side does not.
    """
    with TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        unpacked = write_reviews(raw, CATEGORY, size, seed)
        whole = [run_in_process(EMPTY, stage, raw) for stage in STAGES.values()]
        parsed = [run_in_process(EMPTY, part, raw) for part in (split_rows, split_rows_plainly)]
    sizes = f"{size.reviews} reviews, {size.metadata} metadata rows, {unpacked / 1e6:.0f} MB"
    equal = parsed[0].digest == parsed[1].digest
    for part, (ours, theirs) in (("from gzip", whole), ("from parsed rows", parsed)):
        setting = f"{sizes}, {part}, {pl.thread_pool_size()} threads"
        peaks = {"peak_mb_ours": ours.peak_mb, "peak_mb_theirs": theirs.peak_mb}
        yield compare(PREPROCESSING, PLAIN, setting, ours.seconds, theirs.seconds, equal) | peaks


def time_by_reviews(numbers: Sequence[int], limit: float, seed: int) -> Iterator[tuple]:
    """Yield the rows of the curves: both sides from gzip, by number of reviews.

    The curve of a side ends when it takes longer than `limit` seconds.
    """
    stages = STAGES
    for num_reviews in numbers:
        with TemporaryDirectory() as folder:
            raw = Path(folder, "raw")
            write_reviews(raw, CATEGORY, size_like_toys(num_reviews), seed)
            costs = {side: run_in_process(EMPTY, stage, raw) for side, stage in stages.items()}
        for side, cost in costs.items():
            yield num_reviews, REVIEWS, side, cost.seconds, cost.peak_mb
        stages = {side: stages[side] for side, cost in costs.items() if cost.seconds <= limit}
        if not stages:
            return


def size_like_toys(num_reviews: int) -> Size:
    """Return a size with as much metadata per review as Amazon's Toys_and_Games has."""
    return Size(num_reviews, 3 * num_reviews // 10)


def preprocess_files(raw: Path) -> Cost:
    """Run our whole stage; it writes its output beside the raw files."""
    return measure(lambda: preprocess(RULES, raw, raw.with_name("data")))


def preprocess_files_plainly(raw: Path) -> Cost:
    return measure(lambda: plain.split(*plain.read(raw, CATEGORY), RULES))


STAGES = {PREPROCESSING: preprocess_files, PLAIN: preprocess_files_plainly}


def measure(call: Callable[[], Any]) -> Cost:
    """Return the seconds and peak MB of one call."""
    seconds = 0.0

    def timed() -> None:
        nonlocal seconds
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started

    peak_mb = measure_peak_memory(timed, torch.device("cpu"))
    return Cost(seconds, peak_mb)


def split_rows(raw: Path) -> Cost:
    """Apply our rules to the reader's data frames."""
    parsed = read_raw(RULES, raw)
    started = time.perf_counter()
    made = process_events(RULES, parsed)
    seconds = time.perf_counter() - started
    splits = [frame.select(*SPLIT_SCHEMA).rows() for frame in made.splits.values()]
    return Cost(seconds, digest=hash_splits(made.items["title"].to_list(), splits))


def split_rows_plainly(raw: Path) -> Cost:
    """Apply the plain side's rules to its tuples."""
    parsed = plain.read(raw, CATEGORY)
    started = time.perf_counter()
    titles, splits = plain.split(*parsed, RULES)
    return Cost(time.perf_counter() - started, digest=hash_splits(titles, splits))


def hash_splits(titles: list[str], splits: list[list]) -> str:
    """Return a digest of titles and splits, small enough to pass between processes."""
    return hashlib.sha256(repr((titles, splits)).encode()).hexdigest()
