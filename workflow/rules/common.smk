"""Functions that give rules their inputs and flags."""

import ast
import json
import os

from snakemake.io import IOFile

from rere.config.claims import Claims
from rere.config.evaluation import applicable, spell, subfolder
from rere.config.options import flags, words
from rere.config.run import (
    ADAPTED_FILES,
    BASELINE_FILES,
    MAX_CHECKPOINTS,
    MODEL_FILES,
    NO_BACKBONE,
    Run,
    TRAINED_FILES,
    stored_files,
)
from rere.config.rl import reward_weights
from rere.config.study import METHOD_STAGES, Comparison, DesignSpace, Shown
from rere.inputs import identity, model_files, raw_files


def contents(wildcards, **job):
    """What tells whether a job's input files have changed since its last run.

    Snakemake itself sees only that a file is newer, not that it was replaced by an older one. It
    compares params, too, but for those of functions with an argument named `input` or `output`.
    Hence this one takes both as `**job`. A missing file, which is made again when it is needed,
    counts as unchanged.
    """
    found = {path: identity(path) for path in job["input"]}
    if None in found.values():
        params = workflow.persistence.params(IOFile(job["output"][0])) or []
        known = next((ast.literal_eval(text) for text in params if text.startswith("{")), {})
        found = {path: known.get(path) if now is None else now for path, now in found.items()}
    return found


def raw_folder(wildcards):
    """The folder of raw files that the config names, or the one that `fetch` writes."""
    return study.datasets[wildcards.dataset].folder or f"results/raw/{wildcards.dataset}"


def raw_input(wildcards):
    """The raw files that the config names, or the folder that `fetch` writes."""
    dataset = study.datasets[wildcards.dataset]
    return raw_files(dataset) if dataset.folder else raw_folder(wildcards)


def fetch_flags(wildcards):
    """The public data set to fetch and, for Amazon, its category."""
    dataset = study.datasets[wildcards.dataset]
    options = ["--source", dataset.source]
    if "category" in type(dataset).model_fields:
        options += ["--category", dataset.category]
    return options


def initial_folder(wildcards):
    """The folder of the model that a method starts from."""
    init = study.methods[wildcards.method].init
    if init is None:
        return f"results/backbones/{wildcards.backbone}"
    seed = study.seed_of(init, wildcards.seed)
    return f"results/runs/{wildcards.dataset}/{wildcards.backbone}/{init}/seed{seed}/model"


def files_of_model(folder):
    """The files of a stored backbone or trained model; of adapters those of their base, too."""
    if folder.startswith("results/backbones/"):
        return [f"{folder}/{name}" for name in MODEL_FILES]
    dataset, backbone, method, seed = folder.split("/")[2:6]
    is_adapters = study.methods[method].options.save == "adapters"
    files = [f"{folder}/{name}" for name in stored_files(is_adapters)]
    run = Run(dataset=dataset, backbone=backbone, method=method, seed=seed.removeprefix("seed"))
    return [*files, *initial_model(run)] if is_adapters else files


def trained_model(wildcards):
    """The files of the model that a method trains."""
    at = wildcards
    run = f"results/runs/{at.dataset}/{at.backbone}/{at.method}/seed{at.seed}"
    return files_of_model(f"{run}/model")


def initial_model(wildcards):
    """The files of the model that a method starts from."""
    return files_of_model(initial_folder(wildcards))


def embeddings(wildcards):
    """The files of the sentence-embedding model that an RL method names."""
    return model_files(study.methods[wildcards.method].options.embeddings)


def evaluation(wildcards):
    """The options of `evaluation` that apply to a method, with those in the run's path."""
    return study.evaluations(study.methods[wildcards.method].stage)[wildcards.evaluation]


def factors(wildcards):
    """The factors of the baseline that a method needs, for the collaborative reward or d3."""
    method = study.methods[wildcards.method]
    if not method.needs_baseline:
        return []
    seed = study.seed_of(method.collaborative, wildcards.seed)
    run = f"results/runs/{wildcards.dataset}/{NO_BACKBONE}/{method.collaborative}/seed{seed}"
    if not method.decode:
        return f"{run}/factors.safetensors"
    of_baseline = subfolder(spell(applicable(evaluation(wildcards), "baseline")))
    return f"{run}{of_baseline}/factors.test.safetensors"


