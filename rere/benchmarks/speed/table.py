"""The table of measurements.

{speed}.csv         one row a comparison: the search in float32 against `generate`, and in bfloat16
                    against float32; scoring, a step of S-DPO, one of RL and SFT against plain
                    ones; preprocessing against plain Python; the building of the prefix tree alone:
                    what, against, setting; seconds a row of data (of a step: a prompt, of
                    preprocessing and the tree: in all) and their ratio, theirs to ours; equal,
                    whether the lists are the same but for near ties, losses and gradients but for
                    rounding, or the splits; MB at the peak above the weights and what is
                    imported, both sides with as many rows a pass as theirs; differing_lists, the
                    share of rows whose lists differ (in bfloat16: whose first ten do); NDCG@10
{speed}.md          the same, to read and to paste
"""

import itertools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
import transformers

from rere.catalogue import PrefixTree
from rere.config.benchmarks import Measurement
from rere.files import replacing
from rere.progress import progress
from rere.reporting.markup import pipes
from rere.benchmarks.speed import preference
from rere.benchmarks.speed import preprocessing
from rere.benchmarks.speed import scoring
from rere.benchmarks.speed import sft
from rere.benchmarks.speed import rl as step
from rere.benchmarks.speed.agreement import ndcg, same_ranking, search_by_decision, share_differing
from rere.benchmarks.speed.curves import synthetic_titles
from rere.benchmarks.plain.generate import generate
from rere.benchmarks.timing import (
    Prompts,
    Timed,
    batched,
    compared,
    fastest_size,
    in_batches,
    in_fresh_process,
    in_turn,
    peak_memory,
    spread,
)
from rere.benchmarks.subject import GENERATE, SCORINGS, Side, Subject, load, peak_of_search, sample

SEARCH, IN_BFLOAT16, TREE = "beam search", "beam search in bfloat16", "prefix tree"
WHATS = (
    *(SEARCH, IN_BFLOAT16, scoring.SCORING, preference.STEP, step.STEP, sft.SFT),
    *(preprocessing.PREPROCESSING, TREE),
)
"""The order of the table."""
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
PLAIN_ROWS = 4
"""Rows of each setting that are searched plainly, too."""
FIRST = 10
"""Ranks that bfloat16 is compared on."""
ROWS_OF_SFT = 8
"""Rows of SFT that are as much as a prompt with its group."""


class Measured(NamedTuple):
    """What one side did in a setting."""

    batch_size: int
    timed: Timed
    leaves: list[list[int]]  # ranked, of each row
    peak_mb: float | None
    ndcg: float


