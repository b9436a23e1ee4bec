"""
The checked config, and patterns for the names in it.

A wrong key, name or value stops here, with one line, before any job runs.
"""

import os
import re
import sys

from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

from rere.errors import InputError
from rere.inputs import find_missing
from rere.overlays import find_overwritten
from rere.study import load_study, one_line_each
from rere.yaml_files import check_yaml


def config_layers():
    """The name and content of each config file, in the order of merging, and of `--config`."""
    settings = workflow.config_settings
    overlays = settings.configfiles
    first = [] if settings.replace_workflow_config else workflow.configfiles[len(overlays) :]
    names = {str(path).removeprefix(f"{os.getcwd()}/"): path for path in [*first, *overlays]}
    layers = [(name, load_configfile(path)) for name, path in names.items()]
    return [*layers, ("--config", settings.config)]


def stop_at(lines):
    """Raise InputError with these lines, if there are any."""
    if lines := list(lines):
        raise InputError(one_line_each(lines))


try:
    for path in workflow.configfiles:
        check_yaml(path)
    study = load_study(config)
    stop_at(find_overwritten(config_layers(), update_config))
    stop_at(find_missing(study, not workflow.deployment_settings.deployment_method))
except InputError as error:
    sys.exit(f"config: {error}")


def one_of(names):
    """A pattern that matches exactly these names; without names, one that matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


def methods(*stages):
    """A pattern that matches the methods of these stages."""
    return one_of(name for name, method in study.methods.items() if method.stage in stages)


def trained_methods(stage, save):
    """A pattern that matches the methods of a training stage that save models in this form."""
    options = {
        name: method.options for name, method in study.methods.items() if method.stage == stage
    }
    return one_of(name for name, each in options.items() if each.save == save)


def baselines(*models):
    """A pattern that matches the baselines with these models."""
    options = {name: method.baseline for name, method in study.methods.items() if method.baseline}
    return one_of(name for name, baseline in options.items() if baseline.model in models)


def evaluations(*stages):
    """A pattern for what the path of a run of these stages has of `evaluation`, perhaps nothing."""
    parts = [part for stage in stages for part in study.evaluations(stage)]
    return f"(?:{one_of(filter(None, parts))})?"


wildcard_constraints:
    dataset=one_of(study.datasets),
    backbone=one_of(study.backbones),
    method=one_of(study.methods),
    seed=r"0|[1-9]\d{0,9}",
    table=one_of(study.tables),
    benchmark=one_of(study.benchmarks),