def own_rewards(wildcards):
    """The modules of the user's own rewards that are files in the working folder."""
    names = reward_weights(study.methods[wildcards.method].options.reward)
    modules = [name.partition(":")[0].split(".") for name in names if ":" in name]
    paths = [f"{os.path.join(*module)}.py" for module in modules]
    return [path for path in paths if os.path.exists(path)]


def decode_flags(wildcards):
    """The options of a decode method, those of `evaluation`, and the factors it needs."""
    options = flags(study.methods[wildcards.method].options, skip=("algorithm",))
    options += flags(evaluation(wildcards))
    path = factors(wildcards)
    return [*options, "--factors", path] if path else options


def training_flags(wildcards):
    """The options of training with a backbone."""
    return flags(study.options_of(wildcards.method, wildcards.backbone))


def rl_flags(wildcards):
    """The options of an RL method, and the factors that its reward needs."""
    options, path = training_flags(wildcards), factors(wildcards)
    return [*options, "--factors", path] if path else options


def corpus(wildcards):
    """The data that a tiny backbone's tokenizer is trained on; none for a published model."""
    backbone = study.backbones[wildcards.backbone]
    if backbone.source != "tiny":
        return []
    return expand(
        "results/data/{corpus}/{file}.parquet", corpus=backbone.corpus, file=["items", "train"]
    )


def published_model(wildcards):
    """The files of a model that the config names by its folder."""
    backbone = study.backbones[wildcards.backbone]
    return [] if backbone.source == "tiny" else model_files(backbone.model)


def backbone_flags(wildcards):
    """The backbone's options, with the corpus as a folder; of a hub id the file of commits.

    That file is no input: it changes when a backbone is first fetched, and makes no other again.
    """
    backbone = study.backbones[wildcards.backbone]
    options = flags(backbone, skip=("source", "corpus", "training"))
    if backbone.source == "tiny":
        return [*options, "--corpus", f"results/data/{backbone.corpus}"]
    is_pinned = backbone.revision is not None or os.path.isdir(backbone.model)
    return options if is_pinned else [*options, "--lock", "config/backbones.lock.yaml"]


def table_flags(wildcards):
    """The table's run folders, its data folders, and what its files show."""
    table = study.tables[wildcards.table]
    options = ["--runs", *[run.folder for run in study.runs(wildcards.table)]]
    options += ["--data", *[f"results/data/{dataset}" for dataset in table.datasets]]
    return [*options, *flags(Comparison(**table.model_dump(include=set(Comparison.model_fields))))]


def figure_flags(wildcards):
    """What the table's figure shows."""
    table = study.tables[wildcards.table]
    return flags(Shown(**table.model_dump(include=set(Shown.model_fields))))


def figure_kind_inputs(wildcards):
    """The files that a figure of this kind is drawn from: a table, and what it lacks."""
    table, runs = study.tables[wildcards.table], study.runs(wildcards.table)
    match wildcards.kind:
        case "popularity":
            names = ("metrics.json", "predictions.parquet")
            files = [f"{run.folder}/{name}" for run in runs for name in names]
            names = ("items", "test")
            data = [
                f"results/data/{each}/{name}.parquet" for each in table.datasets for name in names
            ]
            return [*files, *data]
        case "hits":
            logs = [f"{folder}/log.jsonl" for folder in gaining_runs(wildcards.table)]
            return [f"results/tables/{wildcards.table}.runs.csv", *logs]
        case "backbones":
            names = ("config.json", "model.safetensors")
            files = [
                f"results/backbones/{each}/{name}" for each in table.backbones for name in names
            ]
            return [f"results/tables/{wildcards.table}.csv", *files]
        case "cost":
            return f"results/tables/{wildcards.table}.runs.csv"
        case _:
            return f"results/tables/{wildcards.table}.csv"


