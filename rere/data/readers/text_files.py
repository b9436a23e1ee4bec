"""Read text files in blocks of whole lines, compressed or in a tar, and count unreadable lines.

The first bytes of a file tell how it is compressed; its name does not matter. Memory holds a few
blocks, not the file. While one block is parsed, the next one is decompressed.
"""

import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
from isal import igzip, isal_zlib

from rere.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 1 << 21
"""Bytes read at a time: enough lines to outweigh a block's overhead, few enough for a cache."""

MAX_LINE = 1 << 26
"""Bytes; a file without line ends would fill the memory."""

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DAMAGE_ERRORS = (EOFError, OSError, isal_zlib.error, zstd.ZstdError, tarfile.TarError)

MAX_EXAMPLES = 3
"""Unreadable lines of a file that are logged."""


class LineCounter:
    """Counts a file's lines and the unreadable ones, which it tolerates up to a fraction."""

    def __init__(self, path: Path, tolerance: float) -> None:
        self.path, self.tolerance = path, tolerance
        self.num_lines = 0
        self.unreadable: Counter[str] = Counter()
        self.first: str | None = None

    def add_unreadable(self, rows: pl.DataFrame) -> None:
        """Count unreadable lines: `line` (1-based), `text`, and `fault`, why it is unreadable."""
        if rows.is_empty():
            return
        for line, text, fault in rows.head(MAX_EXAMPLES).select("line", "text", "fault").rows():
            self.first = self.first or f"line {line}: {fault}"
            if self.unreadable.total() < MAX_EXAMPLES:
                shown = "" if text is None else f": {text[:200]!r}"
                print(f"{self.path} line {line}: {fault}{shown}", file=sys.stderr)
        self.unreadable.update(dict(rows["fault"].value_counts().rows()))
        if 2 * self.unreadable.total() > self.num_lines:
            self.check()  # probably the wrong file: do not read on

    def check(self) -> dict[str, int]:
        """Return the counts, after the last line.

        Raises InputError for a file without lines, or with more unreadable ones than tolerated.
        """
        if self.num_lines == 0:
            raise InputError(f"{self.path}: holds no rows; fetch it again")
        if (count := self.unreadable.total()) > self.tolerance * self.num_lines:
            raise InputError(
                f"{self.path} {self.first}; {count} of {self.num_lines} lines are unreadable, more "
                f"than the tolerated fraction of {self.tolerance:g}; is it the right file? "
                "If so, fetch it again or raise `tolerance`"
            )
        return {"lines": self.num_lines, **dict(sorted(self.unreadable.items()))}


@contextmanager
def open_decompressed(path: Path, member: str | None = None) -> Iterator[BinaryIO]:
    """Open a file, or the file named `member` in a tar, for reading its decompressed bytes.

    Raises InputError if the file or the member is missing, or damaged where it is read.
    """
    try:
        with path.open("rb") as raw, decompress(raw) as file:
            if member is None:
                yield file
                return
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for entry in archive:
                    if entry.isfile() and Path(entry.name).name == member:
                        yield archive.extractfile(entry)
                        return
            raise InputError(f"{path}: holds no {member}; fetch it again")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except DAMAGE_ERRORS as error:
        raise InputError(f"{path}: cut short or damaged ({error}); fetch it again") from None


def decompress(raw: BinaryIO) -> BinaryIO:
    """Return a file of the decompressed bytes of a gzip or zstd file, else the file itself."""
    start = raw.read(4)
    raw.seek(0)
    if start.startswith(GZIP):
        return igzip.open(raw)
    return zstd.open(raw) if start == ZSTD else raw


def read_lines(file: BinaryIO, path: Path, fallback: str | None = None) -> Iterator[pl.DataFrame]:
    """Yield all lines of a file, many at a time: `line` (1-based) and `text`.

    A line that is not UTF-8 is decoded as `fallback`, or becomes null without one.
    """
    number = 1
    for block in prefetch(read_blocks(file, path)):
        texts = split_lines(block.removeprefix(b"\xef\xbb\xbf") if number == 1 else block, fallback)
        yield pl.DataFrame({"line": np.arange(number, number + len(texts)), "text": texts})
        number += len(texts)


def drop_blank(lines: pl.DataFrame) -> pl.DataFrame:
    """Return the lines that have more than white space."""
    return lines.filter((pl.col("text").str.strip_chars() != "").fill_null(True))


def read_blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in blocks that end at the end of a line."""
    while block := file.read(BLOCK):
        if not block.endswith(b"\n"):
            line = file.readline(MAX_LINE)
            if len(line) == MAX_LINE:
                raise InputError(
                    f"{path}: a line of more than {MAX_LINE >> 20} MB; is it a text file?"
                )
            block += line
        yield block


def prefetch(items: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same items, and get the next one in another thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def split_lines(block: bytes, fallback: str | None) -> pl.Series:
    """Return the lines of a block (str), decoded as `read_lines` says."""
    try:
        return pl.read_lines(block, name="text").to_series()
    except pl.exceptions.ComputeError:
        lines = block.removesuffix(b"\n").split(b"\n")
        texts = [decode_line(line.removesuffix(b"\r"), fallback) for line in lines]
        return pl.Series("text", texts, pl.String)


def decode_line(line: bytes, fallback: str | None) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None if fallback is None else line.decode(fallback)


def find_file(folder: Path, *names: str) -> Path:
    """Return the first of the files `names` in a folder, plain or compressed.

    Raises InputError if there is none.
    """
    for name in names:
        if (path := find_plain_or_compressed(folder / name)) is not None:
            return path
    raise InputError(
        f"{folder}: holds no {' or '.join(names)}, plain or with .gz or .zst; `rere fetch` "
        "downloads what is public"
    )


def find_plain_or_compressed(path: Path) -> Path | None:
    """Return the file at `path`, or with .gz or .zst added; None if there is none."""
    candidates = (path.with_name(f"{path.name}{suffix}") for suffix in ("", ".gz", ".zst"))
    return next((path for path in candidates if path.is_file()), None)
