"""
The verdicts on the study's claims.

REQUIRED INPUTS:

    metrics.json and predictions.parquet of every run that a claim compares, items.parquet and
    test.parquet of their data sets

OUTPUTS:

    results/claims.md
"""


rule claims:
    """Decide each claim by a rule, from the runs of the tables that it names"""
    input:
        metrics=[f"{folder}/metrics.json" for folder in compared_folders()],
        predictions=[f"{folder}/predictions.parquet" for folder in compared_folders()],
        data=expand(
            "results/data/{dataset}/{file}.parquet",
            dataset=compared_datasets(),
            file=["items", "test"],
        ),
        src=code_files(
            "evaluation/claims.py",
            "evaluation/significance.py",
            "reporting/claims.py",
            "reporting/tables.py",
            "reporting/runs.py",
        ),
    output:
        markdown="results/claims.md",
    log:
        "logs/claims.log",
    benchmark:
        "benchmarks/claims.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(8_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        flags=claim_flags,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere claims \
            --output {output.markdown:q} \
            {params.flags:q}
        """
