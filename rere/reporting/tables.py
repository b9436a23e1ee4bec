"""A table of a study, from the predictions of its runs to CSV, Markdown and LaTeX.

{table}.csv         one row per (dataset, backbone, method), in the order of the runs
{table}.runs.csv    one row per run
{table}.md, .tex    fewer columns of the .csv, to read and to paste
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rere.config.evaluation import METRICS
from rere.config.study import Comparison
from rere.errors import InputError, hint
from rere.evaluation.metrics import ITEM_METRICS
from rere.evaluation.significance import (
    bootstrap_interval,
    has_paired_seeds,
    holm,
    paired_permutation_test,
    two_way_clustered_test,
)
from rere.files import replacing_all
from rere.reporting.markup import TESTED, describe, latex, markdown
from rere.reporting.runs import VALIDATION, ScoredRun, read_runs

DEFAULTS = Comparison()
COLUMNS = {
    "dataset, backbone, method": "of the run; `backbone` is `none` without a language model",
    "seeds": "`.csv`: number of runs, each with a seed of its own",
    "seed": "`.runs.csv`: seed of the run",
    "evaluation": "`.runs.csv`: options of `evaluation` that its stage uses, but for `batch_size`",
    "rows": "test rows",
    "HR@K, NDCG@K": "title level, the paper's: a hit is a recommended title equal to the target's, "
    "and a title counts once; in `.csv` the mean over seeds",
    "HR@K_item, NDCG@K_item": "item level: the very item",
    "HR@K_norepeat, NDCG@K_norepeat": "`.runs.csv`: title level, without rows whose target repeats "
    "the history's last item",
    "HR@K_sd, NDCG@K_sd": "`.csv`: sample standard deviation over seeds; empty with one seed",
    "HR@K_low, NDCG@K_low": "lower end of the 95 % bootstrap interval over users",
    "HR@K_high, NDCG@K_high": "upper end",
    f"{TESTED}_p": "`.csv`: paired test against the table's `reference`: over users and seeds, "
    "with one seed over users alone; Holm-adjusted within the data set",
    "coverage@20": "`.runs.csv`: share of the catalogue that is in any row's top 20",
    "popularity@20": "`.runs.csv`: mean popularity percentile of the top 20; random lists have .5",
    "seconds, peak_memory_mb": "`.runs.csv`: cost of the training run",
    "best_step": "`.runs.csv`: of a trained language model, the step of the best validation, whose "
    "weights are kept; 0: the initial model, also noted below the table in `.md`",
    VALIDATION: "`.runs.csv`: of sequential baselines, that of the epoch that was kept",
}
"""The columns of {table}.csv and {table}.runs.csv; those for which no file is named are in both."""


class MethodRuns(NamedTuple):
    """The runs of a method on a data set, one per seed, with the metrics of their rows."""

    key: tuple[str, str, str]  # dataset, backbone, method
    runs: list[ScoredRun]
    values: np.ndarray  # (seeds, rows, metrics), rows in the order of row_id
    users: np.ndarray  # (rows,)

    @property
    def seeds(self) -> list[int]:
        return [each.run.seed for each in self.runs]


def table(runs: list[Path], data: list[Path], output: Path, options: Comparison = DEFAULTS) -> None:
    """Write the table of the run folders `runs` to `output`, a .csv, and the other files beside it.

    `data` are the folders of the data sets, named after them. Raises InputError as `read_runs`
    does, or if `options` name what no run has.
    """
    scored = read_runs(runs, data)
    methods = group_by_method(scored)
    check_names(output, methods, options)
    p_values = adjusted_p_values(methods, options.reference)
    summary = pl.DataFrame(
        [summarise(method, p_values.get(method.key)) for method in methods],
        schema_overrides=dict.fromkeys([f"{TESTED}_p", *suffixed("_sd")], pl.Float64),
    )
    users = {method.key[0]: len(np.unique(method.users)) for method in methods}
    note = describe(summary, users, options)
    each = pl.DataFrame([run.metrics for run in scored], infer_schema_length=None)
    texts = {
        ".csv": summary.write_csv(float_precision=6),
        ".runs.csv": each.write_csv(float_precision=6),
        ".md": markdown(summary, options, note) + note_unimproved(scored),
        ".tex": latex(summary, options, note, output.stem),
    }
    with replacing_all([output.with_suffix(suffix) for suffix in texts]) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(text, encoding="utf-8")


def check_names(output: Path, methods: list[MethodRuns], options: Comparison) -> None:
    """Raise InputError if no run has a name among the options."""
    names = list(dict.fromkeys(method.key[2] for method in methods))
    for key in ("reference", "highlight"):
        name = getattr(options, key)
        if name is not None and name not in names:
            raise InputError(f"{output}: no run of the {key} {name}; {hint(name, names)}")
    names += [name for method in methods for name in method.key[:2]]
    for name in options.labels:
        if name not in names:
            raise InputError(f"{output}: labels: no run of {name}; {hint(name, names)}")


def note_unimproved(scored: list[ScoredRun]) -> str:
    """A sentence for each run whose training kept the initial model."""
    unimproved = [each.run.folder for each in scored if each.metrics["best_step"] == 0]
    return "".join(
        f"\n`{folder}`: no validation was better than that of the initial model, which was kept.\n"
        for folder in unimproved
    )


def group_by_method(scored: list[ScoredRun]) -> list[MethodRuns]:
    """Runs grouped by data set, backbone and method, in the order of the runs."""
    groups: dict[tuple[str, str, str], list[ScoredRun]] = {}
    for each in scored:
        run = each.run
        groups.setdefault((run.dataset, run.backbone, run.method), []).append(each)
    return [
        MethodRuns(
            key,
            runs,
            np.stack([run.rows.select(METRICS + ITEM_METRICS).to_numpy() for run in runs]),
            runs[0].rows["user_id"].to_numpy(),
        )
        for key, runs in groups.items()
    ]


def summarise(method: MethodRuns, p_value: float | None) -> dict[str, Any]:
    """A row of {table}.csv."""
    dataset, backbone, name = method.key
    row = {"dataset": dataset, "backbone": backbone, "method": name}
    values = method.values.mean(axis=0)  # over seeds
    row |= {"seeds": len(method.runs), "rows": len(values)}
    row |= dict(zip(METRICS + ITEM_METRICS, values.mean(axis=0).tolist(), strict=True))
    seeds = pl.concat([run.rows.select(METRICS).mean() for run in method.runs])
    row |= seeds.std(ddof=1).rename(lambda metric: f"{metric}_sd").row(0, named=True)
    low, high = bootstrap_interval(values[:, : len(METRICS)], method.users)
    row |= dict(zip(suffixed("_low"), low.tolist(), strict=True))
    row |= dict(zip(suffixed("_high"), high.tolist(), strict=True))
    return row | {f"{TESTED}_p": p_value}


def suffixed(suffix: str) -> list[str]:
    return [f"{metric}{suffix}" for metric in METRICS]


def adjusted_p_values(
    methods: list[MethodRuns], reference: str | None
) -> dict[tuple[str, str, str], float]:
    """Paired p value of NDCG@10 against the reference, Holm-adjusted within each data set.

    A method is compared with the reference of its data set and backbone, else with the data
    set's only row of the reference. A method with neither is not tested.
    """
    tested: dict[str, dict[tuple[str, str, str], float]] = {}
    for method in methods:
        dataset, backbone, name = method.key
        same = [other for other in methods if other.key[::2] == (dataset, reference)]
        same = [other for other in same if other.key[1] == backbone] or same
        if name == reference or len(same) != 1:
            continue
        tested.setdefault(dataset, {})[method.key] = paired_p_value(method, same[0])
    adjusted = {}
    for p_values in tested.values():
        adjusted |= dict(zip(p_values, holm(list(p_values.values())).tolist(), strict=True))
    return adjusted


def paired_p_value(method: MethodRuns, reference: MethodRuns) -> float:
    """p value of equal NDCG@10 of two methods, over seeds and users if `has_paired_seeds`.

    It is over users alone otherwise.
    """
    column = METRICS.index(TESTED)
    values, others = method.values[..., column], reference.values[..., column]
    if has_paired_seeds(method.seeds, reference.seeds):
        return two_way_clustered_test(values - others, method.users).p_value
    return paired_permutation_test(values.mean(axis=0) - others.mean(axis=0), method.users)
