"""
Language models and their tokenizers, ready to load.

OUTPUTS:

    results/backbones/{backbone}/
"""


rule backbone:
    """Store a backbone: a tiny new model, a hub id or a local folder"""
    input:
        corpus=corpus,
    output:
        model=directory("results/backbones/{backbone}"),
    log:
        "logs/backbone/{backbone}.log",
    benchmark:
        "benchmarks/backbone/{backbone}.tsv"
    conda:
        "../../envs/rere.yaml"
    params:
        source=lambda wildcards: study.backbones[wildcards.backbone].source,
        flags=backbone_flags,
    shell:
        r"""
        exec &> >(tee {log:q})
        set -x

        python -m rere backbone {params.source:q} \
            --output {output.model:q} \
            {params.flags:q}
        """
