"""
Training of language models.

REQUIRED INPUTS:

    results/backbones/{backbone}/ or the model of the method named by `init`
    results/data/{dataset}/    of the test split only the lengths of prompts
    factors.safetensors of the run of the method named by `collaborative`

OUTPUTS, below results/runs/{dataset}/{backbone}/{method}/seed{seed}/:

    model/          weights, tokenizer, catalogue
    log.jsonl       one line per step and per validation
    run.json        versions, commit, options, hashes, seconds, memory

Not declared as output, since Snakemake deletes the outputs of a failed job before it runs again:

    checkpoints/    from which a killed run resumes; deleted at its end
"""


rule sft:
    """Fine-tune on the training split's titles"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        train="results/data/{dataset}/train.parquet",
        valid="results/data/{dataset}/valid.parquet",
        test="results/data/{dataset}/test.parquet",
        init=initial_model,
    output:
        model=expand(
            "results/runs/{{dataset}}/{{backbone}}/{{method}}/seed{{seed}}/model/{file}",
            file=TRAINED_FILES,
        ),
        steps="results/runs/{dataset}/{backbone}/{method}/seed{seed}/log.jsonl",
        run="results/runs/{dataset}/{backbone}/{method}/seed{seed}/run.json",
    log:
        "logs/sft/{dataset}/{backbone}/{method}/seed{seed}.log",
    benchmark:
        "benchmarks/sft/{dataset}/{backbone}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=trained_methods("sft", save="merged"),
    priority: 1  # the longest chain of jobs: backbone, sft, rl
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=planned_memory,
        runtime=planned_runtime(24 * 60),
        disk_mb=planned_disk,
    params:
        init=initial_folder,
        flags=training_flags,
        launch=process_per_gpu,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        {params.launch:q} sft \
            --init {params.init:q} \
            --data results/data/{wildcards.dataset:q} \
            --seed {wildcards.seed:q} \
            --output results/runs/{wildcards.dataset:q}/{wildcards.backbone:q}/{wildcards.method:q}/seed{wildcards.seed:q} \
            {params.flags:q}
        """


rule preference:
    """Train to prefer targets to negatives, sampled at random or by the model"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        train="results/data/{dataset}/train.parquet",
        valid="results/data/{dataset}/valid.parquet",
        test="results/data/{dataset}/test.parquet",
        init=initial_model,
    output:
        model=expand(
            "results/runs/{{dataset}}/{{backbone}}/{{method}}/seed{{seed}}/model/{file}",
            file=TRAINED_FILES,
        ),
        steps="results/runs/{dataset}/{backbone}/{method}/seed{seed}/log.jsonl",
        run="results/runs/{dataset}/{backbone}/{method}/seed{seed}/run.json",
    log:
        "logs/preference/{dataset}/{backbone}/{method}/seed{seed}.log",
    benchmark:
        "benchmarks/preference/{dataset}/{backbone}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=trained_methods("preference", save="merged"),
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=planned_memory,
        runtime=planned_runtime(24 * 60),
        disk_mb=planned_disk,
    params:
        init=initial_folder,
        flags=training_flags,
        launch=process_per_gpu,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        {params.launch:q} preference \
            --init {params.init:q} \
            --data results/data/{wildcards.dataset:q} \
            --seed {wildcards.seed:q} \
            --output results/runs/{wildcards.dataset:q}/{wildcards.backbone:q}/{wildcards.method:q}/seed{wildcards.seed:q} \
            {params.flags:q}
        """


rule rl:
    """Train with ReRe or another RL method: rollouts, rewards, policy updates"""
    input:
        catalogue="results/data/{dataset}/items.parquet",
        train="results/data/{dataset}/train.parquet",
        valid="results/data/{dataset}/valid.parquet",
        test="results/data/{dataset}/test.parquet",
        init=initial_model,
        factors=factors,
        embeddings=embeddings,
        rewards=own_rewards,
    output:
        model=expand(
            "results/runs/{{dataset}}/{{backbone}}/{{method}}/seed{{seed}}/model/{file}",
            file=TRAINED_FILES,
        ),
        steps="results/runs/{dataset}/{backbone}/{method}/seed{seed}/log.jsonl",
        run="results/runs/{dataset}/{backbone}/{method}/seed{seed}/run.json",
    log:
        "logs/rl/{dataset}/{backbone}/{method}/seed{seed}.log",
    benchmark:
        "benchmarks/rl/{dataset}/{backbone}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=trained_methods("rl", save="merged"),
    conda:
        "../../envs/rere.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=planned_memory,
        runtime=planned_runtime(24 * 60),
        disk_mb=planned_disk,
    params:
        init=initial_folder,
        flags=rl_flags,
        launch=process_per_gpu,
        contents=contents,
    shell:
        r"""
        exec &> >(trap "" INT TERM HUP && tee {log:q})
        set -x

        {params.launch:q} rl \
            --init {params.init:q} \
            --data results/data/{wildcards.dataset:q} \
            --seed {wildcards.seed:q} \
            --output results/runs/{wildcards.dataset:q}/{wildcards.backbone:q}/{wildcards.method:q}/seed{wildcards.seed:q} \
            {params.flags:q}
        """
