"""A small table, by hand, in Markdown and LaTeX."""

import shutil
import subprocess

import polars as pl
import pytest

from rere.config.evaluation import METRICS
from rere.config.study import Comparison
from rere.reporting.markup import describe, format_rows, improvement, latex, markdown

PLAIN: dict[int, str] = {}
MEANS = {"pop": 0.1, "sft": 0.2, "dpo_1": 0.25, "rere": 0.3}


def summarised(spread=0.0123, dataset="ml_1", **columns) -> pl.DataFrame:
    """The .csv of one data set with MEANS in all metrics, but for the `columns` given."""
    rows = {"dataset": dataset, "backbone": ["none", "tiny", "tiny", "tiny"], "method": [*MEANS]}
    rows |= {"seeds": 1 if spread is None else 3, "rows": 60, "NDCG@10_p": None}
    for metric in METRICS:
        rows |= {f"{metric}{end}": [*MEANS.values()] for end in ("", "_low", "_high")}
        rows[f"{metric}_sd"] = [spread] * 4
    frame = {name: [v] * 4 if not isinstance(v, list) else v for name, v in rows.items()}
    kinds = {"NDCG@10_p": pl.Float64, **{f"{name}_sd": pl.Float64 for name in METRICS}}
    return pl.DataFrame(frame | columns, schema_overrides=kinds)


def column(metric: str, summary: pl.DataFrame, **options) -> list[str]:
    """The cells of one metric, best and second between stars and underscores."""
    chosen = Comparison(metrics=[metric], **options)
    return [row[1] for row in format_rows(summary, chosen, PLAIN, "*{}*", "_{}_")]


def both(summary: pl.DataFrame, **options) -> tuple[str, str]:
    """The content of .md and .tex."""
    chosen = Comparison(**options)
    note = describe(summary, dict.fromkeys(summary["dataset"], 25), chosen)
    return markdown(summary, chosen, note), latex(summary, chosen, note, "main_1")


def test_the_best_is_bold_and_the_second_underlined():
    assert column("HR@5", summarised(None)) == [".1000", ".2000", "_.2500_", "*.3000*"]
    # Ties are what prints the same.
    tied = summarised(None, **{"HR@5": [0.30001, 0.2, 0.19999, 0.3]})
    assert column("HR@5", tied) == ["*.3000*", "_.2000_", "_.2000_", "*.3000*"]


def test_no_mark_in_a_column_of_equal_values_nor_at_zero():
    for value, text in ((0.0, ".0000"), (0.00001, ".0000"), (0.5, ".5000"), (1.0, "1.0000")):
        assert column("HR@5", summarised(None, **{"HR@5": [value] * 4})) == [text] * 4
    one = summarised(None, **{"HR@5": [0.0, 0.0, 0.1, 0.0]})
    assert column("HR@5", one) == [".0000", ".0000", "*.1000*", ".0000"]


def test_means_have_a_spread_with_two_seeds_or_more():
    assert column("HR@5", summarised(0.01234)) == [
        *(".1000 ± .0123", ".2000 ± .0123", "_.2500_ ± .0123", "*.3000* ± .0123")
    ]
    some = summarised(None, **{"HR@5_sd": [None, 0.5, None, None]})
    assert column("HR@5", some)[:2] == [".1000", ".2000 ± .5000"]


def test_p_values_are_marked_where_they_are_of_the_metric():
    tested = summarised(None, **{"NDCG@10_p": [0.05, None, 0.0499, 0.00999]})
    assert column("NDCG@10", tested) == [".1000", ".2000", "_.2500_†", "*.3000*‡"]
    assert column("HR@10", tested)[2] == "_.2500_"
    note = "† p < .05, ‡ p < .01: NDCG@10 differs from that of SFT"
    text, _ = both(tested, reference="sft", labels={"sft": "SFT"})
    assert note in text
    assert "Holm-adjusted" in text
    assert "Holm" not in both(tested)[0]
    assert "Holm" not in both(tested, reference="sft", metrics=["HR@10"])[0]


def test_the_improvement_is_over_the_best_other_method():
    summary = summarised(None)
    assert improvement(summary, "HR@5", "rere") == "+20.0 %"  # .3 / .25 = 1.2
    assert improvement(summary, "HR@5", "sft") == "\N{MINUS SIGN}33.3 %"  # .2 / .3
    assert improvement(summarised(None, **{"HR@5": [0.0] * 4}), "HR@5", "rere") == ""
    assert improvement(summary.filter(method="rere"), "HR@5", "rere") == ""
    assert column("HR@5", summary, highlight="rere")[-1] == "+20.0 %"
    assert len(column("HR@5", summary)) == 4
    assert len(column("HR@5", summary.filter(pl.col("method") != "rere"), highlight="rere")) == 3


