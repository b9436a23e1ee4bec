"""The commit of each model of the Hugging Face hub that a study has fetched, in a YAML file.

A branch moves. With this file a backbone that is made again, here or elsewhere, is of the commit
that was fetched first.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from rere.errors import InputError, printable, shown
from rere.files import replacing
from rere.yaml_files import check_yaml

log = logging.getLogger(__name__)

HEADER = """\
# The commits of models on the Hugging Face hub that this study takes. A model is added when it is
# first fetched. To take its newest commit, delete its line and make the backbone again.
"""
COMMIT = re.compile("[0-9a-f]{40}")


def read_commits(path: Path) -> dict[str, str]:
    """The commit of each model in the file at `path`; none without a file.

    Raises InputError if it is malformed.
    """
    if not path.is_file():
        return {}
    check_yaml(path)
    commits = yaml.safe_load(path.read_text(encoding="utf-8"))
    if commits is None:
        return {}
    if not isinstance(commits, dict):
        raise InputError(f"{path}: is not a mapping of models to commits; correct or delete it")
    for model, commit in commits.items():
        if not (isinstance(model, str) and isinstance(commit, str) and COMMIT.fullmatch(commit)):
            raise InputError(
                printable(
                    f"{path}: {shown(model)}: {shown(commit)} is no commit, which is text of 40 "
                    "hexadecimal digits; correct or delete the line"
                )
            )
    return commits


def record_commit(path: Path, model: str, commit: str) -> str:
    """Add a model's commit to the file, unless it has one; return the one that it then has."""
    with locked(path):
        commits = read_commits(path)
        if model not in commits:
            commits[model] = commit
            with replacing(path) as new:
                new.write_text(HEADER + yaml.safe_dump(commits), encoding="utf-8")
    return commits[model]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file, which is made if it is missing; wait for others that hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                log.warning("%s: cannot be locked; jobs at the same time may lose a line", path)
            # Another process may have replaced the file before it gave up its lock.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return
