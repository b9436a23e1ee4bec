"""Config files laid over one another: which results of the earlier ones a later one overwrites."""

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rere.config.data import PublicDataset
from rere.config.run import NO_BACKBONE, Run
from rere.config.study import Comparison, Study
from rere.errors import InputError
from rere.study import load_study
from rere.yaml_files import check_yaml

Config = Mapping[str, Any]
Merge = Callable[[dict[str, Any], Config], None]
Result = tuple[str, str, Any]
"""A path, the entry of the config that makes it, and what it is made from."""


def read_configs(given: list[str]) -> dict[str, Any]:
    """The content of config files, each laid over those before it as Snakemake does it.

    A text in braces stands for a file with it. Raises InputError if one is no mapping in YAML.
    """
    merged: dict[str, Any] = {}
    for each in given:
        try:
            if not each.startswith("{"):
                check_yaml(each)
            text = each if each.startswith("{") else Path(each).read_text(encoding="utf-8")
            content = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{each}: cannot be read as YAML; correct it") from error
        if not isinstance(content, dict):
            raise InputError(f"{each}: is no mapping; write keys and values")
        lay_over(merged, content)
    return merged


def lay_over(config: dict[str, Any], content: Config) -> None:
    """Put what a config says into the one before it, mapping by mapping."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            if value and not isinstance(config.get(key), dict):
                config[key] = {}
            lay_over(config.setdefault(key, {}), value)
        else:
            config[key] = value


def find_overwritten(layers: list[tuple[str, Config]], merge: Merge) -> Iterator[str]:
    """Yield a line for each entry that changes results of the configs before it.

    A config with `overwrite: true` may change them. Configs before which no study is whole have no
    results.

    Args:
        layers: the name and content of each config, in the order in which they are merged
        merge: puts the content of its second argument into its first, as Snakemake does
    """
    merged: dict[str, Any] = {}
    made: dict[str, tuple[str, Any]] = {}
    for layer, config in layers:
        merge(merged, copy.deepcopy(config))
        try:
            study = load_study(merged)
        except InputError:
            continue
        changed = {}
        for path, entry, source in results(study):
            earlier, known = made.get(path, (layer, source))
            if source != known:
                changed.setdefault(entry, (path, earlier))
            made[path] = (earlier if source == known else layer), source
        if config.get("overwrite") is not True:
            for entry, (path, earlier) in changed.items():
                yield (
                    f"{layer}: {entry} is not that of {earlier}, and would overwrite {path}; "
                    "choose another name, or write `overwrite: true`"
                )


def results(study: Study) -> Iterator[Result]:
    """Yield what the tables and benchmarks of a study are made from, and themselves."""
    for name, benchmark in study.benchmarks.items():
        yield f"results/tables/{name}.csv", f"benchmarks.{name}", benchmark.model_dump()
    for name, table in study.tables.items():
        runs = study.runs(name)
        shown = table.model_dump(include=set(Comparison.model_fields))
        source = shown, [run.folder for run in runs]
        yield f"results/tables/{name}.csv", f"tables.{name}", source
        for run in runs:
            yield from results_of_run(study, run)


def results_of_run(study: Study, run: Run) -> Iterator[Result]:
    """Yield the data and backbone of a run, the runs that it starts from, and itself."""
    dataset, backbone = study.datasets[run.dataset], study.backbones.get(run.backbone)
    # A public data set is the same in any folder, downloaded or not.
    left_out = {"folder"} if isinstance(dataset, PublicDataset) else set()
    rules = dataset.model_dump(exclude=left_out)
    yield f"results/data/{run.dataset}", f"datasets.{run.dataset}", rules
    if backbone is not None:
        name = run.backbone
        stored = backbone.model_dump(exclude={"training"})
        yield f"results/backbones/{name}", f"backbones.{name}", stored
    method = study.methods[run.method]
    if backbone is not None and method.trains_model:
        given = backbone.training.model_dump(exclude_unset=True)
        folder = f"results/runs/{run.dataset}/{run.backbone}"
        yield folder, f"backbones.{run.backbone}.training", given
    used = [(method.init, run.backbone), (method.collaborative, NO_BACKBONE)]
    inputs = [
        Run(dataset=run.dataset, backbone=of, method=name, seed=study.seed_of(name, run.seed))
        for name, of in used
        if name is not None
    ]
    source = method.model_dump(exclude={"seed"}), [each.seed_folder for each in inputs]
    yield run.seed_folder, f"methods.{run.method}", source
    for each in inputs:
        yield from results_of_run(study, each)
