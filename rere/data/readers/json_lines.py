"""Read records from files of JSON lines."""

import ast
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from rere.data.readers.text_files import (
    UTF8,
    LineCounter,
    drop_blank,
    not_text,
    open_decompressed,
    read_lines,
)


def read_json_records(
    path: Path,
    fields: Mapping[str, str],
    counter: LineCounter,
    member: str | None = None,
    encoding: str = UTF8,
) -> Iterator[pl.DataFrame]:
    """Yield records of a file of JSON lines, many at a time: `line`, `text` and, as text, `fields`.

    `fields` maps column names to keys. A number becomes its digits, an absent key null. Lines that
    are not a JSON object, or have a list or an object under one of the keys, are counted as
    unreadable. A line that starts with `{'` is a Python dictionary, as in Amazon's metadata of
    2014; it is parsed as a literal, never run. `member` is a file of the tar at `path`.
    """
    keys = tuple(fields.values())
    with open_decompressed(path, member, encoding) as file:
        for lines in read_lines(file, path):
            records = decode_if_clean(lines["text"], keys)
            if records is None:
                lines = drop_blank(lines)
                records = decode_each(lines["text"], keys)
            records = drop_surrogates(records, lines["text"])
            counter.num_lines += len(lines)
            if records.null_count():
                fault = pl.when(pl.col("text").is_null()).then(pl.lit(not_text(encoding)))
                fault = fault.otherwise(pl.lit("not a JSON object of plain values"))
                counter.add_unreadable(lines.filter(records.is_null()).with_columns(fault=fault))
                lines, records = lines.filter(records.is_not_null()), records.drop_nulls()
            values = records.struct.unnest()
            yield lines.hstack([values[key].alias(name) for name, key in fields.items()])


def drop_surrogates(records: pl.Series, texts: pl.Series) -> pl.Series:
    """Return records, null where half of a surrogate pair became U+0000 in decoding its line."""
    fields = records.struct.unnest()
    may_have = fields.select(
        pl.any_horizontal(pl.all().str.contains("\0", literal=True)).fill_null(False)
    ).to_series()
    if not may_have.any():
        return records
    return records.set(may_have & texts.str.contains(r"\\u[dD][89a-fA-F]").fill_null(False), None)


def decode_if_clean(texts: pl.Series, keys: tuple[str, ...]) -> pl.Series | None:
    """Return the values of `keys` if each line is one JSON object, else perhaps None; fast."""
    try:
        records = texts.str.json_decode(pl.Struct(dict.fromkeys(keys, pl.String)))
    except pl.exceptions.ComputeError:
        return None
    return records if len(records) == len(texts) and not records.null_count() else None


def decode_each(texts: pl.Series, keys: tuple[str, ...]) -> pl.Series:
    """Return the values of `keys` in JSON objects, as structs of text, null for a broken one."""
    shape = pl.Struct(dict.fromkeys(keys, pl.String))
    stripped = texts.str.strip_chars()
    has_braces = stripped.str.starts_with("{") & stripped.str.ends_with("}")
    is_literal = (has_braces & stripped.str.starts_with("{'")).fill_null(False)
    records = decode_json(texts.set(~has_braces | is_literal, None), shape)
    if not is_literal.any():
        return records
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes, such as `\d`
        decoded = [
            decode_literal(line, keys) if literal else record
            for line, literal, record in zip(texts, is_literal, records, strict=True)
        ]
    return pl.Series(decoded, dtype=shape)


def decode_json(texts: pl.Series, shape: pl.Struct) -> pl.Series:
    """Return JSON objects as structs, null for a broken one.

    A broken object fails the whole series, so it is found by halving.
    """
    try:
        records = texts.str.json_decode(shape)
        # Polars reads the texts as one array, in which `{}, {}` would be two.
        if len(records) == len(texts):
            return records
    except pl.exceptions.ComputeError:
        pass
    if len(texts) == 1:
        return pl.Series([None], dtype=shape)
    middle = len(texts) // 2
    return pl.concat([decode_json(texts[:middle], shape), decode_json(texts[middle:], shape)])


def decode_literal(line: str, keys: tuple[str, ...]) -> dict[str, str | None] | None:
    """Return the values of `keys` in a Python dictionary literal, as text; None if broken."""
    try:
        record = ast.literal_eval(line.strip())
        if not isinstance(record, dict):
            return None
        return {key: literal_text(record.get(key)) for key in keys}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def literal_text(value: object) -> str | None:
    """Return a plain value as text; raises ValueError for others, and for too large a number.

    Python 2 wrote characters beyond U+FFFF as two surrogates. One without the other becomes U+FFFD.
    """
    if not isinstance(value, str | int | float | None):
        raise ValueError(value)
    text = None if value is None else str(value)
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
