"""The JSON schema of a study's config."""

import json
import subprocess
import sys

import jsonschema  # comes with Snakemake
import pytest


@pytest.fixture(scope="session")
def config_schema() -> jsonschema.Draft202012Validator:
    """A validator of configs, by the schema that `rere schema` prints."""
    command = [sys.executable, "-m", "rere", "schema"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    jsonschema.Draft202012Validator.check_schema(printed)
    return jsonschema.Draft202012Validator(printed)
