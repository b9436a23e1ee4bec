"""
The figures of a table that its config names beside bars and training curves.

REQUIRED INPUTS:

    axes: the table; backbones: the table, config.json and model.safetensors of its backbones;
    cost: one row per run of the table; hits: the same, and log.jsonl of its RL runs;
    popularity: metrics.json and predictions.parquet of its runs, and their data sets

OUTPUTS:

    results/figures/{table}.{kind}.pdf, .png
"""


rule figure_of_kind:
    """Draw a table by model size, design space, hits, cost or popularity of the target"""
    input:
        figure_kind_inputs,
        src=code_files(
            "reporting/axes.py",
            "reporting/backbones.py",
            "reporting/costs.py",
            "reporting/popularity.py",
            "reporting/figures.py",
            "reporting/rere.mplstyle",
        ),
    output:
        pdf="results/figures/{table}.{kind}.pdf",
        png=report(
            "results/figures/{table}.{kind}.png",
            caption="../report/figure_of_kind.rst",
            category="Figures",
            labels={"figure": "{table}: {kind}"},
        ),
    log:
        "logs/figure_of_kind/{table}.{kind}.log",
    benchmark:
        "benchmarks/figure_of_kind/{table}.{kind}.tsv"
    wildcard_constraints:
        kind="backbones|axes|hits|cost|popularity",
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(4_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        flags=figure_kind_flags,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere figure {wildcards.kind} \
            --output {output.pdf:q} {output.png:q} \
            {params.flags:q}
        """
