"""
Rankings of the test rows by trained models, and the metrics of every method.

REQUIRED INPUTS:

    results/runs/{dataset}/{backbone}/{method}/seed{seed}/model/
    results/data/{dataset}/
    factors.test.safetensors of the run of the method named by `collaborative`

OUTPUTS, below results/runs/{dataset}/{backbone}/{method}/seed{seed}{evaluation}/:

    predictions.parquet     row_id, user_id, target, items (ranked ids), scores; raw ids
    run.json                (decode) versions, commit, options, hashes, seconds, memory
    metrics.json            every metric, with dataset, backbone, method, seed and evaluation

{evaluation} is empty, or has the options of `evaluation` that are not at their defaults:
`/rows=40-num_beams=20`.
"""


rule recommend:
    """Rank the test rows by constrained beam search over the catalogue"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        users="results/data/{dataset}/users.parquet",
        test="results/data/{dataset}/test.parquet",
        model=trained_model,
    output:
        predictions="results/runs/{dataset}/{backbone}/{method}/seed{seed}{evaluation}/predictions.parquet",
    log:
        "logs/recommend/{dataset}/{backbone}/{method}/seed{seed}{evaluation}.log",
    benchmark:
        "benchmarks/recommend/{dataset}/{backbone}/{method}/seed{seed}{evaluation}.tsv"
    wildcard_constraints:
        method=methods("sft", "preference", "rl"),
        evaluation=evaluations("sft", "preference", "rl"),
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=planned_memory,
        runtime=planned_runtime(8 * 60),
        disk_mb=2_000,
    params:
        flags=lambda wildcards: flags(evaluation(wildcards)),
        launch=process_per_gpu,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        {params.launch:q} recommend \
            --model results/runs/{wildcards.dataset:q}/{wildcards.backbone:q}/{wildcards.method:q}/seed{wildcards.seed:q}/model \
            --data results/data/{wildcards.dataset:q} \
            --seed {wildcards.seed:q} \
            --output {output.predictions:q} \
            {params.flags:q}
        """


rule decode:
    """Rank the test rows with the model of another method, by BIGRec or D3"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        users="results/data/{dataset}/users.parquet",
        test="results/data/{dataset}/test.parquet",
        model=initial_model,
        factors=factors,
    output:
        predictions="results/runs/{dataset}/{backbone}/{method}/seed{seed}{evaluation}/predictions.parquet",
        run="results/runs/{dataset}/{backbone}/{method}/seed{seed}{evaluation}/run.json",
    log:
        "logs/decode/{dataset}/{backbone}/{method}/seed{seed}{evaluation}.log",
    benchmark:
        "benchmarks/decode/{dataset}/{backbone}/{method}/seed{seed}{evaluation}.tsv"
    wildcard_constraints:
        method=methods("decode"),
        evaluation=evaluations("decode"),
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=planned_memory,
        runtime=planned_runtime(8 * 60),
        disk_mb=2_000,
    params:
        algorithm=lambda wildcards: study.methods[wildcards.method].options.algorithm,
        model=initial_folder,
        flags=decode_flags,
        launch=process_per_gpu,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        {params.launch:q} decode {params.algorithm:q} \
            --model {params.model:q} \
            --data results/data/{wildcards.dataset:q} \
            --seed {wildcards.seed:q} \
            --output results/runs/{wildcards.dataset:q}/{wildcards.backbone:q}/{wildcards.method:q}/seed{wildcards.seed:q}{wildcards.evaluation:q} \
            {params.flags:q}
        """


rule metrics:
    """Compute the metrics of a run's predictions"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        test="results/data/{dataset}/test.parquet",
        predictions="results/runs/{dataset}/{backbone}/{method}/seed{seed}{evaluation}/predictions.parquet",
    output:
        metrics="results/runs/{dataset}/{backbone}/{method}/seed{seed}{evaluation}/metrics.json",
    log:
        "logs/metrics/{dataset}/{backbone}/{method}/seed{seed}{evaluation}.log",
    benchmark:
        "benchmarks/metrics/{dataset}/{backbone}/{method}/seed{seed}{evaluation}.tsv"
    wildcard_constraints:
        backbone=one_of([*study.backbones, NO_BACKBONE]),
        evaluation=evaluations(*METHOD_STAGES),
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(4_000),
        runtime=growing(60),
        disk_mb=1_000,
    params:
        evaluation=lambda wildcards: spell(evaluation(wildcards)),
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        python -m rere metrics \
            --predictions {input.predictions:q} \
            --data results/data/{wildcards.dataset:q} \
            --dataset {wildcards.dataset:q} \
            --backbone {wildcards.backbone:q} \
            --method {wildcards.method:q} \
            --seed {wildcards.seed:q} \
            --evaluation {params.evaluation:q} \
            --output {output.metrics:q}
        """
