"""
Tables, explorers and figures.

REQUIRED INPUTS:

    metrics.json and predictions.parquet of every run of the table, items.parquet and
    test.parquet of its data sets, for the explorer also users.parquet and train.parquet; run.json and log.jsonl of the runs are read if they are there
    log.jsonl of its RL runs, for their curves

OUTPUTS:

    results/tables/{table}.csv, .runs.csv, .md, .tex
    results/tables/{table}.explorer.html
    results/figures/{table}.pdf, .png
    results/figures/{table}.curves.pdf, .png, for tables with RL methods
"""


rule table:
    """Gather runs: means, spread over seeds, intervals over users, paired tests"""
    input:
        metrics=lambda wildcards: [
            f"{run.folder}/metrics.json" for run in study.runs(wildcards.table)
        ],
        predictions=lambda wildcards: [
            f"{run.folder}/predictions.parquet" for run in study.runs(wildcards.table)
        ],
        data=lambda wildcards: expand(
            "results/data/{dataset}/{file}.parquet",
            dataset=study.tables[wildcards.table].datasets,
            file=["items", "test"],
        ),
        src=code_files("reporting/tables.py", "reporting/runs.py", "reporting/markup.py"),
    output:
        csv=report(
            "results/tables/{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        runs="results/tables/{table}.runs.csv",
        markdown="results/tables/{table}.md",
        latex="results/tables/{table}.tex",
    log:
        "logs/table/{table}.log",
    benchmark:
        "benchmarks/table/{table}.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(8_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        flags=table_flags,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere table \
            --output {output.csv:q} \
            {params.flags:q}
        cat {output.markdown:q}
        """


rule explorer:
    """Write a page to look into a table's runs: lists side by side, hits and misses, subsets"""
    input:
        metrics=lambda wildcards: [
            f"{run.folder}/metrics.json" for run in study.runs(wildcards.table)
        ],
        predictions=lambda wildcards: [
            f"{run.folder}/predictions.parquet" for run in study.runs(wildcards.table)
        ],
        data=lambda wildcards: expand(
            "results/data/{dataset}/{file}.parquet",
            dataset=study.tables[wildcards.table].datasets,
            file=["items", "users", "train", "test"],
        ),
        src=code_files(
            "reporting/explorer.py",
            "reporting/explorer.html",
            "reporting/tables.py",
            "reporting/runs.py",
        ),
    output:
        page=report(
            "results/tables/{table}.explorer.html",
            caption="../report/explorer.rst",
            category="Explorer",
            labels={"table": "{table}"},
        ),
    log:
        "logs/explorer/{table}.log",
    benchmark:
        "benchmarks/explorer/{table}.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(8_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        flags=table_flags,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere explorer \
            --output {output.page:q} \
            {params.flags:q}
        """


rule figure:
    """Draw a table's methods as bars with intervals"""
    input:
        table="results/tables/{table}.csv",
        src=code_files("reporting/figures.py", "reporting/markup.py", "reporting/rere.mplstyle"),
    output:
        pdf="results/figures/{table}.pdf",
        png=report(
            "results/figures/{table}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{table}: methods"},
        ),
    log:
        "logs/figure/{table}.log",
    benchmark:
        "benchmarks/figure/{table}.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(4_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        flags=figure_flags,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere figure \
            --table {input.table:q} \
            --output {output.pdf:q} {output.png:q} \
            {params.flags:q}
        """


rule curves:
    """Draw the training curves of a table's RL methods, by step and by seconds"""
    input:
        logs=lambda wildcards: [f"{folder}/log.jsonl" for folder in rl_runs(wildcards.table)],
        src=code_files("reporting/curves.py", "reporting/figures.py", "reporting/rere.mplstyle"),
    output:
        pdf="results/figures/{table}.curves.pdf",
        png=report(
            "results/figures/{table}.curves.png",
            caption="../report/curves.rst",
            category="Figures",
            labels={"figure": "{table}: training"},
        ),
    log:
        "logs/curves/{table}.log",
    benchmark:
        "benchmarks/curves/{table}.tsv"
    wildcard_constraints:
        table=one_of(filter(rl_runs, study.tables)),
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(4_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        runs=lambda wildcards: rl_runs(wildcards.table),
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere curves \
            --runs {params.runs:q} \
            --output {output.pdf:q} {output.png:q}
        """
