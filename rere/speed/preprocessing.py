"""The data stage beside plain Python under the same rules, on reviews as Amazon lays them out."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch

from rere.config.data import Amazon2018
from rere.data.preprocess import from_events, preprocess, read
from rere.data.splits import SPLITS, read_items, read_split
from rere.speed import plain_data
from rere.speed.measure import peak_memory
from rere.speed.reviews import Size, write_reviews

PREPROCESSING = "preprocessing"
PLAIN = "plain Python"
CATEGORY = "Toys_and_Games"
CPU = torch.device("cpu")


def rows(size: Size, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the table (`rere.speed.table`): from gzip, and from parsed rows to splits.

    From gzip ours includes what the plain side leaves out: checksums, statistics, the audit and
    the files that are written. Seconds are of the whole stage; sides in turn, each in a process
    of its own, and once more for its peak memory.
    """
    with TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        unpacked = write_reviews(raw, CATEGORY, size, seed)
        ours, theirs = (in_new_process(side, raw, Path(folder)) for side in (timed, timed_plainly))
        peaks = [in_new_process(peak_of, side, raw, Path(folder)) for side in ("ours", "theirs")]
        equal = ours["splits"] == theirs["splits"]
    setting = f"{size.reviews} reviews, {size.metadata} metadata rows, {unpacked / 1e6:.0f} MB"
    for step, memory in (("from gzip", peaks), ("from parsed rows", [None, None])):
        yield {
            "what": PREPROCESSING,
            "against": PLAIN,
            "setting": f"{setting}, {step}, {pl.thread_pool_size()} threads",
            "ours_seconds": ours[step],
            "theirs_seconds": theirs[step],
            "ratio": theirs[step] / ours[step],
            "equal": equal,
            "peak_mb_ours": memory[0],
            "peak_mb_theirs": memory[1],
        }


def digest(titles: list[str], splits: list[list]) -> str:
    """A catalogue and its splits as a checksum, since they cross processes."""
    return hashlib.sha256(repr((titles, splits)).encode()).hexdigest()


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that has nothing in its memory yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def options() -> Amazon2018:
    """The paper's rules for Toys."""
    return Amazon2018(category=CATEGORY, start=date(2016, 10, 1), end=date(2018, 11, 1))


def timed(raw: Path, folder: Path) -> dict[str, Any]:
    """Seconds of our two steps, and a digest of the splits."""
    started = time.perf_counter()
    preprocess(options(), raw, folder / "data")
    whole = time.perf_counter() - started
    parsed = read(options(), raw)
    started = time.perf_counter()
    from_events(options(), parsed)
    rules = time.perf_counter() - started
    titles = read_items(folder / "data")["title"].to_list()
    splits = [read_split(folder / "data", split).rows() for split in SPLITS]
    return {"from gzip": whole, "from parsed rows": rules, "splits": digest(titles, splits)}


def timed_plainly(raw: Path, folder: Path) -> dict[str, Any]:
    """The same of the plain side."""
    started = time.perf_counter()
    parsed = plain_data.read(raw, CATEGORY)
    reading = time.perf_counter() - started
    started = time.perf_counter()
    titles, splits = split_plainly(*parsed)
    rules = time.perf_counter() - started
    return {
        "from gzip": reading + rules,
        "from parsed rows": rules,
        "splits": digest(titles, splits),
    }


def split_plainly(events: plain_data.Events, titles: list) -> tuple[list[str], list[list]]:
    rules = options()
    window = rules.start, rules.end, rules.least_items
    return plain_data.split(
        events, titles, *window, rules.max_title_words, rules.core, rules.max_history
    )


def peak_of(side: str, raw: Path, folder: Path) -> float | None:
    """MB that a side takes from gzip to splits."""
    if side == "ours":
        return peak_memory(lambda: preprocess(options(), raw, folder / "again"), CPU)
    return peak_memory(lambda: split_plainly(*plain_data.read(raw, CATEGORY)), CPU)
