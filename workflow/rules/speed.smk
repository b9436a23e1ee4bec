"""
Measurements of the search, training and preprocessing, as the config's `speed` names them; not part
of `rule all`.

REQUIRED INPUTS:

    the models that `speed` names, a run's or a backbone
    results/data/{dataset}/

OUTPUTS:

    results/tables/{speed}.csv          time, memory and results beside `generate` and plain versions
    results/tables/{speed}.md           the table to read and to paste
    results/tables/{speed}.curves.csv   what the figure shows
    results/figures/{speed}.pdf, .png
"""


rule speed:
    """Time search, training and preprocessing beside plain ones; the machine should be idle"""
    input:
        catalogue=lambda wildcards: f"{measured_data(wildcards)}/items.parquet",
        test=lambda wildcards: f"{measured_data(wildcards)}/test.parquet",
        models=lambda wildcards: study.speed[wildcards.speed].folders,
    output:
        csv=report("results/tables/{speed}.csv", caption="../report/speed.rst", category="Tables"),
        markdown="results/tables/{speed}.md",
    log:
        "logs/speed/{speed}.log",
    benchmark:
        "benchmarks/speed/{speed}.tsv"
    wildcard_constraints:
        speed=one_of(study.speed),
    conda:
        "../../envs/rere.yaml"
    threads: 2
    resources:
        gpu=1,
    params:
        data=measured_data,
        names=lambda wildcards: [model.name for model in study.speed[wildcards.speed].models],
        rows=lambda wildcards: [model.rows for model in study.speed[wildcards.speed].models],
        flags=speed_flags,
    shell:
        r"""
        exec &> >(tee {log:q})
        set -x

        # Alone on the machine, threads that spin are faster, on both sides.
        OMP_WAIT_POLICY=active python -m rere speed \
            --models {input.models:q} \
            --names {params.names:q} \
            --test-rows {params.rows:q} \
            --data {params.data:q} \
            --output {output.csv:q} \
            {params.flags:q}
        cat {output.markdown:q}
        """


rule speed_curves:
    """Time the search against titles, beams and prompt length, preprocessing against reviews"""
    input:
        catalogue=lambda wildcards: f"{measured_data(wildcards)}/items.parquet",
        test=lambda wildcards: f"{measured_data(wildcards)}/test.parquet",
        model=lambda wildcards: study.speed[wildcards.speed].folders[0],
    output:
        curves="results/tables/{speed}.curves.csv",
    log:
        "logs/speed/{speed}.curves.log",
    benchmark:
        "benchmarks/speed/{speed}.curves.tsv"
    wildcard_constraints:
        speed=one_of(study.speed),
    conda:
        "../../envs/rere.yaml"
    threads: 2
    resources:
        gpu=1,
    params:
        data=measured_data,
        flags=speed_flags,
    shell:
        r"""
        exec &> >(tee {log:q})
        set -x

        OMP_WAIT_POLICY=active python -m rere speed-curves \
            --model {input.model:q} \
            --data {params.data:q} \
            --output {output.curves:q} \
            {params.flags:q}
        """


rule speed_figure:
    """Draw the time of the search and of preprocessing as curves"""
    input:
        curves="results/tables/{speed}.curves.csv",
        src=source("benchmarks/speed/figure.py"),
    output:
        pdf="results/figures/{speed}.pdf",
        png=report("results/figures/{speed}.png", caption="../report/speed.rst", category="Figures"),
    log:
        "logs/speed/{speed}.figure.log",
    benchmark:
        "benchmarks/speed/{speed}.figure.tsv"
    wildcard_constraints:
        speed=one_of(study.speed),
    conda:
        "../../envs/rere.yaml"
    shell:
        r"""
        exec &> >(tee {log:q})
        set -x

        python -m rere speed-figure \
            --curves {input.curves:q} \
            --output {output.pdf:q} {output.png:q}
        """
