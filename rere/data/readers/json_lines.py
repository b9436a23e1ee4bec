"""Read records from files of JSON lines."""

import ast
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from rere.data.readers.text_files import LineCounter, drop_blank, open_decompressed, read_lines


def read_json_records(
    path: Path, fields: Mapping[str, str], counter: LineCounter, member: str | None = None
) -> Iterator[pl.DataFrame]:
    """Yield records of a file of JSON lines, many at a time: `line`, `text` and, as text, `fields`.

    `fields` maps column names to keys. A number becomes its digits, an absent key null. Lines that
    are not a JSON object, or have a list or an object under one of the keys, are counted as
    unreadable. A line that starts with `{'` is a Python dictionary, as in Amazon's metadata of
    2014; it is parsed as a literal, never run. `member` is a file of the tar at `path`.
    """
    keys = tuple(fields.values())
    with open_decompressed(path, member) as file:
        for lines in read_lines(file, path):
            records = decode_if_clean(lines["text"], keys)
            if records is None:
                lines = drop_blank(lines)
                records = decode_each(lines["text"], keys)
            counter.num_lines += len(lines)
            if records.null_count():
                fault = pl.when(pl.col("text").is_null()).then(pl.lit("not UTF-8"))
                fault = fault.otherwise(pl.lit("not a JSON object of plain values"))
                counter.add_unreadable(lines.filter(records.is_null()).with_columns(fault=fault))
                lines, records = lines.filter(records.is_not_null()), records.drop_nulls()
            values = records.struct.unnest()
            yield lines.hstack([values[key].alias(name) for name, key in fields.items()])


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
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    values = {key: record.get(key) for key in keys} if isinstance(record, dict) else None
    if values is None or any(isinstance(value, list | dict | tuple) for value in values.values()):
        return None
    return {key: None if value is None else str(value) for key, value in values.items()}