def test_markdown_is_a_table_and_a_note():
    text, _ = both(summarised(), highlight="rere", labels={"rere": "Re|Re", "ml_1": "ML"})
    assert text.splitlines() == [
        "### ML, tiny",
        "",
        "| Method      | HR@10                    | NDCG@10                  "
        "| 95 % interval, NDCG@10   |",
        "|:------------|:-------------------------|:-------------------------"
        "|:-------------------------|",
        "| pop         | .1000 ± .0123            | .1000 ± .0123            "
        "| .1000-.1000              |",
        "| sft         | .2000 ± .0123            | .2000 ± .0123            "
        "| .2000-.2000              |",
        "| dpo_1       | <ins>.2500</ins> ± .0123 | <ins>.2500</ins> ± .0123 "
        "| .2500-.2500              |",
        r"| Re\|Re      | **.3000** ± .0123        | **.3000** ± .0123        "
        "| .3000-.3000              |",
        "| Improvement | +20.0 %                  | +20.0 %                  "
        "|                          |",
        "",
        "ML: 60 test rows of 25 users, 3 seeds per method. HR and NDCG are at title level over the "
        "full catalogue, means over seeds ± standard deviation. Bold is the best of a column, "
        "underlined the second. Improvement: of Re|Re over the best other method. Intervals: "
        "percentile bootstrap over users.",
    ]


def test_latex_is_a_float_with_escaped_names():
    tested = summarised(**{"NDCG@10_p": [None, None, 0.5, 0.02]})
    labels = {"rere": r"50% of $a_{b}^c \~ & #"}
    _, text = both(tested, reference="sft", highlight="rere", labels=labels)
    escaped = r"50\% of \$a\_\{b\}\^{}c \textbackslash{}\textasciitilde{} \& \#"
    lines = text.splitlines()
    assert lines[:8] == [
        r"% \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering\small",
        r"\caption{HR and NDCG at title level over the full catalogue.}",
        r"\label{tab:main_1}",
        r"\begin{tabular}{@{}lll@{}}",
        r"\toprule",
        r"Method & HR@10 & NDCG@10 \\",
    ]
    assert lines[9:15] == [
        r"\addlinespace\rlap{\emph{ml\_1, tiny}} &  &  \\",
        r"pop & .1000 $\pm$ .0123 & .1000 $\pm$ .0123 \\",
        r"sft & .2000 $\pm$ .0123 & .2000 $\pm$ .0123 \\",
        r"dpo\_1 & \underline{.2500} $\pm$ .0123 & \underline{.2500} $\pm$ .0123 \\",
        rf"{escaped} & \textbf{{.3000}} $\pm$ .0123 & \textbf{{.3000}} $\pm$ .0123\dag{{}} \\",
        r"\midrule Improvement & +20.0 \% & +20.0 \% \\",
    ]
    assert lines[17].startswith(r"\par\smallskip\raggedright\footnotesize ml\_1: 60 test rows of")
    assert lines[18] == r"\end{table}"


@pytest.mark.parametrize("metrics", [["HR@10", "NDCG@10"], ["HR@5", "NDCG@5", "HR@10", "NDCG@10"]])
def test_latex_fits_a_page_of_two_columns(metrics, tmp_path):
    for program, arguments in (("pdflatex", ["--version"]), ("kpsewhich", ["booktabs.sty"])):
        if not shutil.which(program) or subprocess.run([program, *arguments]).returncode:
            pytest.skip(f"needs LaTeX: there is no {' '.join([program, *arguments])}")
    names = ["popularity", "sft_continued", "item_knn", "rere_0.1"]
    p_values = {"NDCG@10_p": [0.001, 0.04, None, 0.001]}
    parts = [summarised(dataset=d, method=names, **p_values) for d in ("ml-100k", "toys_{&}")]
    summary = pl.concat(parts)
    assert Comparison().metrics == ["HR@10", "NDCG@10"]
    _, text = both(summary, reference="item_knn", highlight="rere_0.1", metrics=metrics)
    (tmp_path / "main.tex").write_text(text)
    (tmp_path / "paper.tex").write_text(
        r"\documentclass[twocolumn]{article}\usepackage{booktabs}\begin{document}"
        r"Table~\ref{tab:main_1}.\input{main}\end{document}"
    )
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for _ in range(2):  # the second run knows the label
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
    assert "undefined references" not in done.stdout
