"""Text files as blocks of whole lines, compressed or in a tar, and what of them is unreadable.

How a file is compressed is told from its first bytes, whatever it is called. Memory holds a few
blocks, not the file; while one block is parsed, the next one is decompressed.
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
"""Bytes read at a time: enough lines that a block's own cost is little, few enough for a cache."""

LONGEST_LINE = 1 << 26
"""Bytes; a file without line ends would fill the memory."""

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DAMAGE = (EOFError, OSError, isal_zlib.error, zstd.ZstdError, tarfile.TarError)

EXAMPLES = 3
"""Unreadable lines of a file that the log shows."""


class Tally:
    """What could not be read of a file: counted, sampled into the log, tolerated up to a share."""

    def __init__(self, path: Path, tolerance: float) -> None:
        self.path, self.tolerance = path, tolerance
        self.lines = 0
        self.lost: Counter[str] = Counter()
        self.first: str | None = None

    def lose(self, rows: pl.DataFrame) -> None:
        """Count unreadable lines: `line` (1-based), `text` and `fault`, why one is unreadable."""
        if rows.is_empty():
            return
        for line, text, fault in rows.head(EXAMPLES).select("line", "text", "fault").rows():
            self.first = self.first or f"line {line}: {fault}"
            if self.lost.total() < EXAMPLES:
                shown = "" if text is None else f": {text[:200]!r}"
                print(f"{self.path} line {line}: {fault}{shown}", file=sys.stderr)
        self.lost.update(dict(rows["fault"].value_counts().rows()))
        if 2 * self.lost.total() > self.lines:
            self.settle()  # the wrong file altogether; do not read on

    def settle(self) -> dict[str, int]:
        """The counts, once all lines are read.

        Raises InputError for a file without lines, or with more unreadable ones than tolerated.
        """
        if self.lines == 0:
            raise InputError(f"{self.path}: holds no rows; fetch it again")
        if (lost := self.lost.total()) > self.tolerance * self.lines:
            raise InputError(
                f"{self.path} {self.first}; {lost} of {self.lines} lines are unreadable, which is "
                f"more than the tolerated share of {self.tolerance:g}; is it the right file? "
                "If so, fetch it again or raise `tolerance`"
            )
        return {"lines": self.lines, **dict(sorted(self.lost.items()))}


@contextmanager
def opened(path: Path, member: str | None = None) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed; of a tar those of its `member`, a file name.

    Raises InputError if the file or the member is missing, or damaged where it is read.
    """
    try:
        with path.open("rb") as raw, decompressed(raw) as file:
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
    except DAMAGE as error:
        raise InputError(f"{path}: cut short or damaged ({error}); fetch it again") from None


def decompressed(raw: BinaryIO) -> BinaryIO:
    """A file's bytes, through gzip or zstd where its first bytes say so."""
    start = raw.read(4)
    raw.seek(0)
    if start.startswith(GZIP):
        return igzip.open(raw)
    return zstd.open(raw) if start == ZSTD else raw


def line_blocks(file: BinaryIO, path: Path, fallback: str | None = None) -> Iterator[pl.DataFrame]:
    """All lines of a file, many at a time: `line` (1-based) and `text`.

    A line that is not UTF-8 is decoded as `fallback`, or null without one.
    """
    number = 1
    for block in ahead(blocks(file, path)):
        texts = split(block.removeprefix(b"\xef\xbb\xbf") if number == 1 else block, fallback)
        yield pl.DataFrame({"line": np.arange(number, number + len(texts)), "text": texts})
        number += len(texts)


def without_blank(lines: pl.DataFrame) -> pl.DataFrame:
    """Lines with more than white space in them."""
    return lines.filter((pl.col("text").str.strip_chars() != "").fill_null(True))


def blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """A file's bytes in pieces that end where a line ends."""
    while block := file.read(BLOCK):
        if not block.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
            if len(line) == LONGEST_LINE:
                raise InputError(f"{path}: a line of more than {LONGEST_LINE >> 20} MB; no text")
            block += line
        yield block


def ahead(items: Iterator[bytes]) -> Iterator[bytes]:
    """The same items, each one made in another thread while the one before is being used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def split(block: bytes, fallback: str | None) -> pl.Series:
    """The lines of a block (str); one that is not UTF-8 as `fallback`, or null without one."""
    try:
        return pl.read_lines(block, name="text").to_series()
    except pl.exceptions.ComputeError:
        lines = block.removesuffix(b"\n").split(b"\n")
        texts = [decode(line.removesuffix(b"\r"), fallback) for line in lines]
        return pl.Series("text", texts, pl.String)


def decode(line: bytes, fallback: str | None) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None if fallback is None else line.decode(fallback)


def find(folder: Path, *names: str) -> Path:
    """The first of the files `names`, as it is or compressed, in a folder.

    Raises InputError if there is none.
    """
    for name in names:
        if (path := variant(folder / name)) is not None:
            return path
    raise InputError(
        f"{folder}: holds no {' or '.join(names)}, as it is or with .gz or .zst; `rere fetch` "
        "downloads what is public"
    )


def variant(path: Path) -> Path | None:
    """The file at `path` or with what compressing adds to its name; None if there is none."""
    variants = (path.with_name(f"{path.name}{suffix}") for suffix in ("", ".gz", ".zst"))
    return next((path for path in variants if path.is_file()), None)