def figure_kind_flags(wildcards):
    """What a figure of this kind shows, and the folders that it reads."""
    table = study.tables[wildcards.table]
    runs = [run.folder for run in study.runs(wildcards.table)]
    csv = f"results/tables/{wildcards.table}.csv"
    starts = {name: study.starts(name) for name in table.methods if study.starts(name)}
    inits = {name: [study.methods[name].init] for name in table.methods if study.starts_rl(name)}
    shown = Shown(**table.model_dump(include=set(Shown.model_fields)))
    match wildcards.kind:
        case "popularity":
            data = [f"results/data/{dataset}" for dataset in table.datasets]
            return ["--runs", *runs, "--data", *data, *flags(shown)]
        case "hits":
            of_rl = ["--runs", *gaining_runs(wildcards.table), "--starts", *words(inits)]
            return ["--table", csv.replace(".csv", ".runs.csv"), *of_rl, *flags(shown)]
        case "cost":
            all_starts = ["--starts", *words(starts)]
            return ["--table", csv.replace(".csv", ".runs.csv"), *all_starts, *flags(shown)]
        case "backbones":
            folders = [f"results/backbones/{backbone}" for backbone in table.backbones]
            return ["--table", csv, "--backbones", *folders, *flags(shown)]
        case _:
            space = DesignSpace(**table.model_dump(include=set(DesignSpace.model_fields)))
            return ["--table", csv, *flags(space)]


def gaining_runs(table):
    """The folders of a table's RL runs that start from another method's model."""
    return [run.seed_folder for run in study.runs(table) if study.starts_rl(run.method)]


def compared_folders():
    """The folders of the runs that the claims compare."""
    return list(dict.fromkeys(run.folder for _, run in study.compared_runs()))


def compared_datasets():
    """The data sets of these runs."""
    return list(dict.fromkeys(run.dataset for _, run in study.compared_runs()))


def claim_flags(wildcards):
    """The claims, the runs that they compare, with their tables, and their data folders."""
    runs = [f"{table}:{run.folder}" for table, run in study.compared_runs()]
    data = [f"results/data/{dataset}" for dataset in compared_datasets()]
    return [*flags(Claims(claims=study.resolved_claims())), "--runs", *runs, "--data", *data]


def benchmarks(*measures):
    """A pattern for the benchmarks of these kinds."""
    return one_of(name for name, each in study.benchmarks.items() if each.measures in measures)


def benchmark_data(wildcards):
    """The catalogue and splits that a benchmark reads."""
    folder = f"results/data/{study.benchmarks[wildcards.benchmark].dataset}"
    return [f"{folder}/{name}.parquet" for name in ("items", "train", "test")]


def benchmark_flags(wildcards):
    """A benchmark's options, its data folder, and of rollouts the name of the model."""
    benchmark = study.benchmarks[wildcards.benchmark]
    options = flags(benchmark, skip=("measures", "dataset", "models", "backbone", "method"))
    if benchmark.measures == "rollouts":
        options += ["--name", benchmark.name]
    return [*options, "--data", f"results/data/{benchmark.dataset}"]


def benchmark_curves(wildcards):
    """The table that a benchmark's figure shows."""
    suffix = ".curves.csv" if study.benchmarks[wildcards.benchmark].measures == "speed" else ".csv"
    return f"results/tables/{wildcards.benchmark}{suffix}"


def rl_runs(table):
    """The run folders of a table's RL methods."""
    runs = study.runs(table)
    return [run.seed_folder for run in runs if study.methods[run.method].stage == "rl"]


def config_files():
    """The config files, each laid over those before it."""
    return [name for name, _ in config_layers() if name != "--config"]


def config_words(wildcards):
    """The same, and what `--config` says, as the command line of `rere` takes them."""
    given = workflow.config_settings.config
    return [*config_files(), *([json.dumps(given)] if given else [])]


def shapes(wildcards):
    """The data and backbones of the runs of all tables."""
    runs = [run for table in study.tables for run in study.runs(table)]
    runs = [run for run in runs if run.backbone != NO_BACKBONE]
    data = expand(
        "results/data/{dataset}/{file}.parquet",
        dataset=sorted({run.dataset for run in runs}),
        file=["items", "train", "valid", "test"],
    )
    backbones = sorted({run.backbone for run in runs})
    return [*data, *expand("results/backbones/{name}/{file}", name=backbones, file=MODEL_FILES)]


def code_files(*files):
    """Files of `rere` as inputs, so that an edit makes a cheap stage run again.

    Their paths are relative: a checkout that was moved has the same inputs.
    """
    return [os.path.relpath(f"{workflow.basedir}/rere/{file}") for file in files]
