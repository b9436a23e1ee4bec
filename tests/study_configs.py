"""The shipped config with changes, the error that a wrong one gives, and commands of a study."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from rere.cli import parse
from rere.config.options import flags
from rere.config.run import NO_BACKBONE
from rere.config.study import Study
from rere.errors import InputError
from rere.study import load_study

CONFIG = Path(__file__).parents[1] / "config"
SHIPPED = yaml.safe_load((CONFIG / "config.yaml").read_text())
ABSENT = "<absent>"


def changed(**changes: Any) -> dict[str, Any]:
    """The shipped config with keys set, or removed if ABSENT; `__` separates nested keys."""
    config = copy.deepcopy(SHIPPED)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for key in parents:
            node = node.setdefault(key, {})
        if value is ABSENT:
            del node[last]
        else:
            node[last] = value
    return config


def config_error(config: Any) -> str:
    """Return the message with which loading a config fails."""
    with pytest.raises(InputError) as caught:
        load_study(config)
    return str(caught.value)


def trained(study: Study) -> set[tuple[str, str]]:
    """Each method and backbone that a study trains, whose options a command line gives back."""
    seen = set()
    for table in study.tables:
        for run in study.runs(table):
            name = run.method
            while name is not None and run.backbone != NO_BACKBONE:
                method, options = study.methods[name], study.options_of(name, run.backbone)
                if method.trains_model and (name, run.backbone) not in seen:
                    seen.add((name, run.backbone))
                    words = [*flags(options), "--init=.", "--data=d", "--output=o"]
                    words += ["--factors=f"] * method.needs_baseline
                    parsed = parse(method.stage, words).model_dump()
                    assert options.model_dump().items() <= parsed.items()
                name = method.init
    return seen
