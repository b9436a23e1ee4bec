"""The JSON schema of a study's config, and the paper's study."""

import copy
import json
import subprocess
import sys
from typing import Any

import jsonschema  # comes with Snakemake
import pytest
import yaml
from snakemake.utils import update_config
from study_configs import CONFIG, SHIPPED

from rere.config.study import Study
from rere.study import load_study


@pytest.fixture(scope="session")
def config_schema() -> jsonschema.Draft202012Validator:
    """A validator of configs, by the schema that `rere schema` prints."""
    command = [sys.executable, "-m", "rere", "schema"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    jsonschema.Draft202012Validator.check_schema(printed)
    return jsonschema.Draft202012Validator(printed)


@pytest.fixture(scope="session")
def paper_config() -> dict[str, Any]:
    """paper.yaml laid over config.yaml."""
    merged = copy.deepcopy(SHIPPED)
    update_config(merged, yaml.safe_load((CONFIG / "paper.yaml").read_text()))
    return merged


@pytest.fixture(scope="session")
def paper(paper_config: dict[str, Any]) -> Study:
    return load_study(paper_config)
