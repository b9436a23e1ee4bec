"""The table of measurements.

speed.csv           one row a comparison, in float32 against `generate`, then in bfloat16 against
                    float32, then the building of the prefix tree alone:
                    what, against, setting; seconds a row of data (of the tree: in all) and
                    their ratio, theirs to ours; equal, whether the lists are the same but for
                    near ties; MB at the peak above the weights; differing_lists, the share of
                    rows whose lists differ (in bfloat16: whose first ten do); NDCG@10
speed.curves.csv    what the figure shows (`rere.speed.curves`)
speed.md            the same as speed.csv, to read and to paste
"""

import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
import transformers

from rere.catalogue import PrefixTree
from rere.config import Speed
from rere.files import replacing
from rere.progress import progress
from rere.reporting.markup import pipes
from rere.speed.agreement import ndcg, same_ranking, search_by_decision, share_differing
from rere.speed.curves import curves, synthetic_titles
from rere.speed.generate import generate
from rere.speed.measure import Prompts, Timed, in_fresh_process, in_turn, peak_memory
from rere.speed.subject import GENERATE, Side, Subject, load, peak_of_search, sample

SEARCH, IN_BFLOAT16, TREE = WHATS = ("beam search", "beam search in bfloat16", "prefix tree")
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


class Measured(NamedTuple):
    """What one side did in a setting."""

    timed: Timed
    leaves: list[list[list[int]]]  # ranked, of each row of each batch
    peak_mb: float | None
    ndcg: float | None  # of the trained model

    @property
    def rows(self) -> list[list[int]]:
        return list(itertools.chain.from_iterable(self.leaves))


def speed(options: Speed, model: Path, data: Path, output: Path) -> None:
    """Measure the search of the model in a folder on a data set, and of a random model beside it.

    Writes `output`, a .csv, and its two relatives.
    """
    prompts, targets = sample(options, model, data)
    rows: list[dict[str, Any]] = []
    for trained in (False, True):
        subject = load(options, model, data, trained, ["float32", "bfloat16"])
        targeted = subject.tree.leaf_of_item[targets].tolist() if trained else None
        peak = partial(in_fresh_process, peak_of_search, options, model, data, trained)
        for num_beams in options.beams:
            batches = batched(prompts, best_batch_size(options, subject, num_beams, prompts))
            chosen = batches if trained else spread(batches, options.batches)
            measured = measure(subject, num_beams, chosen, targeted, peak)
            rows += compare(subject, options.dataset, num_beams, chosen, measured)
        if not trained:
            small = batched(prompts, min(options.batch_sizes))
            drawn = curves(options, subject, spread(small, options.batches))
            rows.append(build_row(options, subject))
    # Stable: bfloat16 and the tree go to the end.
    rows.sort(key=lambda row: WHATS.index(row["what"]))
    table = pl.DataFrame(rows, schema=SCHEMA)
    texts = {
        ".csv": table.write_csv(float_precision=6),
        ".curves.csv": drawn.write_csv(float_precision=6),
        ".md": markdown(table),
    }
    for suffix, text in texts.items():
        with replacing(output.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def batched(prompts: Prompts, size: int) -> list[Prompts]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def best_batch_size(options: Speed, subject: Subject, num_beams: int, prompts: Prompts) -> int:
    """The batch size at which `generate` is fastest, on prompts of middling length.

    It is every side's: ours gain from larger batches throughout, `generate` up to a point.
    """
    most = max(options.batch_sizes)
    first = max(0, len(prompts) - most) // 2
    search = {GENERATE: partial(subject.search, GENERATE, num_beams)}

    def seconds(size: int) -> float:
        batches = batched(prompts[first : first + most], size)
        return in_turn(search, batches, f"speed: batches of {size}")[GENERATE].median

    return min(options.batch_sizes, key=seconds) if len(options.batch_sizes) > 1 else most


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, or all where there are fewer, at equal distances."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def measure(
    subject: Subject,
    num_beams: int,
    batches: Sequence[Prompts],
    targets: Sequence[int] | None,
    peak: Callable[[Side, int, Prompts], float | None],
) -> dict[Side, Measured]:
    """Each side's time over all batches and peak memory over the last; NDCG@10 with `targets`.

    The random model is not searched under `catalogue` scores: it has nothing to recommend.
    """
    scorings = ["vocabulary"] if targets is None else ["vocabulary", "catalogue"]
    ours = [Side(scoring, dtype) for scoring in scorings for dtype in subject.models]
    searches = {side: partial(subject.search, side, num_beams) for side in [*ours, GENERATE]}
    label = f"speed: {subject.name}, {num_beams} beams"
    timed = in_turn(searches, batches, label)
    measured = {}
    with progress(len(timed), f"{label}, memory", "process") as bar:
        for side, each in timed.items():
            leaves = [subject.leaves(found) for found in each.results]
            ranked = list(itertools.chain.from_iterable(leaves))
            quality = None if targets is None else ndcg(ranked, targets)
            measured[side] = Measured(each, leaves, peak(side, num_beams, batches[-1]), quality)
            bar.update()
    return measured


