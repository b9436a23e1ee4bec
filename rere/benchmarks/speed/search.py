"""Beam search against transformers' `generate` under the same catalogue constraint."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rere.benchmarks import timing
from rere.benchmarks.models import (
    GENERATE,
    SCORINGS,
    BenchmarkModel,
    PromptRow,
    Searcher,
    load_benchmark_model,
)
from rere.benchmarks.plain.generate import generate
from rere.benchmarks.speed.agreement import (
    is_same_ranking,
    mean_ndcg,
    search_by_decision,
    share_different,
)
from rere.benchmarks.table import compare
from rere.benchmarks.timing import PRELOADED, Prompts, Timings, measure_peak_memory, run_in_process
from rere.config.benchmarks import SpeedOptions
from rere.progress import progress

SEARCH, IN_BFLOAT16 = "beam search", "beam search in bfloat16"
PLAIN = "transformers generate"
PLAIN_ROWS = 4
"""Rows of each setting that are also searched by `search_by_decision`."""
TOP = 10
"""Ranks that bfloat16 is compared on."""


class SearchResult(NamedTuple):
    """The cost and the results of one searcher on all rows."""

    batch_size: int
    timings: Timings
    leaves: list[list[int]]  # ranked, of each row
    peak_mb: float | None
    ndcg: float


def time_searches(
    options: SpeedOptions, model: BenchmarkModel, num_beams: int, rows: Sequence[PromptRow]
) -> dict[Searcher, SearchResult]:
    """Run every searcher on all rows, and on the longest prompts for peak memory."""
    prompts = [row.prompt for row in rows]
    label, sizes = f"speed: {model.name}, {num_beams} beams", {}
    for name in (*SCORINGS, GENERATE.name):
        search = partial(model.search, Searcher(name), num_beams)
        sizes[name] = timing.find_fastest_batch_size(
            search, prompts, options.batch_sizes, f"speed: {name}"
        )
    # bfloat16 takes the size of float32, so that only the arithmetic differs.
    searchers = [Searcher(s, dtype) for s in SCORINGS for dtype in model.models] + [GENERATE]
    searches = {}
    for each in searchers:
        search = partial(model.search, each, num_beams)
        searches[each] = partial(timing.call_in_batches, search, sizes[each.name])
    batches = timing.split_batches(prompts, max(options.batch_sizes))
    timed = timing.time_in_turn(searches, batches, label)
    targets = model.tree.leaf_of_item[[row.target for row in rows]].tolist()
    longest, results = prompts[-sizes[GENERATE.name] :], {}
    with progress(len(timed), f"{label}, memory", "process") as bar:
        for searcher, timings in timed.items():
            leaves = model.to_leaves([row for batch in timings.results for row in batch])
            arguments = (model.folder, model.data, searcher, num_beams, longest)
            peak_mb = run_in_process(PRELOADED, peak_of_search, *arguments)
            ndcg = mean_ndcg(leaves, targets)
            results[searcher] = SearchResult(sizes[searcher.name], timings, leaves, peak_mb, ndcg)
            bar.update()
    return results


def peak_of_search(
    folder: Path, data: Path, searcher: Searcher, num_beams: int, prompts: Prompts
) -> float | None:
    """Return the peak memory of a search above the weights, in MB; call it in a fresh process."""
    model = load_benchmark_model("", folder, data, [searcher.dtype])
    # The first search imports modules and builds the tree, which do not count.
    model.search(searcher, 2, [prompts[0][:2]])
    return measure_peak_memory(lambda: model.search(searcher, num_beams, prompts), model.device)


def compare_searches(
    model: BenchmarkModel, num_beams: int, prompts: Prompts, results: dict[Searcher, SearchResult]
) -> Iterator[dict[str, Any]]:
    """Yield the table's rows for one model and number of beams."""
    theirs = results[GENERATE]
    for searcher, ours in results.items():
        if searcher == GENERATE:
            continue
        other, what, against, equal, differing = theirs, SEARCH, PLAIN, None, None
        batch = f"batch {ours.batch_size} (theirs {theirs.batch_size})"
        if searcher.dtype != "float32":
            other, what, against = results[Searcher(searcher.name)], IN_BFLOAT16, "float32"
            batch = f"batch {ours.batch_size}"
            differing = share_different(*([row[:TOP] for row in x.leaves] for x in (ours, other)))
        elif searcher.name == "catalogue":
            equal = equals_plain_search(model, num_beams, prompts, ours.leaves)
            differing = share_different(ours.leaves, theirs.leaves)
        else:
            equal = equals_generate(model, num_beams, prompts, ours, theirs)
        words = (f"{num_beams} beams", searcher.name, batch)
        setting = model.describe(*words, dtype=searcher.dtype)
        seconds = ours.timings.median, other.timings.median
        yield compare(what, against, setting, *seconds, equal) | {
            **{"peak_mb_ours": ours.peak_mb, "peak_mb_theirs": other.peak_mb},
            **{"ndcg@10_ours": ours.ndcg, "ndcg@10_theirs": other.ndcg},
            "differing_lists": differing,
        }


def equals_generate(
    model: BenchmarkModel,
    num_beams: int,
    prompts: Prompts,
    ours: SearchResult,
    theirs: SearchResult,
) -> bool:
    """Whether all lists are those of `generate`, except for ties.

    Only rows whose lists differ are searched again with scores, which cost memory.
    """
    pairs = zip(prompts, ours.leaves, theirs.leaves, strict=True)
    differing = [(prompt, mine) for prompt, mine, other in pairs if mine != other]
    for batch in timing.split_batches(differing, theirs.batch_size):
        asked, leaves = zip(*batch, strict=True)
        found, scores = generate(
            model.float32, model.token_tree, model.eos, asked, num_beams, return_scores=True
        )
        if not all(map(is_same_ranking, leaves, model.to_leaves(found), scores)):
            return False
    return True


def equals_plain_search(
    model: BenchmarkModel, num_beams: int, prompts: Prompts, leaves: Sequence[list[int]]
) -> bool:
    """Whether lists under `catalogue` scores are those of the plain search, on PLAIN_ROWS rows."""
    for prompt, ours in timing.pick_evenly(list(zip(prompts, leaves, strict=True)), PLAIN_ROWS):
        found = search_by_decision(model.float32, model.sequences, prompt, num_beams)
        expected = [model.leaf_of_sequence[path] for path, _ in found]
        if not is_same_ranking(ours, expected, [score for _, score in found]):
            return False
    return True
