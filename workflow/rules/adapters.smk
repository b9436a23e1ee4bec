"""
Training of language models that are stored as adapters, with `save: adapters`.

As in train.smk but for the files of model/, which lack the weights of the initial model.
"""


use rule sft as sft_adapters with:
    # The same; stores adapters without the weights of the initial model
    output:
        model=expand(
            "results/runs/{{dataset}}/{{backbone}}/{{method}}/seed{{seed}}/model/{file}",
            file=ADAPTED_FILES,
        ),
        steps="results/runs/{dataset}/{backbone}/{method}/seed{seed}/log.jsonl",
        run="results/runs/{dataset}/{backbone}/{method}/seed{seed}/run.json",
    wildcard_constraints:
        method=trained_methods("sft", save="adapters"),


use rule preference as preference_adapters with:
    # The same; stores adapters without the weights of the initial model
    output:
        model=expand(
            "results/runs/{{dataset}}/{{backbone}}/{{method}}/seed{{seed}}/model/{file}",
            file=ADAPTED_FILES,
        ),
        steps="results/runs/{dataset}/{backbone}/{method}/seed{seed}/log.jsonl",
        run="results/runs/{dataset}/{backbone}/{method}/seed{seed}/run.json",
    wildcard_constraints:
        method=trained_methods("preference", save="adapters"),


use rule rl as rl_adapters with:
    # The same; stores adapters without the weights of the initial model
    output:
        model=expand(
            "results/runs/{{dataset}}/{{backbone}}/{{method}}/seed{{seed}}/model/{file}",
            file=ADAPTED_FILES,
        ),
        steps="results/runs/{dataset}/{backbone}/{method}/seed{seed}/log.jsonl",
        run="results/runs/{dataset}/{backbone}/{method}/seed{seed}/run.json",
    wildcard_constraints:
        method=trained_methods("rl", save="adapters"),