def compare(
    subject: Subject,
    dataset: str,
    num_beams: int,
    batches: Sequence[Prompts],
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
                [row[:FIRST] for row in ours.rows], [row[:FIRST] for row in exact.rows]
            )
            row = {"what": IN_BFLOAT16, "against": "float32", "differing_lists": differing}
            row |= sides(ours, exact)
        else:
            row = {"what": SEARCH, "against": "transformers generate"} | sides(ours, theirs)
            if side.what == "catalogue":
                row["equal"] = equals_plain(subject, num_beams, batches, ours)
                row["differing_lists"] = share_differing(ours.rows, theirs.rows)
            else:
                row["equal"] = equals_generate(subject, num_beams, batches, ours, theirs)
        yield row | {"setting": setting(subject, dataset, num_beams, len(batches[0]), side)}


def sides(ours: Measured, theirs: Measured) -> dict[str, Any]:
    """What two sides took, and how good their lists are."""
    return {
        "ours_seconds": ours.timed.median,
        "theirs_seconds": theirs.timed.median,
        "ratio": theirs.timed.median / ours.timed.median,
        "peak_mb_ours": ours.peak_mb,
        "peak_mb_theirs": theirs.peak_mb,
        "ndcg@10_ours": ours.ndcg,
        "ndcg@10_theirs": theirs.ndcg,
    }


def setting(subject: Subject, dataset: str, num_beams: int, batch_size: int, side: Side) -> str:
    words = [subject.name, dataset, f"{num_beams} beams", side.what]
    words += [f"batch {batch_size}", f"{torch.get_num_threads()} threads", side.dtype]
    return ", ".join([*words, *(["cuda"] if subject.device.type == "cuda" else [])])


def equals_generate(
    subject: Subject,
    num_beams: int,
    batches: Sequence[Prompts],
    ours: Measured,
    theirs: Measured,
) -> bool:
    """Whether all lists are those of `generate`, but for near ties.

    Its scores, which tell ties, cost memory: they are asked for apart, and only where lists
    differ at all.
    """
    model = subject.models["float32"]
    for prompts, mine, other in zip(batches, ours.leaves, theirs.leaves, strict=True):
        if mine == other:
            continue
        found, scores = generate(
            model, subject.token_tree, subject.eos, prompts, num_beams, scored=True
        )
        if not all(map(same_ranking, mine, subject.leaves(found), scores)):
            return False
    return True


def equals_plain(
    subject: Subject, num_beams: int, batches: Sequence[Prompts], ours: Measured
) -> bool:
    """Whether lists under `catalogue` scores are those of the plain search, on a few rows."""
    prompts = itertools.chain.from_iterable(batches)
    for prompt, mine in spread(list(zip(prompts, ours.rows, strict=True)), PLAIN_ROWS):
        found = search_by_decision(subject.models["float32"], subject.sequences, prompt, num_beams)
        expected = [subject.leaf[path] for path, _ in found]
        if not same_ranking(mine, expected, [score for _, score in found]):
            return False
    return True


def build_row(options: Speed, subject: Subject) -> dict[str, Any]:
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
        f"{lines}\n\nMedians, in seconds a row of data (of the tree: in all). Sides in turn, "
        f"memory in fresh processes. torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.platform()}.\n"
    )


def text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
