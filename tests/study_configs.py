"""The shipped config with changes, and the error that a wrong one gives."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

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
