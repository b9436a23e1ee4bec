"""Seconds a row against catalogue size, beams and prompt length; preprocessing against reviews.

{speed}.curves.csv    x, panel, what, seconds, peak_mb;
                      titles, beams, prompt tokens: seconds a row in float32 of catalogue,
                      vocabulary (ours by scoring) and generate; reviews: seconds in all and MB at
                      the peak of preprocessing (ours) and plain Python
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from rere.config.benchmarks import Measurement
from rere.files import replacing
from rere.benchmarks.timing import Prompts, batched, in_turn
from rere.benchmarks.speed.preprocessing import growth
from rere.benchmarks.subject import GENERATE, Side, Subject, load, sample

SIDES = (Side("catalogue"), Side("vocabulary"), GENERATE)
PANELS = ("titles", "beams", "prompt tokens")
SCHEMA = {
    "x": pl.Int64,
    "panel": pl.String,
    "what": pl.String,
    "seconds": pl.Float64,
    "peak_mb": pl.Float64,
}


class Point(NamedTuple):
    """What is searched at one place of a panel."""

    x: int
    subject: Subject
    num_beams: int
    batches: Sequence[Prompts]


def speed_curves(options: Measurement, model: Path, data: Path, output: Path) -> None:
    """Measure the model in a folder on a data set and write `output`, a .csv."""
    size = min(options.batch_sizes)
    prompts, _ = sample(model, data, options.curve_batches * size, options.seed)
    rows = curves(options, load("", model, data, ["float32"]), batched(prompts, size))
    rows += growth(options.reviews, options.curve_seconds, options.seed)
    drawn = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    with replacing(output) as temporary:
        temporary.write_text(drawn.write_csv(float_precision=6), encoding="utf-8")


def curves(options: Measurement, subject: Subject, batches: Sequence[Prompts]) -> list[tuple]:
    """Time all sides at each point of each panel, as rows of {speed}.curves.csv.

    A curve ends where a batch takes longer than `curve_seconds`.
    """
    rows = []
    for panel, points in zip(PANELS, panels(options, subject, batches), strict=True):
        sides = list(SIDES)
        for x, searched, num_beams, prompts in points:
            searches = {side: partial(searched.search, side, num_beams) for side in sides}
            timed = in_turn(searches, prompts, f"speed: {x} {panel}")
            rows += [(x, panel, side.what, timed[side].median, None) for side in sides]
            limit = options.curve_seconds / len(prompts[0])
            sides = [side for side in sides if timed[side].median <= limit]
    return rows


def panels(
    options: Measurement, subject: Subject, batches: Sequence[Prompts]
) -> tuple[Iterator[Point], ...]:
    """The points of each of PANELS, each made when its turn has come."""
    beams = options.beams[0]
    tokens = list(itertools.chain.from_iterable(itertools.chain.from_iterable(batches)))
    return (
        (
            Point(n, with_titles(subject, n, options.seed), beams, batches)
            for n in options.catalogue_sizes
        ),
        (Point(k, subject, k, batches) for k in options.sweep_beams),
        (Point(n, subject, beams, of_length(tokens, n, batches)) for n in options.prompt_lengths),
    )


def of_length(tokens: Sequence[int], length: int, batches: Sequence[Prompts]) -> list[Prompts]:
    """As many prompts as `batches` hold, each of `length` tokens: `tokens` again and again."""
    endless = itertools.cycle(tokens)
    return [[list(itertools.islice(endless, length)) for _ in batch] for batch in batches]


def with_titles(subject: Subject, num_titles: int, seed: int) -> Subject:
    """The subject with a catalogue of synthetic titles."""
    (vocab_size,) = {model.config.vocab_size for model in subject.models.values()}
    return replace(subject, sequences=synthetic_titles(num_titles, vocab_size, seed), eos=0)


def synthetic_titles(num_titles: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Token sequences that are to a prefix tree what titles are; a function of the arguments.

    Between an opening and a closing token lie 3 to 12 tokens whose frequencies follow Zipf's
    law, so that a few prefixes are shared by many titles and most by few, and paths soon have
    no choice. Token 0 ends them.
    """
    rng = np.random.default_rng(seed)
    cumulative = (1 / np.arange(1, vocab_size - 2)).cumsum()
    drawn = rng.random((num_titles, 12)) * cumulative[-1]
    ranks = np.searchsorted(cumulative, drawn, side="right")
    # Which token is frequent has nothing to do with its number.
    tokens = rng.permutation(np.arange(3, vocab_size))[ranks].tolist()
    lengths = rng.integers(3, 12, num_titles, endpoint=True).tolist()
    return [[1, *row[:length], 2, 0] for row, length in zip(tokens, lengths, strict=True)]
