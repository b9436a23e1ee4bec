"""
Language models and their tokenizers, ready to load.

OUTPUTS:

    results/backbones/{backbone}/   weights, configuration, tokenizer
"""


rule backbone:
    """Store a backbone: a tiny new model, a hub id or a local folder"""
    input:
        corpus=corpus,
        model=published_model,
    output:
        model=expand("results/backbones/{{backbone}}/{file}", file=MODEL_FILES),
    log:
        "logs/backbone/{backbone}.log",
    benchmark:
        "benchmarks/backbone/{backbone}.tsv"
    priority: 1  # as for sft
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(32_000),
        runtime=growing(4 * 60),
        disk_mb=64_000,
    params:
        source=lambda wildcards: study.backbones[wildcards.backbone].source,
        flags=backbone_flags,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere backbone {params.source:q} \
            --output results/backbones/{wildcards.backbone:q} \
            {params.flags:q}
        """
