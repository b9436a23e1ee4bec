"""Read CSV and TSV line by line, so that no row can vanish in the quotes of another one.

The first line names the columns. A field that opens with a quote ends with one; it may hold
separators or line ends, and doubled quotes. Anywhere else quotes are plain characters. A field in
quotes that holds both separators and line ends is taken for a quote that is not closed and the rows
after it: its first line is unreadable, the others are rows.
"""

import csv
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rere.data.readers.events import drop_unreadable
from rere.data.readers.text_files import (
    MAX_LINE,
    UTF8,
    LineCounter,
    drop_blank,
    not_text,
    open_decompressed,
    read_lines,
)
from rere.errors import InputError, hint

BROKEN_QUOTES = "broken quotes"
EXTRA = "more columns than the header"
MAX_LINES_PER_RECORD = 1000
csv.field_size_limit(MAX_LINE)  # its default would refuse a long description


class Layout(NamedTuple):
    """How lines become fields."""

    separator: str
    has_quotes: bool
    columns: dict[str, int]  # the column of each field
    num_columns: int


class QuotedRecord(NamedTuple):
    """A record that needs more than splitting: the positions of its lines, and its fields."""

    start: int
    stop: int
    fields: list[str]  # none if the quotes are broken


def read_delimited_records(
    path: Path,
    separator: str,
    fields: Mapping[str, str],
    counter: LineCounter,
    has_quotes: bool = True,
    encoding: str = UTF8,
) -> Iterator[pl.DataFrame]:
    """Yield records of a file, many at a time: `line`, `text` and, as text, `fields`.

    `fields` maps names to columns; absent ones are null. Lines with broken quotes, with too many
    fields, or that are not text in the `encoding`, are counted as unreadable. Raises InputError if
    the file is empty or lacks a column.
    """
    with open_decompressed(path, encoding=encoding) as file:
        blocks = (lines for lines in map(drop_blank, read_lines(file, path)) if len(lines))
        first = next(blocks, None)
        if first is None:
            raise InputError(f"{path}: is empty; {counter.remedy('')}")
        if (header := first["text"][0]) is None:
            fault = not_text(encoding)
            raise InputError(f"{path} line 1: {fault}; {counter.remedy(fault)}")
        layout = parse_header(path, header, separator, fields, has_quotes)
        rest = first.clear()  # lines of a record that may go on in the next block
        for block in itertools.chain([first[1:]], blocks, [None]):
            lines = rest if block is None else pl.concat([rest, block])
            quoted, end = find_quoted(lines["text"], layout, is_last=block is None)
            records = to_records(lines[:end], quoted, layout, not_text(encoding))
            counter.num_lines += len(records)
            yield drop_unreadable(records, counter).drop("fault")
            rest = lines[end:]


def parse_header(
    path: Path, line: str, separator: str, fields: Mapping[str, str], has_quotes: bool
) -> Layout:
    """Return the layout after the first line of a file; raise InputError if a column is missing."""
    quoting = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    try:
        names = next(csv.reader([line], delimiter=separator, quoting=quoting, strict=True))
    except csv.Error:
        raise InputError(f"{path} line 1: {BROKEN_QUOTES} in the header; correct it") from None
    check_columns(path, names, fields)
    for column in fields.values():
        if names.count(column) > 1:
            raise InputError(f"{path} line 1: has two columns {column}; rename one of them")
    columns = {field: names.index(column) for field, column in fields.items()}
    return Layout(separator, has_quotes, columns, len(names))


def check_columns(path: Path, names: list[str], fields: Mapping[str, str]) -> None:
    """Raise InputError if a column of `fields` is not among `names`."""
    for field, column in fields.items():
        if column not in names:
            raise InputError(f"{path}: has no column {column}; {hint(column, names)} ({field})")


def find_quoted(texts: pl.Series, layout: Layout, is_last: bool) -> tuple[list[QuotedRecord], int]:
    """Return the records that need more than splitting, and the position where to stop for now.

    From there on, unless these are the last lines, a record may go on in the next ones. A line
    whose quotes enclose fields without separators needs no more than splitting.
    """
    has_quote = texts.str.contains('"', literal=True)
    if not layout.has_quotes or not has_quote.any():
        return [], len(texts)
    plain = f'[^"{layout.separator}]*'
    is_simple = f'^(?:{plain}|"{plain}")(?:{layout.separator}(?:{plain}|"{plain}"))*$'
    positions, found, stop = (has_quote & ~texts.str.contains(is_simple)).arg_true(), [], 0
    lines = texts.to_list() if len(positions) else []
    for start in positions:
        if start < stop:
            continue
        ahead = (lines[i] for i in range(start, min(start + MAX_LINES_PER_RECORD, len(lines))))
        ahead = (f"{line}\n" for line in itertools.takewhile(lambda line: line is not None, ahead))
        reader, fields = csv.reader(ahead, delimiter=layout.separator, strict=True), []
        try:
            fields = next(reader)
        except csv.Error:
            if start + reader.line_num == len(lines) and not is_last:
                return found, start
        if any("\n" in each and layout.separator in each for each in fields):
            fields = []
        stop = start + (reader.line_num if fields else 1)
        found.append(QuotedRecord(start, stop, fields))
    return found, len(texts)


def to_records(
    lines: pl.DataFrame, quoted: list[QuotedRecord], layout: Layout, not_text: str
) -> pl.DataFrame:
    """Return the records of lines (line, text), with their fields and `fault`, null if readable."""
    text = pl.col("text")
    plain = text.str.replace_all('"', "", literal=True) if layout.has_quotes else text
    is_extra = plain.str.count_matches(layout.separator, literal=True) >= layout.num_columns
    fault = pl.when(text.is_null()).then(pl.lit(not_text)).when(is_extra).then(pl.lit(EXTRA))
    fields = plain.str.split_exact(layout.separator, layout.num_columns - 1)
    taken = [position for each in quoted for position in range(each.start, each.stop)]
    split = lines.filter(~pl.int_range(pl.len()).is_in(taken)) if taken else lines
    split = split.select("line", "text", fields=fields, fault=fault).unnest("fields")
    columns = {name: f"field_{column}" for name, column in layout.columns.items()}
    split = split.select("line", "text", "fault", **columns)
    if not quoted:
        return split
    whole = lines[[each.start for each in quoted]].with_columns(
        pl.Series("fault", [quoted_fault(each, layout) for each in quoted], pl.String),
        *(
            pl.Series(
                name,
                [each.fields[column] if column < len(each.fields) else None for each in quoted],
                pl.String,
            )
            for name, column in layout.columns.items()
        ),
    )
    return pl.concat([split, whole]).sort("line")


def quoted_fault(record: QuotedRecord, layout: Layout) -> str | None:
    """Return why a quoted record is unreadable, or None."""
    if not record.fields:
        return BROKEN_QUOTES
    return EXTRA if len(record.fields) > layout.num_columns else None
