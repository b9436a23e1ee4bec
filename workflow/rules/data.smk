"""
From raw interactions to a catalogue and splits.

OUTPUTS:

    results/raw/{dataset}/      raw files, unless the config names a folder that has them
    results/data/{dataset}/     items, users, train, valid, test (.parquet), stats.json,
                                audit.json
    results/tokens/{dataset}/{backbone}.json    on request: lengths of titles and prompts
"""


rule fetch:
    """Download a public data set and check it"""
    output:
        raw=directory("results/raw/{dataset}"),
    log:
        "logs/fetch/{dataset}.log",
    benchmark:
        "benchmarks/fetch/{dataset}.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(2_000),
        runtime=growing(4 * 60),
        disk_mb=50_000,
    params:
        flags=fetch_flags,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere fetch \
            --output {output.raw:q} \
            {params.flags:q}
        """


rule preprocess:
    """Turn raw files into a catalogue and splits, or check ready-made splits"""
    input:
        raw=raw_input,
    output:
        "results/data/{dataset}/items.parquet",
        "results/data/{dataset}/users.parquet",
        "results/data/{dataset}/train.parquet",
        "results/data/{dataset}/valid.parquet",
        "results/data/{dataset}/test.parquet",
        "results/data/{dataset}/stats.json",
        audit=report(
            "results/data/{dataset}/audit.json",
            caption="../report/audit.rst",
            category="Data",
            labels={"data set": "{dataset}"},
        ),
    log:
        "logs/preprocess/{dataset}.log",
    benchmark:
        "benchmarks/preprocess/{dataset}.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(16_000),
        runtime=growing(4 * 60),
        disk_mb=10_000,
    params:
        source=lambda wildcards: study.datasets[wildcards.dataset].source,
        flags=lambda wildcards: flags(study.datasets[wildcards.dataset], skip=("source", "folder")),
        raw=raw_folder,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere preprocess {params.source:q} \
            {params.flags:q} \
            --raw={params.raw:q} \
            --output results/data/{wildcards.dataset:q}
        """


rule token_lengths:
    """Count the tokens of titles and prompts under a backbone's tokenizer"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        test="results/data/{dataset}/test.parquet",
        backbone=expand("results/backbones/{{backbone}}/{file}", file=MODEL_FILES),
    output:
        lengths="results/tokens/{dataset}/{backbone}.json",
    log:
        "logs/token_lengths/{dataset}/{backbone}.log",
    benchmark:
        "benchmarks/token_lengths/{dataset}/{backbone}.tsv"
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(4_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere token-lengths \
            --backbone results/backbones/{wildcards.backbone:q} \
            --data results/data/{wildcards.dataset:q} \
            --output {output.lengths:q}
        """
