"""
Ways to get candidates, as the config's `search` names tables of them; not part of `rule all`.

REQUIRED INPUTS:

    the model that `search` names, a run's or a backbone
    results/data/{dataset}/

OUTPUTS:

    results/tables/{search}.csv         distinct items, hits, seconds, and what beam search misses
    results/tables/{search}.md          the table to read and to paste
    results/figures/{search}.pdf, .png
"""


rule search:
    """Get candidates in every way, and prove the true top 10; the machine should be idle"""
    input:
        catalogue=lambda wildcards: f"{searched_data(wildcards)}/items.parquet",
        test=lambda wildcards: f"{searched_data(wildcards)}/test.parquet",
        model=lambda wildcards: study.search[wildcards.search].folder(
            study.search[wildcards.search].dataset
        ),
    output:
        csv=report("results/tables/{search}.csv", caption="../report/search.rst", category="Tables"),
        markdown="results/tables/{search}.md",
    log:
        "logs/search/{search}.log",
    benchmark:
        "benchmarks/search/{search}.tsv"
    wildcard_constraints:
        search=one_of(study.search),
    conda:
        "../../envs/rere.yaml"
    threads: 2
    resources:
        gpu=1,
    params:
        data=searched_data,
        flags=lambda wildcards: flags(study.search[wildcards.search]),
    shell:
        r"""
        exec &> >(tee {log:q})
        set -x

        # Alone on the machine, threads that spin are faster, on all sides.
        OMP_WAIT_POLICY=active python -m rere search \
            --model {input.model:q} \
            --data {params.data:q} \
            --output {output.csv:q} \
            {params.flags:q}
        cat {output.markdown:q}
        """


rule search_figure:
    """Draw distinct candidates and hits against group size, and what beam search misses"""
    input:
        table="results/tables/{search}.csv",
        src=source("benchmarks/rollouts/figure.py"),
    output:
        pdf="results/figures/{search}.pdf",
        png=report(
            "results/figures/{search}.png", caption="../report/search.rst", category="Figures"
        ),
    log:
        "logs/search/{search}.figure.log",
    benchmark:
        "benchmarks/search/{search}.figure.tsv"
    wildcard_constraints:
        search=one_of(study.search),
    conda:
        "../../envs/rere.yaml"
    shell:
        r"""
        exec &> >(tee {log:q})
        set -x

        python -m rere search-figure \
            --table {input.table:q} \
            --output {output.pdf:q} {output.png:q}
        """
