"""The table of speed benchmarks: one row per comparison with a plain implementation.

Columns of {benchmark}.csv, and of {benchmark}.md to read and to paste:

    what, against       what is timed, and the plain implementation it is timed against
    setting             model, data set, sizes, threads and dtype
    ours_seconds, theirs_seconds    median seconds per row of data (of a step: per prompt;
                        of preprocessing and the prefix tree: in all)
    ratio               theirs_seconds / ours_seconds
    equal               whether both return the same: lists except for ties, losses and gradients
                        except for rounding, splits exactly; empty where they need not
    peak_mb_ours, peak_mb_theirs    peak MB above weights and imports, at their rows per pass
    differing_lists     share of rows whose lists differ (of bfloat16: whose first ten differ)
    ndcg@10_ours, ndcg@10_theirs    NDCG@10 of the lists
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from rere.benchmarks.models import GENERATE, BenchmarkModel, load_benchmark_model
from rere.benchmarks.speed import preference, preprocessing, rl, scoring, sft
from rere.benchmarks.speed.curves import make_titles
from rere.benchmarks.speed.search import IN_BFLOAT16, SEARCH, compare_searches, time_searches
from rere.benchmarks.table import write_table
from rere.benchmarks.timing import (
    PRELOADED,
    measure_peak_memory,
    pick_evenly,
    run_in_process,
    time_in_turn,
)
from rere.config.benchmarks import SpeedOptions
from rere.prefix_tree import PrefixTree

TREE = "prefix tree"
ORDER = (
    *(SEARCH, IN_BFLOAT16, scoring.SCORING, preference.STEP, rl.STEP, sft.SFT),
    *(preprocessing.PREPROCESSING, TREE),
)
"""The values of `what`, in the order of the table."""
SCHEMA = {
    "what": pl.String,
    "against": pl.String,
    "setting": pl.String,
    "ours_seconds": pl.Float64,
    "theirs_seconds": pl.Float64,
    "ratio": pl.Float64,
    "equal": pl.Boolean,
    "peak_mb_ours": pl.Float64,
    "peak_mb_theirs": pl.Float64,
    "differing_lists": pl.Float64,
    "ndcg@10_ours": pl.Float64,
    "ndcg@10_theirs": pl.Float64,
}
SFT_ROWS_PER_PROMPT = 8
"""Rows of SFT that fill a pass as much as one prompt with its group."""


def benchmark_speed(
    options: SpeedOptions,
    folders: Sequence[Path],
    names: Sequence[str],
    test_rows: Sequence[int],
    data: Path,
    output: Path,
) -> None:
    """Benchmark the models in `folders`, then preprocessing and the prefix tree.

    Writes `output`, a .csv, and its .md.
    """
    rows: list[dict[str, Any]] = []
    for folder, name, num_rows in zip(folders, names, test_rows, strict=True):
        model = load_benchmark_model(name, folder, data, ["float32", "bfloat16"])
        sampled = model.sample_prompts(num_rows, options.seed)
        searches = {
            num_beams: time_searches(options, model, num_beams, sampled)
            for num_beams in options.beams
        }
        prompts = [row.prompt for row in sampled]
        for num_beams, results in searches.items():
            rows += compare_searches(model, num_beams, prompts, results)
        if options.training_rows:
            generate_size = searches[options.beams[0]][GENERATE].batch_size
            rows += benchmark_training(options, model, generate_size)
    if options.reviews:
        size = preprocessing.size_like_toys(options.reviews[-1])
        rows += preprocessing.benchmark_preprocessing(size, options.seed)
    rows.append(benchmark_tree(options.catalogue_sizes[-1], model.vocab_size, options.seed))
    rows.sort(key=lambda row: ORDER.index(row["what"]))
    write_table(
        pl.DataFrame(rows, schema=SCHEMA),
        output,
        names=3,
        note="Medians, in seconds per row of data (of preprocessing and the tree: in all). All "
        "sides in turn, memory in fresh processes.",
    )


def benchmark_training(
    options: SpeedOptions, model: BenchmarkModel, generate_size: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of scoring and training.

    Plain steps are slow, and ratios depend on prompt length, so the few prompts represent equal
    parts of the test split. `generate_size` is the best batch size of `generate`.
    """
    rows = pick_evenly(model.sample_prompts(None, options.seed), options.training_rows)
    prompts, sizes = [row.prompt for row in rows], options.training_batch_sizes
    yield from scoring.benchmark_scoring(model, prompts, options.beams[0], sizes)
    yield from preference.benchmark_preference(model, rows, sizes)
    yield from rl.benchmark_rl(model, rows, generate_size, sizes)
    sft_sizes = [SFT_ROWS_PER_PROMPT * size for size in sizes]
    yield sft.benchmark_sft(model, options.sft_rows, sft_sizes, options.seed)


def benchmark_tree(num_titles: int, vocab_size: int, seed: int) -> dict[str, Any]:
    """Return the table's row of the prefix tree."""
    seconds, peak_mb = run_in_process(PRELOADED, time_tree, num_titles, vocab_size, seed)
    row = {"what": TREE, "setting": f"{num_titles} synthetic titles"}
    return row | {"ours_seconds": seconds, "peak_mb_ours": peak_mb}


def time_tree(num_titles: int, vocab_size: int, seed: int) -> tuple[float, float | None]:
    """Return the seconds and peak MB of building the prefix tree of synthetic titles."""
    titles = make_titles(num_titles, vocab_size, seed)
    timed = time_in_turn({TREE: PrefixTree.build}, [titles], f"speed: tree of {num_titles} titles")
    peak_mb = measure_peak_memory(lambda: PrefixTree.build(titles), torch.device("cpu"))
    return timed[TREE].median * num_titles, peak_mb
