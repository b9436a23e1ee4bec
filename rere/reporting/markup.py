"""A table's summary in Markdown and LaTeX: the columns that papers print, the best in bold."""

from collections.abc import Callable

import polars as pl

METRICS = ("HR@1", "HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10")
INTERVAL_OF = "NDCG@10"
HEADER = ["Method", "Backbone", *METRICS, "95 % interval"]
ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def markdown(summary: pl.DataFrame, users: dict[str, int]) -> str:
    """A section with a table and a note per data set; `users` are the numbers of test users."""
    sections = []
    for part in summary.partition_by("dataset", maintain_order=True):
        dataset = part["dataset"][0]
        table = markdown_table([HEADER, *format_rows(part, "**{}**".format)], names=2)
        sections.append(f"### {dataset}\n\n{table}\n\n{note(part, users[dataset])}\n")
    return "\n".join(sections)


def latex(summary: pl.DataFrame, users: dict[str, int]) -> str:
    """One booktabs tabular with a block per data set; the notes are comments."""
    lines, notes = [], []
    for part in summary.partition_by("dataset", maintain_order=True):
        dataset = part["dataset"][0]
        notes.append(f"% {dataset}: {note(part, users[dataset])}")
        title = escape_latex(dataset)
        lines += [r"\midrule", rf"\multicolumn{{{len(HEADER)}}}{{l}}{{{title}}} \\"]
        for row in format_rows(part, r"\textbf{{{}}}".format):
            names, numbers = [escape_latex(name) for name in row[:2]], row[2:]
            numbers[-1] = numbers[-1].replace("\N{EN DASH}", "--")
            lines.append(" & ".join(names + numbers) + r" \\")
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            *notes,
            rf"\begin{{tabular}}{{ll{'r' * (len(HEADER) - 2)}}}",
            r"\toprule",
            " & ".join(map(escape_latex, HEADER)) + r" \\",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def format_rows(part: pl.DataFrame, bold: Callable[[str], str]) -> list[list[str]]:
    """One data set's rows as text; `bold` marks what prints as a column's largest value."""
    columns = [part["method"].to_list(), part["backbone"].to_list()]
    for name in METRICS:
        texts = [f"{value:.4f}" for value in part[name]]
        columns.append([bold(text) if text == max(texts) else text for text in texts])
    bounds = zip(part[f"{INTERVAL_OF}_low"], part[f"{INTERVAL_OF}_high"], strict=True)
    columns.append([f"{low:.4f}\N{EN DASH}{high:.4f}" for low, high in bounds])
    return [list(row) for row in zip(*columns, strict=True)]


def note(part: pl.DataFrame, users: int) -> str:
    """A sentence on how the numbers of one data set were made."""
    fewest, most = part["seeds"].min(), part["seeds"].max()
    seeds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return (
        f"{part['rows'][0]} test rows of {users} users, {seeds} "
        f"{'seed' if most == 1 else 'seeds'} per method. HR and NDCG are at title level over the "
        f"full catalogue, means over seeds. The interval is of {INTERVAL_OF}: 95 % percentile "
        "bootstrap over users."
    )


def markdown_table(rows: list[list[str]], names: int) -> str:
    """A Markdown table, header first: the first `names` columns align left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * w if i < names else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [
        [text.ljust(w) if i < names else text.rjust(w) for i, (text, w) in enumerate(cells)]
        for cells in (list(zip(row, widths, strict=True)) for row in [rows[0], rule, *rows[1:]])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_latex(text: str) -> str:
    """Plain text with the special characters of LaTeX escaped."""
    return "".join(ESCAPES.get(character, character) for character in text)
