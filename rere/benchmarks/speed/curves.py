"""Cost by size: searches by catalogue size, beams and prompt length; preprocessing by reviews.

Columns of {benchmark}.curves.csv:

    x          the size: titles, beams, prompt tokens or reviews
    panel      which of these
    what       of a search its scoring, or generate; of reviews, preprocessing or plain Python
    seconds    of a search per row in float32, median over batches; of preprocessing in all
    peak_mb    of preprocessing
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from rere.benchmarks.models import GENERATE, BenchmarkModel, Searcher, load_benchmark_model
from rere.benchmarks.speed.preprocessing import time_by_reviews
from rere.benchmarks.timing import Prompts, split_batches, time_in_turn
from rere.config.benchmarks import SpeedOptions
from rere.files import replacing

SEARCHERS = (Searcher("catalogue"), Searcher("vocabulary"), GENERATE)
PANELS = ("titles", "beams", "prompt tokens")
SCHEMA = {
    "x": pl.Int64,
    "panel": pl.String,
    "what": pl.String,
    "seconds": pl.Float64,
    "peak_mb": pl.Float64,
}


def benchmark_speed_curves(options: SpeedOptions, folder: Path, data: Path, output: Path) -> None:
    """Benchmark the model in `folder` and preprocessing by size; write `output`, a .csv."""
    size, model = min(options.batch_sizes), load_benchmark_model("", folder, data)
    rows = model.sample_prompts(options.curve_batches * size, options.seed)
    table = time_by_size(options, model, split_batches([row.prompt for row in rows], size))
    table += time_by_reviews(options.reviews, options.curve_seconds, options.seed)
    with replacing(output) as temporary:
        pl.DataFrame(table, schema=SCHEMA, orient="row").write_csv(temporary, float_precision=6)


def time_by_size(
    options: SpeedOptions, model: BenchmarkModel, batches: Sequence[Prompts]
) -> list[tuple]:
    """Return the table's rows of each panel; a curve ends when a batch exceeds `curve_seconds`."""
    beams, seed, rows = options.beams[0], options.seed, []
    tokens = [token for batch in batches for prompt in batch for token in prompt]
    # Generators, so that one synthetic catalogue is in memory at a time.
    panels = (
        (
            (n, with_synthetic_titles(model, n, seed), beams, batches)
            for n in options.catalogue_sizes
        ),
        ((n, model, n, batches) for n in options.sweep_beams),
        ((n, model, beams, repeat_to_length(tokens, n, batches)) for n in options.prompt_lengths),
    )
    for panel, points in zip(PANELS, panels, strict=True):
        searchers = list(SEARCHERS)
        for x, searched, num_beams, prompts in points:
            calls = {each: partial(searched.search, each, num_beams) for each in searchers}
            timed = time_in_turn(calls, prompts, f"speed: {x} {panel}")
            rows += [(x, panel, each.name, timed[each].median, None) for each in searchers]
            limit = options.curve_seconds / len(prompts[0])
            searchers = [each for each in searchers if timed[each].median <= limit]
    return rows


def repeat_to_length(
    tokens: Sequence[int], length: int, batches: Sequence[Prompts]
) -> list[Prompts]:
    """Return as many prompts as `batches` hold, each of `length` of the repeated tokens."""
    repeated = itertools.cycle(tokens)
    return [[list(itertools.islice(repeated, length)) for _ in batch] for batch in batches]


def with_synthetic_titles(model: BenchmarkModel, num_titles: int, seed: int) -> BenchmarkModel:
    """Return the model with a catalogue of synthetic titles."""
    return replace(model, sequences=make_titles(num_titles, model.vocab_size, seed), eos=0)


def make_titles(num_titles: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Return token sequences that share prefixes as titles do, a function of the arguments.

    Between a first and a last token are 3 to 12 tokens with frequencies after Zipf's law: many
    titles share a few prefixes, and paths soon stop branching. Token 0 ends a title.
    """
    rng = np.random.default_rng(seed)
    cumulative = (1 / np.arange(1, vocab_size - 2)).cumsum()
    samples = rng.random((num_titles, 12)) * cumulative[-1]
    ranks = np.searchsorted(cumulative, samples, side="right")
    # A token's id must not depend on its frequency.
    tokens = rng.permutation(np.arange(3, vocab_size))[ranks].tolist()
    lengths = rng.integers(3, 12, num_titles, endpoint=True).tolist()
    return [[1, *row[:length], 2, 0] for row, length in zip(tokens, lengths, strict=True)]
