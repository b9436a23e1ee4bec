"""Benchmark tables as files: a .csv and an .md."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers
from tabulate import tabulate

from rere.files import replacing_all


def compare(
    what: str, against: str, setting: str, ours: float, theirs: float, equal: bool | None
) -> dict[str, Any]:
    """Return the columns that every comparison has (`rere.benchmarks.speed.table`)."""
    return {
        **{"what": what, "against": against, "setting": setting, "equal": equal},
        **{"ours_seconds": ours, "theirs_seconds": theirs, "ratio": theirs / ours},
    }


def write_table(table: pl.DataFrame, output: Path, names: int, note: str) -> None:
    """Write `output`, a .csv, and beside it an .md with `note` and the versions used.

    The first `names` columns are text.
    """
    text = format_table(table.rows(), table.columns, names)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    texts = {
        ".csv": table.write_csv(float_precision=6),
        ".md": f"{text}\n\n{note} {versions}, {platform.platform()}.\n",
    }
    with replacing_all([output.with_suffix(suffix) for suffix in texts]) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(text, encoding="utf-8")


def format_table(rows: Sequence[Sequence[Any]], columns: Sequence[str], names: int) -> str:
    """Return rows as a table of Markdown, the first `names` columns aligned as text."""
    sides = ["left"] * names + ["right"] * (len(columns) - names)
    cells = [[format_cell(cell) for cell in row] for row in rows]
    return tabulate(cells, columns, "pipe", colalign=sides, disable_numparse=True)


def format_cell(value: Any) -> str:
    """Return a cell of the .md; numbers have three digits or are whole."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value)
