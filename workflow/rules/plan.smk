"""
What the study's jobs will take, before they run.

REQUIRED INPUTS: data and backbones of the runs of all tables
OUTPUTS: results/plan.json, which is no job's input: resources.smk reads it
"""


localrules:
    plan,


rule plan:
    """Plan memory and hours of the tables' jobs, which they then ask of a cluster"""
    input:
        config=config_files(),
        shapes=shapes,
    output:
        plan=PLAN,
    log:
        "logs/plan.log",
    benchmark:
        "benchmarks/plan.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(16_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        config=config_words,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere plan study \
            --config {params.config:q} \
            --output {output.plan:q}
        """
