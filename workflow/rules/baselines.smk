"""
Methods without a language model, ranking the same test rows.

REQUIRED INPUTS:

    results/data/{dataset}/

OUTPUTS, below results/runs/{dataset}/none/{method}/seed{seed}{evaluation}/:

    predictions.parquet     row_id, user_id, target, items (ranked ids), scores; raw ids
    model/                  options, weights or similarities, catalogue: what recommending takes
    run.json                versions, commit, options, hashes, seconds, memory
    factors.safetensors, factors.test.safetensors
                            (sequential models) for the collaborative reward and d3
"""


rule baseline:
    """Rank the test rows by popularity, by the history or by item similarity"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        users="results/data/{dataset}/users.parquet",
        train="results/data/{dataset}/train.parquet",
        valid="results/data/{dataset}/valid.parquet",
        test="results/data/{dataset}/test.parquet",
    output:
        predictions="results/runs/{dataset}/none/{method}/seed{seed}{evaluation}/predictions.parquet",
        model=expand(
            "results/runs/{{dataset}}/none/{{method}}/seed{{seed}}{{evaluation}}/model/{file}",
            file=BASELINE_FILES,
        ),
        run="results/runs/{dataset}/none/{method}/seed{seed}{evaluation}/run.json",
    log:
        "logs/baseline/{dataset}/{method}/seed{seed}{evaluation}.log",
    benchmark:
        "benchmarks/baseline/{dataset}/{method}/seed{seed}{evaluation}.tsv"
    wildcard_constraints:
        method=baselines("popularity", "repeat_last", "item_knn"),
        evaluation=evaluations("baseline"),
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        mem_mb=growing(8_000),
        runtime=growing(24 * 60),
        disk_mb=2_000,
    params:
        model=lambda wildcards: study.methods[wildcards.method].options.model,
        flags=lambda wildcards: flags(study.methods[wildcards.method].options, skip=("model",))
        + flags(evaluation(wildcards)),
        launch=one_process,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        {params.launch:q} baseline {params.model:q} \
            --data results/data/{wildcards.dataset:q} \
            --seed {wildcards.seed:q} \
            --output results/runs/{wildcards.dataset:q}/none/{wildcards.method:q}/seed{wildcards.seed:q}{wildcards.evaluation:q} \
            {params.flags:q}
        """


use rule baseline as sequential with:
    # Train a sequential model and rank the test rows
    output:
        predictions="results/runs/{dataset}/none/{method}/seed{seed}{evaluation}/predictions.parquet",
        model=expand(
            "results/runs/{{dataset}}/none/{{method}}/seed{{seed}}{{evaluation}}/model/{file}",
            file=BASELINE_FILES,
        ),
        run="results/runs/{dataset}/none/{method}/seed{seed}{evaluation}/run.json",
        factors="results/runs/{dataset}/none/{method}/seed{seed}{evaluation}/factors.safetensors",
        of_test="results/runs/{dataset}/none/{method}/seed{seed}{evaluation}/factors.test.safetensors",
    wildcard_constraints:
        method=baselines("gru4rec", "caser", "sasrec"),
        evaluation=evaluations("baseline"),
    resources:
        gpu=1,
        mem_mb=growing(8_000),
        runtime=growing(24 * 60),
        disk_mb=2_000,
