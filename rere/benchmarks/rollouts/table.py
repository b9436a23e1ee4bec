"""The table of the ways to get candidates, and of what beam search misses.

search.csv      one row a way, scoring and number of candidates, then one a proof:
                what, a way of `rere.engine.search.rollout` or `certified`; scoring, the space of its
                probabilities; candidates a prompt; rows; batch, rows a pass;
                distinct, the mean number of different items a prompt; invalid, the share of
                candidates that are no item; hit_rate, the share of rows whose target is among
                them; seconds a row, the median over batches; of beam search missed_top10, the
                share of the rows with a proved top 10 whose beams lack some of it;
                proved_rows, how many these are; nodes expanded a row, the mean
search.md       the same, to read and to paste
"""

import itertools
import platform
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers

from rere.benchmarks.rollouts.subject import CERTIFIED, TOP, Found, Side, Subject, load
from rere.config.benchmarks import Candidates
from rere.files import replacing
from rere.reporting.markup import pipes
from rere.benchmarks.timing import batched, fastest_size, in_batches, in_turn

SCHEMA = {
    "what": pl.String,
    "scoring": pl.String,
    "candidates": pl.Int64,
    "rows": pl.Int64,
    "batch": pl.Int64,
    "distinct": pl.Float64,
    "invalid": pl.Float64,
    "hit_rate": pl.Float64,
    "seconds": pl.Float64,
    "missed_top10": pl.Float64,
    "proved_rows": pl.Int64,
    "nodes": pl.Float64,
}
SCORINGS = ("vocabulary", "catalogue")
DRAWS = ("iid", "oversample", "stochastic_beam")


def search(options: Candidates, model: Path, data: Path, output: Path) -> None:
    """Measure the model in a folder on test rows of a data set; writes `output` and its .md."""
    subject = load(options, model, data)
    numbers = range(len(subject.prompts))
    searches, sizes = {}, {}
    for side in sides(options):
        find, label = partial(subject.find, side), f"search: {' '.join(map(str, side))}"
        sizes[side] = fastest_size(find, numbers, options.batch_sizes, label)
        searches[side] = partial(in_batches, find, sizes[side])
    timed = in_turn(searches, batched(numbers, max(options.batch_sizes)), "search")

    found = {
        side: list(itertools.chain.from_iterable(each.results)) for side, each in timed.items()
    }
    rows = [
        {
            **side._asdict(),
            **worth(side, found, subject.targets),
            "rows": len(numbers),
            "batch": sizes[side],
            "seconds": each.median,
        }
        for side, each in timed.items()
    ]
    table = pl.DataFrame(rows, schema=SCHEMA)
    texts = {
        ".csv": table.write_csv(float_precision=6),
        ".md": markdown(table, f"{options.name}, {options.dataset}", subject),
    }
    for suffix, text in texts.items():
        with replacing(output.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def sides(options: Candidates) -> Iterator[Side]:
    """All that is measured, in the order of the table."""
    for scoring in SCORINGS:
        for size in sorted({*options.group_sizes, *options.beams}):
            yield Side("beam", scoring, size)
    for way, size in itertools.product(DRAWS, sorted(options.group_sizes)):
        yield Side(way, "catalogue", size)
    for size in sorted(options.group_sizes):
        yield Side("unconstrained", "vocabulary", size)
    for scoring in SCORINGS:
        yield Side(CERTIFIED, scoring, TOP)


def worth(
    side: Side, found: dict[Side, list[Found]], targets: Sequence[int]
) -> dict[str, float | int | None]:
    """What a side's candidates are worth, or its proofs and what they cost."""
    rows = found[side]
    if side.what == CERTIFIED:
        nodes = sum(row.expanded for row in rows) / len(rows)
        return {"proved_rows": sum(row.proved for row in rows), "nodes": nodes}
    values = quality([row.leaves for row in rows], targets)
    if side.what == "beam" and side.candidates >= TOP:
        certified = found[Side(CERTIFIED, side.scoring, TOP)]
        lists = [
            (row.leaves, true.leaves)
            for row, true in zip(rows, certified, strict=True)
            if true.proved
        ]
        values |= {"proved_rows": len(lists), "missed_top10": share_missing(lists)}
    return values


def quality(leaves: Sequence[Sequence[int]], targets: Sequence[int]) -> dict[str, float]:
    """Of each row's candidates, as leaves, -1 for what is no item; each row has one target."""
    number = sum(map(len, leaves))
    return {
        "distinct": sum(len({*row} - {-1}) for row in leaves) / len(leaves),
        "invalid": sum(row.count(-1) for row in leaves) / number,
        "hit_rate": sum(t in row for row, t in zip(leaves, targets, strict=True)) / len(leaves),
    }


def share_missing(lists: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float | None:
    """The share of pairs (found, true) that lack some of what is true; None without any.

    Beams have true scores, so the first ten of a list are the true ones if none is missing.
    """
    missing = [not {*true} <= {*found} for found, true in lists]
    return sum(missing) / len(missing) if missing else None


def markdown(table: pl.DataFrame, name: str, subject: Subject) -> str:
    """The table with three digits a number, and what it was measured with."""
    lines = pipes([table.columns, *([text(cell) for cell in row] for row in table.rows())], names=2)
    return (
        f"{lines}\n\n{name}, {torch.get_num_threads()} threads, {subject.model.device.type}, "
        f"float32. Seconds a row, medians over batches, all in turn. A proof may expand "
        f"{subject.max_nodes} nodes; missed_top10 is of proved rows alone. torch "
        f"{torch.__version__}, transformers {transformers.__version__}, {platform.platform()}.\n"
    )


def text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
