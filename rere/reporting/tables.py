"""A table of a study, from the predictions of its runs to CSV, Markdown and LaTeX.

{table}.csv         one row per (dataset, backbone, method), in the order of the runs:
                    seeds, rows, and for HR@K and NDCG@K the mean over seeds (title level),
                    `_item` (item level), `_sd` (sample standard deviation over seeds),
                    `_low` and `_high` (95 % bootstrap interval over users), `NDCG@10_p`
{table}.runs.csv    one row per run: its metrics; seconds, memory and best_step of run.json; for
                    sequential baselines the validation NDCG@10 of the epoch that was kept
{table}.md, .tex    fewer columns of the .csv, to read and to paste
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rere.errors import InputError
from rere.evaluation.metrics import ITEM_METRICS, METRICS
from rere.evaluation.significance import (
    bootstrap_interval,
    holm,
    paired_permutation_test,
    two_way_clustered_test,
)
from rere.files import replacing_all
from rere.reporting.markup import latex, markdown
from rere.reporting.runs import ScoredRun, check_comparable, read_run

TESTED = "NDCG@10"


class MethodRuns(NamedTuple):
    """The runs of a method on a data set, one per seed, with the metrics of their rows."""

    key: tuple[str, str, str]  # dataset, backbone, method
    runs: list[ScoredRun]
    values: np.ndarray  # (seeds, rows, metrics), rows in the order of row_id
    users: np.ndarray  # (rows,)

    @property
    def seeds(self) -> list[int]:
        return [each.run.seed for each in self.runs]


def table(runs: list[Path], data: list[Path], output: Path, reference: str | None) -> None:
    """Write the table of the run folders `runs` to `output`, a .csv, and the other files beside it.

    `data` are the folders of the data sets, named after them. With `reference`, every other
    method is tested against that method. Raises InputError if a run is malformed or given twice,
    if its metrics.json is not of its predictions, or if two runs of a data set have different test
    rows.
    """
    folders = {folder.name: folder for folder in data}
    scored = [read_run(folder, folders) for folder in runs]
    check_comparable(scored)
    methods = group_by_method(scored)
    if reference is not None and all(method.key[2] != reference for method in methods):
        raise InputError(f"{output}: no run of the reference {reference}; add it to the table")
    p_values = adjusted_p_values(methods, reference)
    summary = pl.DataFrame(
        [summarise(method, p_values.get(method.key)) for method in methods],
        schema_overrides=dict.fromkeys([f"{TESTED}_p", *suffixed("_sd")], pl.Float64),
    )
    users = {method.key[0]: len(np.unique(method.users)) for method in methods}
    each = pl.DataFrame([run.metrics for run in scored], infer_schema_length=None)
    texts = {
        ".csv": summary.write_csv(float_precision=6),
        ".runs.csv": each.write_csv(float_precision=6),
        ".md": markdown(summary, users) + note_unimproved(scored),
        ".tex": latex(summary, users),
    }
    with replacing_all([output.with_suffix(suffix) for suffix in texts]) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(text, encoding="utf-8")


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
    """p value of equal NDCG@10 of two methods, over seeds and users, or over users alone.

    It is over users alone if both have one run, or if their seeds differ and cannot be paired. A
    single run, such as the SFT model that all seeds start from, is paired with every other run.
    """
    column = METRICS.index(TESTED)
    values, others = method.values[..., column], reference.values[..., column]
    is_paired = method.seeds == reference.seeds or 1 in (len(values), len(others))
    if is_paired and max(len(values), len(others)) > 1:
        return two_way_clustered_test(values - others, method.users).p_value
    return paired_permutation_test(values.mean(axis=0) - others.mean(axis=0), method.users)
