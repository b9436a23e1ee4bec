"""
The study behind the rules: the checked config, and where a run's model starts from.

A wrong key, name or value stops here, in one line, before any job runs.
"""

import os
import re
import sys

from rere.config.evaluation import Decoding, Evaluation
from rere.config.options import flags
from rere.config.run import NO_BACKBONE
from rere.config.training import reward_weights
from rere.errors import InputError
from rere.study import load_study

# Jobs find this Python and this `rere`, whether an environment is activated or not. A conda
# environment puts its own Python before it. Threads that wait sleep: where two jobs share the
# processors, threads that spin cost the other one a hundredfold. torch asks the kernel for huge
# pages: a training pass of gigabytes has thousands of page faults then, not hundreds of thousands.
os.environ.update(
    PATH=os.path.expandvars(f"{os.path.dirname(sys.executable)}:$PATH"),
    PYTHONPATH=os.path.expandvars(f"{workflow.basedir}:$PYTHONPATH"),
    OMP_WAIT_POLICY="passive",
    THP_MEM_ALLOC_ENABLE="1",
)

try:
    study = load_study(config)
except InputError as error:
    sys.exit(f"config: {error}")


def one_of(names):
    """A pattern for exactly these names; for none of them, one that nothing matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def methods(*stages):
    """A pattern for the methods that these stages make."""
    return one_of(name for name, method in study.methods.items() if method.stage in stages)


def baselines(*models):
    """A pattern for the baselines with these models."""
    options = {name: method.baseline for name, method in study.methods.items() if method.baseline}
    return one_of(name for name, baseline in options.items() if baseline.model in models)


wildcard_constraints:
    dataset=one_of(study.datasets),
    backbone=one_of(study.backbones),
    method=one_of(study.methods),
    seed=r"\d+",
    table=one_of(study.tables),


def raw_folder(wildcards):
    """The user's own folder of raw files, or the one that `fetch` fills."""
    return study.datasets[wildcards.dataset].folder or f"results/raw/{wildcards.dataset}"


def fetch_flags(wildcards):
    """Which public data set to fetch, and of Amazon's which category."""
    dataset = study.datasets[wildcards.dataset]
    options = ["--source", dataset.source]
    if "category" in type(dataset).model_fields:
        options += ["--category", dataset.category]
    return options


def initial_model(wildcards):
    """The model that a method's training starts from."""
    init = study.methods[wildcards.method].init
    if init is None:
        return f"results/backbones/{wildcards.backbone}"
    seed = study.seed_of(init, wildcards.seed)
    return f"results/runs/{wildcards.dataset}/{wildcards.backbone}/{init}/seed{seed}/model"


def factors(wildcards):
    """What the collaborative reward asks, or d3, of the methods that ask."""
    method = study.methods[wildcards.method]
    if not method.needs_baseline:
        return []
    seed = study.seed_of(method.collaborative, wildcards.seed)
    run = f"results/runs/{wildcards.dataset}/{NO_BACKBONE}/{method.collaborative}/seed{seed}"
    return f"{run}/factors.test.safetensors" if method.decode else f"{run}/factors.safetensors"


def own_rewards(wildcards):
    """The user's own rewards, where their modules lie beside the results."""
    names = reward_weights(study.methods[wildcards.method].options.reward)
    modules = [name.partition(":")[0].split(".") for name in names if ":" in name]
    paths = [f"{os.path.join(*module)}.py" for module in modules]
    return [path for path in paths if os.path.exists(path)]


def decode_flags(wildcards):
    """The options of a way to recommend, those of the test run, and what it asks."""
    options = flags(study.methods[wildcards.method].options, skip=("algorithm",))
    options += flags(Decoding(**study.evaluation.model_dump(include=set(Decoding.model_fields))))
    path = factors(wildcards)
    return [*options, "--factors", path] if path else options


def rl_flags(wildcards):
    """The options of an RL method, and what its rewards ask."""
    options, path = flags(study.methods[wildcards.method].options), factors(wildcards)
    return [*options, "--factors", path] if path else options


def corpus(wildcards):
    """The training text of a tiny backbone's tokenizer; a published model needs none."""
    backbone = study.backbones[wildcards.backbone]
    if backbone.source != "tiny":
        return []
    return expand(
        "results/data/{corpus}/{file}.parquet", corpus=backbone.corpus, file=["items", "train"]
    )


def backbone_flags(wildcards):
    """The backbone's options, the corpus as the folder that holds it."""
    backbone = study.backbones[wildcards.backbone]
    options = flags(backbone, skip=("source", "corpus"))
    if backbone.source == "tiny":
        options += ["--corpus", f"results/data/{backbone.corpus}"]
    return options


def table_flags(wildcards):
    """The table's run folders, its data folders, and the row that tests compare with."""
    table = study.tables[wildcards.table]
    options = ["--runs", *[run.folder for run in study.runs(wildcards.table)]]
    options += ["--data", *[f"results/data/{dataset}" for dataset in table.datasets]]
    if table.reference is not None:
        options += ["--reference", table.reference]
    return options


def measured_data(wildcards):
    """The folder of the data set that a table of measurements searches."""
    return f"results/data/{study.speed[wildcards.speed].dataset}"


def speed_flags(wildcards):
    """How a table's measurements are made; what is measured stands in the rules."""
    return flags(study.speed[wildcards.speed], skip=("dataset", "models"))


def searched_data(wildcards):
    """The folder of the data set that a table of candidates searches."""
    return f"results/data/{study.search[wildcards.search].dataset}"


def rl_runs(table):
    """The run folders of a table's RL methods."""
    return [run.folder for run in study.runs(table) if study.methods[run.method].stage == "rl"]


def source(*modules):
    """Modules of `rere` whose edits make a cheap stage run again."""
    return [f"{workflow.basedir}/rere/{module}" for module in modules]
