"""Read text files in blocks of whole lines, compressed or in a tar, and count unreadable lines.

The first bytes of a file tell how it is compressed; its name does not matter. Memory holds a few
blocks, not the file. While one block is parsed, the next one is decompressed.
"""

import io
import logging
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import polars as pl
from isal import igzip, isal_zlib

from rere.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = logging.getLogger(__name__)

BLOCK = 1 << 21
"""Bytes read at a time: enough lines to outweigh a block's overhead, few enough for a cache."""

MAX_LINE = 1 << 26
"""Bytes; a file without line ends would fill the memory."""

UTF8 = "utf-8"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE),
)
DAMAGE_ERRORS = (EOFError, OSError, isal_zlib.error, zstd.ZstdError, tarfile.TarError)

MAX_TAR_HEADER = 1 << 16
"""Bytes of names and attributes before a file in a tar; tarfile would read them whole."""

MAX_EXAMPLES = 3
"""Unreadable lines of a file that are logged."""


class LineCounter:
    """Counts a file's lines and the unreadable ones, which it tolerates up to a fraction.

    `remedy` returns what to do about a fault, or about a file as a whole ("").
    """

    def __init__(
        self,
        path: Path,
        tolerance: float,
        remedy: Callable[[str], str] = lambda fault: "fetch it again",
    ) -> None:
        self.path, self.tolerance, self.remedy = path, tolerance, remedy
        self.num_lines = 0
        self.unreadable: Counter[str] = Counter()
        self.first: tuple[int, str] | None = None
        self.examples: list[str] = []

    def add_unreadable(self, rows: pl.DataFrame) -> None:
        """Count unreadable lines: `line` (1-based), `text`, and `fault`, why it is unreadable."""
        if rows.is_empty():
            return
        for line, text, fault in rows.head(MAX_EXAMPLES).select("line", "text", "fault").rows():
            self.first = self.first or (line, fault)
            if self.unreadable.total() < MAX_EXAMPLES:
                shown = "" if text is None else f": {text[:200]!r}"
                self.examples.append(f"{self.path} line {line}: {fault}{shown}")
        self.unreadable.update(dict(rows["fault"].value_counts().rows()))
        if 2 * self.unreadable.total() > self.num_lines:
            self.check()  # probably the wrong file: do not read on

    def check(self) -> dict[str, int]:
        """Return the counts, after the last line, and log the first unreadable lines.

        Raises InputError for a file without lines, or with more unreadable ones than tolerated.
        """
        if self.num_lines == 0:
            raise InputError(f"{self.path}: holds no rows; {self.remedy('')}")
        count = self.unreadable.total()
        if self.first is not None and count > self.tolerance * self.num_lines:
            line, fault = self.first
            raise InputError(
                f"{self.path} line {line}: {fault}; {count} of {self.num_lines} lines are "
                f"unreadable, more than the tolerated fraction of {self.tolerance:g}; is it the "
                f"right file? If so, {self.remedy(fault)} or raise `tolerance`"
            )
        while self.examples:
            log.warning("%s", self.examples.pop(0))
        return {"lines": self.num_lines, **dict(sorted(self.unreadable.items()))}


class TarHeader(tarfile.TarInfo):
    """The header of a file in a tar. Extensions, which can claim any amount of memory, are skipped.

    Files that need them are not found: sparse ones, and those with paths of more than 255
    characters.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str | None, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENSIONS:
            if header.size > MAX_TAR_HEADER:
                raise tarfile.ReadError(f"a header of {header.size} bytes")
            header.type = b"?"  # tarfile skips what it does not know
        return header


class Recoded:
    """A file's text in UTF-8. Bytes that are not text in its encoding stay, and are not UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self.text = io.TextIOWrapper(file, encoding, "surrogateescape", newline="\n")

    def read(self, size: int) -> bytes:
        return self.text.read(size).encode(errors="surrogateescape")

    def readline(self, size: int) -> bytes:
        return self.text.readline(size).encode(errors="surrogateescape")


@contextmanager
def open_decompressed(
    path: Path, member: str | None = None, encoding: str = UTF8
) -> Iterator[BinaryIO | Recoded]:
    """Open a file, or the file named `member` in a tar, for reading its decompressed bytes.

    Text of another encoding is recoded to UTF-8. Raises InputError if the file or the member is
    missing, or damaged where it is read.
    """
    try:
        with path.open("rb") as raw, decompress(raw) as file:
            if member is None:
                yield file if encoding == UTF8 else Recoded(file, encoding)
                return
            with tarfile.open(fileobj=file, mode="r|", tarinfo=TarHeader) as archive:
                for entry in archive:
                    if entry.isfile() and Path(entry.name).name == member:
                        yield archive.extractfile(entry)
                        return
            raise InputError(f"{path}: holds no {member}; fetch it again")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeError as error:
        raise InputError(f"{path}: not {encoding} ({error}); name its `encoding`") from None
    except DAMAGE_ERRORS as error:
        raise InputError(
            f"{path}: cut short or damaged ({error}); copy it or fetch it again"
        ) from None


def decompress(raw: BinaryIO) -> BinaryIO:
    """Return a file of the decompressed bytes of a gzip or zstd file, else the file itself."""
    start = raw.read(4)
    raw.seek(0)
    if start.startswith(GZIP):
        return igzip.open(raw)
    return zstd.open(raw) if start == ZSTD else raw


def read_lines(
    file: BinaryIO | Recoded, path: Path, fallback: str | None = None
) -> Iterator[pl.DataFrame]:
    """Yield all lines of a file, many at a time: `line` (1-based) and `text`.

    A line that is not UTF-8 is decoded as `fallback`, or becomes null without one.
    """
    number = 1
    for block in prefetch(read_blocks(file, path)):
        texts = split_lines(block.removeprefix(b"\xef\xbb\xbf") if number == 1 else block, fallback)
        yield pl.DataFrame({"line": np.arange(number, number + len(texts)), "text": texts})
        number += len(texts)


def not_text(encoding: str) -> str:
    """Return the fault of a line that is not text in an encoding."""
    return f"not {encoding.upper()}"


def drop_blank(lines: pl.DataFrame) -> pl.DataFrame:
    """Return the lines that have more than white space."""
    return lines.filter((pl.col("text").str.strip_chars() != "").fill_null(True))


def read_blocks(file: BinaryIO | Recoded, path: Path) -> Iterator[bytes]:
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
    thread = ThreadPoolExecutor(1)
    following = thread.submit(next, items, None)
    try:
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
    finally:
        # The file may be closed now. Joining the thread instead could block for ever: the garbage
        # collector may close this generator while another thread starts, which holds locks.
        wait([following])
        thread.shutdown(wait=False)


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


def find_file(folder: Path, *names: str, remedy: str) -> Path:
    """Return the first of the files `names` in a folder, plain or compressed.

    Raises InputError with the `remedy` if there is none.
    """
    for name in names:
        if (path := find_plain_or_compressed(folder / name)) is not None:
            return path
    raise InputError(
        f"{folder}: holds no {' or '.join(names)}, plain or with .gz or .zst; {remedy}"
    )


def find_plain_or_compressed(path: Path) -> Path | None:
    """Return the file at `path`, or with .gz or .zst added; None if there is none."""
    candidates = (path.with_name(f"{path.name}{suffix}") for suffix in ("", ".gz", ".zst"))
    return next((path for path in candidates if path.is_file()), None)
