"""A table's summary in Markdown and LaTeX: means, spread, tests, the best and the second best."""

import itertools

import pandas as pd
import polars as pl
from tabulate import LATEX_ESCAPE_RULES, tabulate

from rere.config.run import NO_BACKBONE
from rere.config.study import Comparison, Shown

TESTED = "NDCG@10"
"""The metric of paired tests."""
MARKS = {0.01: "‡", 0.05: "†"}
"""Marks of p values below a limit, the smallest limit first."""
IMPROVEMENT = "Improvement"
MARKDOWN = str.maketrans({"|": r"\|"})
LATEX = str.maketrans(
    LATEX_ESCAPE_RULES | {"†": r"\dag{}", "‡": r"\ddag{}", "±": r"$\pm$", "\N{MINUS SIGN}": "$-$"}
)


def markdown(summary: pl.DataFrame, options: Comparison, note: str) -> str:
    """A section with a table per (dataset, backbone), and the note.

    The last column is the 95 % interval of the last metric.
    """
    last = options.metrics[-1]
    header, sections = ["Method", *options.metrics, f"95 % interval, {last}"], []
    for title, facet in split_facets(summary, options):
        rows = format_rows(facet, options, MARKDOWN, "**{}**", "<ins>{}</ins>")
        bounds = zip(facet[f"{last}_low"], facet[f"{last}_high"], strict=True)
        intervals = [f"{decimals(low)}-{decimals(high)}" for low, high in bounds]
        cells = [[*r, i] for r, i in itertools.zip_longest(rows, intervals, fillvalue="")]
        table = tabulate(cells, header, "pipe", disable_numparse=True)
        sections.append(f"### {title}\n\n{table}\n")
    return "\n".join([*sections, f"{note} Intervals: percentile bootstrap over users.\n"])


def latex(summary: pl.DataFrame, options: Comparison, note: str, name: str) -> str:
    """One float with a booktabs tabular, a block per (dataset, backbone), and the note below it.

    It is as wide as a column for up to two metrics, else as a page of two columns.
    """
    rows = []
    for title, facet in split_facets(summary, options):
        cell = rf"\addlinespace\rlap{{\emph{{{title.translate(LATEX)}}}}}"
        rows.append([cell, *[""] * len(options.metrics)])
        rows += format_rows(facet, options, LATEX, r"\textbf{{{}}}", r"\underline{{{}}}")
        if rows[-1][0] == IMPROVEMENT:
            rows[-1][0] = rf"\midrule {IMPROVEMENT}"
    frame = pd.DataFrame(rows, columns=["Method", *options.metrics])
    text = frame.style.hide().to_latex(
        column_format=f"@{{}}{'l' * frame.shape[1]}@{{}}",
        hrules=True,
        caption="HR and NDCG at title level over the full catalogue.",
        label=f"tab:{name}",
        environment="table" if len(options.metrics) <= 2 else "table*",
        position="t",
        position_float="centering",
    )
    note = rf"\par\smallskip\raggedright\footnotesize {note.translate(LATEX)}"
    text = text.replace("\\centering\n", "\\centering\\small\n")
    text = text.replace("\\end{tabular}\n", f"\\end{{tabular}}\n{note}\n")
    return f"% \\usepackage{{booktabs}}\n{text}"


def split_facets(summary: pl.DataFrame, options: Shown) -> list[tuple[str, pl.DataFrame]]:
    """Title and rows of each (dataset, backbone), with the data set's rows without a backbone."""
    facets = []
    for (dataset,), rows in summary.partition_by("dataset", as_dict=True).items():
        backbones = rows["backbone"].unique(maintain_order=True).to_list()
        for name in [name for name in backbones if name != NO_BACKBONE] or [NO_BACKBONE]:
            names = [dataset] if name == NO_BACKBONE else [dataset, name]
            facet = rows.filter(pl.col("backbone").is_in([name, NO_BACKBONE]))
            facets.append((", ".join(map(options.label, names)), facet))
    return facets


def format_rows(
    facet: pl.DataFrame, options: Comparison, escapes: dict[int, str], best: str, second: str
) -> list[list[str]]:
    """A facet's rows as text; `best` and `second` are formats of the two largest means.

    They hold for what prints as such and is not zero, unless all print the same. The row of
    improvements is last.
    """
    rows = [[options.label(name).translate(escapes)] for name in facet["method"]]
    for metric in options.metrics:
        means = [decimals(value) for value in facet[metric]]
        largest = sorted({text for text in means if float(text)}, reverse=True)
        formats = dict(zip(largest, (best, second), strict=False)) if len(set(means)) > 1 else {}
        p_values = facet[f"{TESTED}_p"] if metric == TESTED else [None] * len(facet)
        for row, mean, sd, p in zip(rows, means, facet[f"{metric}_sd"], p_values, strict=True):
            spread = "" if sd is None else f" ± {decimals(sd)}"
            mark = next((mark for limit, mark in MARKS.items() if p is not None and p < limit), "")
            row.append(formats.get(mean, "{}").format(mean) + f"{spread}{mark}".translate(escapes))
    if options.highlight in facet["method"].to_list():
        changes = [improvement(facet, metric, options.highlight) for metric in options.metrics]
        rows.append([IMPROVEMENT, *(change.translate(escapes) for change in changes)])
    return rows


def improvement(facet: pl.DataFrame, metric: str, method: str | None) -> str:
    """How much larger a method's mean is than the best other one's, in percent."""
    is_method = pl.col("method") == method
    value, best = (facet.filter(each)[metric].max() for each in (is_method, ~is_method))
    if value is None or not best:
        return ""
    return f"{100 * (value / best - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")


def decimals(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def describe(summary: pl.DataFrame, users: dict[str, int], options: Comparison) -> str:
    """The note of a table: rows and seeds of each data set, and what marks mean.

    `users` are the numbers of test users by data set.
    """
    sentences = []
    for (dataset,), part in summary.partition_by("dataset", as_dict=True).items():
        fewest, most = part["seeds"].min(), part["seeds"].max()
        seeds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        sentences.append(
            f"{options.label(dataset)}: {part['rows'][0]} test rows of {users[dataset]} users, "
            f"{seeds} {'seed' if most == 1 else 'seeds'} per method."
        )
    spread = "" if summary["seeds"].max() == 1 else " ± standard deviation"
    sentences.append(
        f"HR and NDCG are at title level over the full catalogue, means over seeds{spread}. Bold "
        "is the best of a column, underlined the second."
    )
    if options.reference is not None and TESTED in options.metrics:
        limits = ((mark, f"{limit:g}".removeprefix("0")) for limit, mark in reversed(MARKS.items()))
        marks = ", ".join(f"{mark} p < {limit}" for mark, limit in limits)
        reference = options.label(options.reference)
        sentences.append(
            f"{marks}: {TESTED} differs from that of {reference}; test paired by user and, with "
            "several seeds, by seed; Holm-adjusted within the data set."
        )
    if options.highlight is not None:
        label = options.label(options.highlight)
        sentences.append(f"{IMPROVEMENT}: of {label} over the best other method.")
    return " ".join(sentences)