def speed(
    options: Measurement,
    models: Sequence[Path],
    names: Sequence[str],
    rows: Sequence[int],
    data: Path,
    output: Path,
) -> None:
    """Measure the models in folders, their search on some test rows of a data set each.

    Writes `output`, a .csv, and its .md.
    """
    measured: list[dict[str, Any]] = []
    for model, name, num_rows in zip(models, names, rows, strict=True):
        prompts, targets = sample(model, data, num_rows, options.seed)
        subject = load(name, model, data, ["float32", "bfloat16"])
        peak = partial(in_fresh_process, peak_of_search, model, data)
        by_beams = {
            num_beams: measure(options, subject, num_beams, prompts, targets, peak)
            for num_beams in options.beams
        }
        for num_beams, sides in by_beams.items():
            measured += compare(subject, data.name, num_beams, prompts, sides)
        if options.training_rows:
            sides = by_beams[options.beams[0]]
            searched = {side.what: each.batch_size for side, each in sides.items()}
            measured += training(options, subject, model, data, searched)
    if options.reviews:
        measured += preprocessing.rows(preprocessing.like_toys(options.reviews[-1]), options.seed)
    measured.append(build_row(options, subject))
    measured.sort(key=lambda row: WHATS.index(row["what"]))
    table = pl.DataFrame(measured, schema=SCHEMA)
    texts = {".csv": table.write_csv(float_precision=6), ".md": markdown(table)}
    for suffix, text in texts.items():
        with replacing(output.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def measure(
    options: Measurement,
    subject: Subject,
    num_beams: int,
    prompts: Prompts,
    targets: Sequence[int],
    peak: Callable[[Side, int, Prompts], float | None],
) -> dict[Side, Measured]:
    """Each side's time and lists on all prompts, and its peak memory on the longest of them."""
    ours = [Side(scoring, dtype) for scoring in SCORINGS for dtype in subject.models]
    sizes = {
        side: best_batch_size(options, subject, side, num_beams, prompts)
        for side in [*ours, GENERATE]
    }
    label = f"speed: {subject.name}, {num_beams} beams"
    searches = {
        side: partial(in_batches, partial(subject.search, side, num_beams), size)
        for side, size in sizes.items()
    }
    timed = in_turn(searches, batched(prompts, max(options.batch_sizes)), label)
    target_leaves = subject.tree.leaf_of_item[targets].tolist()
    measured = {}
    with progress(len(timed), f"{label}, memory", "process") as bar:
        for side, each in timed.items():
            leaves = subject.leaves(list(itertools.chain.from_iterable(each.results)))
            peak_mb = peak(side, num_beams, prompts[-sizes[GENERATE] :])
            quality = ndcg(leaves, target_leaves)
            measured[side] = Measured(sizes[side], each, leaves, peak_mb, quality)
            bar.update()
    return measured


def best_batch_size(
    options: Measurement, subject: Subject, side: Side, num_beams: int, prompts: Prompts
) -> int:
    """The batch size at which a side is fastest.

    In bfloat16 it is that of float32, so that the two compare arithmetic alone.
    """
    search = partial(subject.search, side._replace(dtype="float32"), num_beams)
    return fastest_size(search, prompts, options.batch_sizes, f"speed: {side.what}")


def compare(
    subject: Subject,
    dataset: str,
    num_beams: int,
    prompts: Prompts,
    measured: dict[Side, Measured],
) -> Iterator[dict[str, Any]]:
    """The table's rows of one model and number of beams."""
    theirs = measured[GENERATE]
    for side, ours in measured.items():
        if side == GENERATE:
            continue
        if side.dtype != "float32":
            exact = measured[Side(side.what)]
            differing = share_differing(
                [row[:FIRST] for row in ours.leaves], [row[:FIRST] for row in exact.leaves]
            )
            row = {"what": IN_BFLOAT16, "against": "float32", "differing_lists": differing}
            row |= sides(ours, exact)
            batch = f"batch {ours.batch_size}"
        else:
            row = {"what": SEARCH, "against": "transformers generate"} | sides(ours, theirs)
            if side.what == "catalogue":
                row["equal"] = equals_plain(subject, num_beams, prompts, ours)
                row["differing_lists"] = share_differing(ours.leaves, theirs.leaves)
            else:
                row["equal"] = equals_generate(subject, num_beams, prompts, ours, theirs)
            batch = f"batch {ours.batch_size} (theirs {theirs.batch_size})"
        words = [subject.name, dataset, f"{num_beams} beams", side.what, batch]
        words += [f"{torch.get_num_threads()} threads", side.dtype]
        words += ["cuda"] * (subject.device.type == "cuda")
        yield row | {"setting": ", ".join(words)}


def sides(ours: Measured, theirs: Measured) -> dict[str, Any]:
    """What two sides took, and how good their lists are."""
    return {
        **compared(ours.timed.median, theirs.timed.median),
        "peak_mb_ours": ours.peak_mb,
        "peak_mb_theirs": theirs.peak_mb,
        "ndcg@10_ours": ours.ndcg,
        "ndcg@10_theirs": theirs.ndcg,
    }


def equals_generate(
    subject: Subject, num_beams: int, prompts: Prompts, ours: Measured, theirs: Measured
) -> bool:
    """Whether all lists are those of `generate`, but for near ties.

    Its scores, which tell ties, cost memory: they are asked for apart, and only where lists
    differ at all.
    """
    pairs = zip(prompts, ours.leaves, theirs.leaves, strict=True)
    differing = [(prompt, mine) for prompt, mine, other in pairs if mine != other]
    for part in batched(differing, theirs.batch_size):
        found, scores = generate(
            subject.models["float32"],
            subject.token_tree,
            subject.eos,
            [prompt for prompt, _ in part],
            num_beams,
            scored=True,
        )
        if not all(map(same_ranking, [m for _, m in part], subject.leaves(found), scores)):
            return False
    return True


def equals_plain(subject: Subject, num_beams: int, prompts: Prompts, ours: Measured) -> bool:
    """Whether lists under `catalogue` scores are those of the plain search, on a few rows."""
    for prompt, mine in spread(list(zip(prompts, ours.leaves, strict=True)), PLAIN_ROWS):
        found = search_by_decision(subject.models["float32"], subject.sequences, prompt, num_beams)
        expected = [subject.leaf[path] for path, _ in found]
        if not same_ranking(mine, expected, [score for _, score in found]):
            return False
    return True


def training(
    options: Measurement,
    subject: Subject,
    model: Path,
    data: Path,
    searched: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """The table's rows of what trains a model; `searched` are the prompts of each side's search.

    Prompts are few, since plain steps are slow, and ratios hang on their lengths: they stand for
    equal parts of the test split.
    """
    prompts, _ = sample(model, data, None, options.seed)
    chosen, sizes = spread(prompts, options.training_rows), options.training_batch_sizes
    yield from scoring.rows(subject, model, data, chosen, options.beams[0], sizes)
    yield from preference.rows(subject, data.name, chosen, sizes)
    yield from step.rows(subject, data.name, chosen, searched, sizes)
    sizes = [ROWS_OF_SFT * size for size in sizes]
    yield from sft.rows(subject, model, data, options.sft_rows, sizes, options.seed)


def build_row(options: Measurement, subject: Subject) -> dict[str, Any]:
    """The table's row of the prefix tree."""
    size = options.catalogue_sizes[-1]
    vocab_size = subject.models["float32"].config.vocab_size
    seconds, peak_mb = in_fresh_process(build, size, vocab_size, options.seed)
    row = {"what": TREE, "setting": f"{size} synthetic titles"}
    return row | {"ours_seconds": seconds, "peak_mb_ours": peak_mb}


def build(num_titles: int, vocab_size: int, seed: int) -> tuple[float, float | None]:
    """Seconds and MB to build the prefix tree of synthetic titles."""
    titles = synthetic_titles(num_titles, vocab_size, seed)
    timed = in_turn({TREE: PrefixTree.build}, [titles], f"speed: tree of {num_titles} titles")
    peak_mb = peak_memory(lambda: PrefixTree.build(titles), torch.device("cpu"))
    return timed[TREE].median * num_titles, peak_mb


def markdown(table: pl.DataFrame) -> str:
    """The table with three digits a number, and what it was measured with."""
    rows = [[text(value) for value in row] for row in table.iter_rows()]
    lines = pipes([table.columns, *rows], names=3)
    return (
        f"{lines}\n\nMedians, in seconds a row of data (of preprocessing and the tree: in all). "
        f"Sides in turn, memory in fresh processes. torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.platform()}.\n"
    )


def text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
