"""The data stage beside plain Python under the same rules, on reviews as Amazon lays them out."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import polars as pl
import torch

from rere.config.data import Amazon2018
from rere.data.preprocess import from_events, preprocess, read
from rere.data.splits import SPLIT_SCHEMA
from rere.benchmarks.plain import data as plain_data
from rere.benchmarks.timing import compared, peak_memory
from rere.benchmarks.reviews import Size, write_reviews

PREPROCESSING = "preprocessing"
PLAIN = "plain Python"
GROWTH = "reviews"
"""The panel of the curves."""
CATEGORY = "Toys_and_Games"
CPU = torch.device("cpu")


class Took(NamedTuple):
    """What a side took for a step."""

    seconds: float
    peak_mb: float | None = None  # from gzip
    digest: str | None = None  # of the splits, from parsed rows


def rows(size: Size, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the table (`rere.benchmarks.speed.table`): from gzip, and from parsed rows to splits.

    Seconds are of a whole step, each in a process of its own. From gzip ours includes what the
    plain side leaves out: checksums, statistics, the audit and the files that are written.
    """
    with TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        unpacked = write_reviews(raw, CATEGORY, size, seed)
        whole = [in_new_process(stage, raw) for stage in STAGES.values()]
        rules = [in_new_process(step, raw) for step in (rules_alone, plain_rules_alone)]
    setting = f"{size.reviews} reviews, {size.metadata} metadata rows, {unpacked / 1e6:.0f} MB"
    equal = rules[0].digest == rules[1].digest
    for step, (ours, theirs) in (("from gzip", whole), ("from parsed rows", rules)):
        yield {
            "what": PREPROCESSING,
            "against": PLAIN,
            "setting": f"{setting}, {step}, {pl.thread_pool_size()} threads",
            **compared(ours.seconds, theirs.seconds),
            "equal": equal,
            "peak_mb_ours": ours.peak_mb,
            "peak_mb_theirs": theirs.peak_mb,
        }


def growth(numbers: Sequence[int], limit: float, seed: int) -> Iterator[tuple]:
    """Rows of the curves (`rere.benchmarks.speed.curves`): both sides from gzip, by the number of reviews.

    A side's curve ends where it takes longer than `limit` seconds.
    """
    stages = STAGES
    for reviews in numbers:
        with TemporaryDirectory() as folder:
            raw = Path(folder, "raw")
            write_reviews(raw, CATEGORY, like_toys(reviews), seed)
            took = {side: in_new_process(stage, raw) for side, stage in stages.items()}
        for side, (seconds, peak_mb, _) in took.items():
            yield reviews, GROWTH, side, seconds, peak_mb
        stages = {side: stages[side] for side, each in took.items() if each.seconds <= limit}
        if not stages:
            return


def like_toys(reviews: int) -> Size:
    """So many reviews, with as much metadata to them as Amazon's Toys_and_Games has."""
    return Size(reviews, 3 * reviews // 10)


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that has nothing in its memory yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def options() -> Amazon2018:
    """The paper's rules for Toys."""
    return Amazon2018(category=CATEGORY, start=date(2016, 10, 1), end=date(2018, 11, 1))


def stage(raw: Path) -> Took:
    """Our whole stage; what it writes lies beside the raw files."""
    return measured(lambda: preprocess(options(), raw, raw.with_name("data")))


def plain_stage(raw: Path) -> Took:
    return measured(lambda: split_plainly(*plain_data.read(raw, CATEGORY)))


STAGES = {PREPROCESSING: stage, PLAIN: plain_stage}


def measured(call: Callable[[], Any]) -> Took:
    """Seconds and MB of one call."""
    seconds = 0.0

    def timed() -> None:
        nonlocal seconds
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started

    peak_mb = peak_memory(timed, CPU)
    return Took(seconds, peak_mb)


def rules_alone(raw: Path) -> Took:
    """Our rules, from the frames of the reader on."""
    parsed = read(options(), raw)
    started = time.perf_counter()
    made = from_events(options(), parsed)
    seconds = time.perf_counter() - started
    splits = [frame.select(*SPLIT_SCHEMA).rows() for frame in made.splits.values()]
    return Took(seconds, digest=digest(made.items["title"].to_list(), splits))


def plain_rules_alone(raw: Path) -> Took:
    """The plain side's, from tuples on."""
    parsed = plain_data.read(raw, CATEGORY)
    started = time.perf_counter()
    titles, splits = split_plainly(*parsed)
    return Took(time.perf_counter() - started, digest=digest(titles, splits))


def split_plainly(events: plain_data.Events, titles: list) -> tuple[list[str], list[list]]:
    rules = options()
    window = rules.start, rules.end, rules.min_items
    return plain_data.split(
        events, titles, *window, rules.max_title_words, rules.core, rules.max_history
    )


def digest(titles: list[str], splits: list[list]) -> str:
    """A catalogue and its splits as a checksum, since they cross processes."""
    return hashlib.sha256(repr((titles, splits)).encode()).hexdigest()
