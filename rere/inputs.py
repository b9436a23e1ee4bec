"""What jobs take from outside of the study: raw files, models, modules and packages.

No module is imported to find it. Only files that are compared and modules of own rewards are read.
"""

import ast
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from rere.adapters import find_base, is_adapters
from rere.config.backbones import Pretrained
from rere.config.data import Dataset
from rere.config.options import Options
from rere.config.rl import RlOptions, reward_weights
from rere.config.study import Study
from rere.config.training import Training
from rere.errors import InputError
from rere.files import sha256

LARGE = 16_000_000
"""Bytes above which a file is compared by size and time, as hashing it would delay each plan.

The profile has the same for Snakemake's own comparison.
"""

MODEL_SUFFIXES = (".json", ".safetensors", ".gguf", ".model", ".txt")
"""Of files that a model or its tokenizer may be made of."""


def identity(path: str) -> Any:
    """A value that changes with a file's content: its sha256, or size and time of a large one.

    For a folder, the values of its files by name; None if there is nothing at `path`.
    """
    try:
        status = os.stat(path)
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))
            return {name: identity(os.path.join(path, name)) for name in names}
    except FileNotFoundError:
        return None
    if status.st_size > LARGE:
        return [status.st_size, status.st_mtime_ns]
    return sha256_of(path, status.st_size, status.st_mtime_ns)


@cache
def sha256_of(path: str, size: int, mtime_ns: int) -> str:
    """The sha256 of a file; many jobs ask for the same one."""
    return sha256(Path(path))


def raw_files(dataset: Dataset) -> list[str]:
    """The files that `preprocess` reads of a data set whose folder the config names.

    Only the folder if a file is missing: then `preprocess` says which.
    """
    from rere.data.raw_files import find_raw_files  # imports polars, which not every plan needs

    assert dataset.folder is not None
    try:
        return [str(path) for path in find_raw_files(dataset, Path(dataset.folder))]
    except InputError:
        return [dataset.folder]


def model_files(folder: str | None) -> list[str]:
    """The files of a model in a folder of the user's; none for an id on the hub.

    Those of adapters and of their base.
    """
    if folder is None or not os.path.isdir(folder):
        return []
    files = sorted(str(path) for path in Path(folder).iterdir() if path.suffix in MODEL_SUFFIXES)
    if is_adapters(folder):
        with suppress(InputError):  # loading says what is wrong
            files += model_files(find_base(Path(folder)))
    return files


def find_missing(study: Study, shares_environment: bool = True) -> Iterator[str]:
    """Yield a line for each file, module or package that jobs need and would not find.

    Also for each file dated in the future. Modules and packages are looked for only if jobs share
    the environment of this process.
    """
    for name, dataset in study.datasets.items():
        if dataset.folder is not None:
            yield from find_future(f"datasets.{name}.folder", raw_files(dataset))
    for name, backbone in study.backbones.items():
        if isinstance(backbone, Pretrained):
            if is_path(backbone.model) and not os.path.isdir(backbone.model):
                yield f"backbones.{name}.model: there is no folder {backbone.model}"
            yield from find_future(f"backbones.{name}.model", model_files(backbone.model))
    faults: dict[str, str] = {}  # with the first method that has one: grids have thousands
    for name, method in study.methods.items():
        for fault in find_missing_of(method.options, shares_environment):
            faults.setdefault(fault, f"methods.{name}.{method.stage}")
    yield from (f"{where}.{fault}" for fault, where in faults.items())


def is_path(model: str) -> bool:
    """Whether the name of a model cannot be an id on the hub, `model` or `owner/model`."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def find_future(where: str, paths: Sequence[str]) -> Iterator[str]:
    """Yield a line for each file dated in the future, since all made from it would be older.

    Snakemake would find that out only after it had removed the results of earlier runs.
    """
    for path in filter(os.path.exists, paths):
        if (ahead := os.stat(path).st_mtime - time.time()) > 0:
            yield f"{where}: {path} is dated {ahead:.0f} seconds in the future; `touch` it"


def find_missing_of(options: Options, shares_environment: bool) -> Iterator[str]:
    """Yield the key and the fault for what a method names and jobs would not find."""
    folder = options.embeddings if isinstance(options, RlOptions) else None
    if folder is not None and not os.path.isdir(folder):
        yield f"embeddings: there is no folder {folder}"
    if not shares_environment:
        return
    if isinstance(options, Training):
        for tracker in options.report_to:
            if find_module(tracker, sys.path) is None:
                yield f"report_to: there is no package {tracker}; pip install {tracker}"
    for name in reward_weights(options.reward) if isinstance(options, RlOptions) else ():
        if ":" in name and (fault := find_reward_fault(name, os.getcwd())):
            yield f"reward: {name}: {fault}"


@cache
def find_reward_fault(reward: str, folder: str) -> str | None:
    """What is wrong with the reward `module:function`, if anything; jobs will run in `folder`."""
    module, _, function = reward.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return f"{module} is a module of Python; choose another name"
    installed = [path for path in sys.path if os.path.realpath(path) != os.path.realpath(folder)]
    own, other = find_module(module, [folder]), find_module(module, installed)
    if own is None and other is None:
        return f"there is no module {module}; run the study where it is, or install it"
    if own is not None and other is not None and own.origin != other.origin:
        return f"Python imports {other.origin} instead of {own.origin}; rename yours"
    spec = own or other
    origin = "" if spec is None or spec.origin is None else spec.origin
    if not origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(origin).read_bytes())
    except SyntaxError as error:
        return f"{origin} line {error.lineno}: {error.msg}; correct it"
    except (OSError, ValueError, RecursionError) as error:
        return f"{origin}: {error}; correct it"
    if bound_names(tree) & {function, "*", "__getattr__"}:
        return None
    return f"{origin} has no function {function}; define it"


def bound_names(tree: ast.Module) -> set[str]:
    """The names that a module may define."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.alias(name=name, asname=alias):
                names.add(alias or name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return names


def find_module(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """Where a module would be imported from; unlike importlib's, imports no parent package."""
    root, *rest = name.split(".")
    found = (finder.find_spec(root, path) for finder in sys.meta_path)
    spec = next(filter(None, found), None)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return spec
