"""The table of the ways to get candidates, and of what beam search misses.

search.csv      one row a way, scoring and number of candidates, then one a proof:
                what, a way of `rere.engine.rollout` or `certified`; scoring, the space of its
                probabilities; candidates a prompt; rows;
                distinct, the mean number of different items a prompt; invalid, the share of
                candidates that are no item; hit_rate, the share of rows whose target is among
                them; seconds a row, the median over batches; of beam search missed_top10, the
                share of the rows with a proved top 10 whose beams lack some of it;
                proved_rows, how many these are; nodes expanded a row, the mean
search.md       the same, to read and to paste
"""

import platform
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers

from rere.candidates.subject import CERTIFIED, TOP, Found, Side, Subject, load
from rere.config import Candidates
from rere.files import replacing
from rere.reporting.markup import pipes
from rere.speed.measure import Timed, in_turn

SCHEMA = {
    "what": pl.String,
    "scoring": pl.String,
    "candidates": pl.Int64,
    "rows": pl.Int64,
    "distinct": pl.Float64,
    "invalid": pl.Float64,
    "hit_rate": pl.Float64,
    "seconds": pl.Float64,
    "missed_top10": pl.Float64,
    "proved_rows": pl.Int64,
    "nodes": pl.Float64,
}
SCORINGS = ("vocabulary", "catalogue")
DRAWS = ("common", "dynamic", "stochastic_beam")


def search(options: Candidates, model: Path, data: Path, output: Path) -> None:
    """Measure the model in a folder on test rows of a data set; writes `output` and its .md."""
    subject = load(options, model, data)
    batches = subject.batches(max(*options.group_sizes, *options.beams))
    searches = {side: partial(subject.find, side) for side in sides(options)}
    timed = in_turn(searches, batches, "search")
    table = pl.DataFrame(list(rows(subject, timed)), schema=SCHEMA)
    setting = [
        " ".join(filter(None, (options.backbone, options.method))),
        f"{options.dataset}, {len(subject.prompts)} test rows, batches of {len(batches[0])}",
        f"{torch.get_num_threads()} threads",
        subject.model.device.type,
    ]
    texts = {
        ".csv": table.write_csv(float_precision=6),
        ".md": markdown(table, ", ".join(setting), options.max_nodes),
    }
    for suffix, text in texts.items():
        with replacing(output.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def sides(options: Candidates) -> list[Side]:
    """All that is measured, in the order of the table."""
    sizes = sorted({*options.group_sizes, *options.beams})
    return [
        *(Side("beam", scoring, size) for scoring in SCORINGS for size in sizes),
        *(Side(way, "catalogue", size) for way in DRAWS for size in options.group_sizes),
        *(Side("unconstrained", "vocabulary", size) for size in options.group_sizes),
        *(Side(CERTIFIED, scoring, TOP) for scoring in SCORINGS),
    ]


def rows(subject: Subject, timed: dict[Side, Timed]) -> Iterator[dict[str, Any]]:
    """The table's rows."""
    found = {side: Found.joined(each.results) for side, each in timed.items()}
    for side, each in found.items():
        row = {**side._asdict(), "rows": len(each.leaf), "seconds": timed[side].median}
        certified = found[Side(CERTIFIED, side.scoring, TOP)]
        if side.what == CERTIFIED:
            row |= {
                "proved_rows": int(subject.is_proved(each).sum()),
                "nodes": float(each.expanded.double().mean()),
            }
        else:
            row |= quality(each, subject.targets)
        if side.what == "beam" and side.candidates >= TOP:
            proved = subject.is_proved(certified)
            row["proved_rows"] = int(proved.sum())
            row["missed_top10"] = missed(each.leaf[proved], certified.leaf[proved])
        yield row


def quality(found: Found, target: torch.Tensor) -> dict[str, float]:
    """What the candidates of R rows are worth; `target` (R,) is the leaf of each."""
    leaf, exists = found.leaf, found.exists
    distinct = [len(set(row) - {-1}) for row in leaf.tolist()]
    return {
        "distinct": sum(distinct) / len(distinct),
        "invalid": float((exists & (leaf < 0)).sum() / exists.sum()),
        "hit_rate": float((leaf == target[:, None]).any(-1).double().mean()),
    }


def missed(leaf: torch.Tensor, true: torch.Tensor) -> float | None:
    """The share of rows whose leaves (R, K) lack some of the `true` (R, 10), where there are any.

    What is among the beams has its true score, so that the first ten of the list are the true
    ones where none is missing.
    """
    is_found = (true[:, :, None] == leaf[:, None, :]).any(-1) | (true < 0)
    return float((~is_found.all(-1)).double().mean()) if len(leaf) else None


def markdown(table: pl.DataFrame, setting: str, max_nodes: int) -> str:
    """The table with three digits a number, and what it was measured with."""
    cells = [[text(value) for value in row] for row in table.iter_rows()]
    lines = pipes([table.columns, *cells], names=2)
    return (
        f"{lines}\n\n{setting}. Seconds a row, medians over batches, all in turn. A proof may "
        f"expand {max_nodes} nodes; missed_top10 counts proved rows alone. torch "
        f"{torch.__version__}, transformers {transformers.__version__}, {platform.platform()}.\n"
    )


def text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
