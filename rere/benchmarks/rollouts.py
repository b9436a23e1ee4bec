"""The table of rollout strategies: what each finds, what it costs, and what beam search misses.

One row per strategy, scoring and number of candidates, then one per scoring for the certified top
10. Columns of {benchmark}.csv, and of {benchmark}.md to read and to paste:

    strategy       a strategy of `rere.engine.search.rollout`, or `certified`
    scoring        tokens over which probabilities are normalised
    candidates     per prompt
    rows           test rows, all of them timed
    batch          rows per pass, the fastest of the configured sizes
    distinct       mean number of distinct items per prompt
    invalid        share of candidates that are not items
    hit_rate       share of rows whose target is among the candidates
    seconds        per row, median over batches
    missed_top10   of beam search: share of the proved rows whose top 10 is incomplete
    proved_rows    rows whose top 10 is proved
    nodes          of `certified`: mean number of nodes expanded per row
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rere.benchmarks.models import SCORINGS, BenchmarkModel, PromptRow, load_benchmark_model
from rere.benchmarks.table import write_table
from rere.benchmarks.timing import (
    call_in_batches,
    find_fastest_batch_size,
    split_batches,
    time_in_turn,
)
from rere.config.benchmarks import RolloutOptions
from rere.config.options import Scoring
from rere.engine.search.best_first import best_first_search
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out

CERTIFIED = "certified"
TOP = 10
"""Ranks that are proved."""
SAMPLERS = ("iid", "oversample", "stochastic_beam")
SCHEMA = {
    "strategy": pl.String,
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


class Setting(NamedTuple):
    """One measured row of the table."""

    strategy: str
    scoring: Scoring
    candidates: int


class Found(NamedTuple):
    """The candidates of one test row."""

    leaves: list[int]  # -1 for non-items
    is_proved: bool = False  # of CERTIFIED: whether these are the true top
    num_nodes: int = 0  # of CERTIFIED: nodes expanded


def benchmark_rollouts(
    options: RolloutOptions, name: str, folder: Path, data: Path, output: Path
) -> None:
    """Benchmark the model in `folder` on test rows; write `output`, a .csv, and its .md."""
    model = load_benchmark_model(name, folder, data)
    rows = model.sample_prompts(options.rows, options.seed)
    calls, sizes = {}, {}
    for setting in list_settings(options):
        find = partial(find_candidates, model, options, setting)
        label = f"rollouts: {' '.join(map(str, setting))}"
        sizes[setting] = find_fastest_batch_size(find, rows, options.batch_sizes, label)
        calls[setting] = partial(call_in_batches, find, sizes[setting])
    timed = time_in_turn(calls, split_batches(rows, max(options.batch_sizes)), "rollouts")

    found = {
        setting: [row for batch in timings.results for row in batch]
        for setting, timings in timed.items()
    }
    targets = model.tree.leaf_of_item[[row.target for row in rows]].tolist()
    table = [
        {
            **setting._asdict(),
            **score_setting(setting, found, targets),
            "rows": len(rows),
            "batch": sizes[setting],
            "seconds": timings.median,
        }
        for setting, timings in timed.items()
    ]
    write_table(
        pl.DataFrame(table, schema=SCHEMA),
        output,
        names=2,
        note=f"{model.describe()}. Seconds per row, medians over batches, all in turn. A proof "
        f"expands at most {options.max_nodes} nodes; missed_top10 is of proved rows only.",
    )


def list_settings(options: RolloutOptions) -> Iterator[Setting]:
    """Yield the settings in the order of the table."""
    for scoring in SCORINGS:
        for size in sorted({*options.group_sizes, *options.beams}):
            yield Setting("beam", scoring, size)
    for strategy, size in itertools.product(SAMPLERS, sorted(options.group_sizes)):
        yield Setting(strategy, "catalogue", size)
    for size in sorted(options.group_sizes):
        yield Setting("unconstrained", "vocabulary", size)
    for scoring in SCORINGS:
        yield Setting(CERTIFIED, scoring, TOP)


def find_candidates(
    model: BenchmarkModel, options: RolloutOptions, setting: Setting, rows: Sequence[PromptRow]
) -> list[Found]:
    """Return the candidates of each row, without empty entries."""
    strategy, scoring, num_candidates = setting
    weights, tree, prompts = model.float32, model.tree, [row.prompt for row in rows]
    if strategy == CERTIFIED:
        top = min(TOP, int((tree.fanout == 0).sum()))  # all of a small catalogue
        leaf, _, proved, num_nodes = best_first_search(
            weights, tree, prompts, top, scoring, options.max_nodes
        )
        return list(map(Found, leaf.tolist(), (proved == top).tolist(), num_nodes.tolist()))
    seeds = row_seeds(options.seed, 0, [row.row_id for row in rows]).to(model.device)
    found = roll_out(weights, tree, prompts, strategy, num_candidates, seeds, scoring)
    counts = found.exists.sum(-1).tolist()
    return [Found(x[:count]) for x, count in zip(found.leaf.tolist(), counts, strict=True)]


def score_setting(
    setting: Setting, found: dict[Setting, list[Found]], targets: Sequence[int]
) -> dict[str, float | int | None]:
    """Return the quality of a setting's candidates, or the success and cost of its proofs."""
    rows = found[setting]
    if setting.strategy == CERTIFIED:
        nodes = sum(row.num_nodes for row in rows) / len(rows)
        return {"proved_rows": sum(row.is_proved for row in rows), "nodes": nodes}
    values = score_candidates([row.leaves for row in rows], targets)
    if setting.strategy == "beam" and setting.candidates >= TOP:
        certified = found[Setting(CERTIFIED, setting.scoring, TOP)]
        pairs = [
            (row.leaves, true.leaves)
            for row, true in zip(rows, certified, strict=True)
            if true.is_proved
        ]
        values |= {"proved_rows": len(pairs), "missed_top10": share_incomplete(pairs)}
    return values


def score_candidates(leaves: Sequence[Sequence[int]], targets: Sequence[int]) -> dict[str, float]:
    """Return distinct, invalid and hit_rate of each row's candidates, -1 for non-items."""
    number = sum(map(len, leaves))
    return {
        "distinct": sum(len({*row} - {-1}) for row in leaves) / len(leaves),
        "invalid": sum(row.count(-1) for row in leaves) / number,
        "hit_rate": sum(t in row for row, t in zip(leaves, targets, strict=True)) / len(leaves),
    }


def share_incomplete(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float | None:
    """Return the share of pairs (found, true) in which a true leaf was not found; None without any.

    Beams have exact scores, so a list with all of the true top 10 has them in its first ten.
    """
    missing = [not {*true} <= {*found} for found, true in pairs]
    return sum(missing) / len(missing) if missing else None
