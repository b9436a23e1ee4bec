"""The folder of a fitted baseline, all that recommending takes.

baseline.json           options, with the name of the model; max_history, of networks, else null
baseline.safetensors    weights of a network, similarities of item_knn, nothing of the others;
                        its metadata have a hash of the whole folder
items.parquet           the catalogue, as in the data set: item_id, title, count, raw_id
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rere.baselines.item_knn import ItemKnnModel
from rere.baselines.ranking import Model
from rere.baselines.trivial import PopularityModel, RepeatLastModel
from rere.config.baselines import Baseline, ItemKnn, Popularity, RepeatLast, Sequential
from rere.config.run import BASELINE_FILES
from rere.data.dataset import read_items
from rere.errors import InputError
from rere.files import read_json, sha256, write_json

if TYPE_CHECKING:
    import torch

OPTIONS, ARRAYS, ITEMS = BASELINE_FILES
STAGE = "`rere baseline`"
KINDS = {each.model_fields["model"].default: each for each in get_args(get_args(Baseline)[0])}
"""The options of each baseline, by its name."""

AnyOptions = Popularity | RepeatLast | ItemKnn | Sequential


class FittedBaseline(NamedTuple):
    """What a folder holds."""

    options: AnyOptions
    model: Model
    items: pl.DataFrame  # of ITEMS_SCHEMA


def is_baseline(folder: Path) -> bool:
    """Whether a folder has a file of a baseline's own, whole or not."""
    return any((folder / name).is_file() for name in (OPTIONS, ARRAYS))


def save_baseline(fitted: FittedBaseline, folder: Path) -> None:
    """Write BASELINE_FILES to a new folder."""
    folder.mkdir()
    options, model, items = fitted
    fields = set(KINDS[options.model].model_fields)  # a stage has paths, too
    given = options.model_dump(mode="json", include=fields)
    write_json(folder / OPTIONS, {"options": given, "max_history": model.max_history})
    items.write_parquet(folder / ITEMS)
    arrays = model.arrays()
    save_file(arrays, folder / ARRAYS, {"sha256": hash_folder(folder, arrays)})


def load_baseline(folder: Path, device: "torch.device | str" = "cpu") -> FittedBaseline:
    """What `save_baseline` wrote to a folder, a network on `device`.

    Raises InputError if a file is missing, or is none that it can have written.
    """
    for name in BASELINE_FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; {STAGE} writes it")
    try:
        with safe_open(folder / ARRAYS, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if metadata["sha256"] != hash_folder(folder, arrays):
            raise ValueError("another hash")  # before any file is parsed
        given, items = read_json(folder / OPTIONS, STAGE), read_items(folder, STAGE)
        options = KINDS[given["options"]["model"]].model_validate(given["options"])
        counts = items["count"].to_numpy()
        model = make_model(options, given["max_history"], counts, arrays, device)
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{folder}: not the model of a baseline; make it again: {STAGE}") from None
    return FittedBaseline(options, model, items)


def make_model(
    options: AnyOptions,
    max_history: int | None,
    counts: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    device: "torch.device | str",
) -> Model:
    """The model with these arrays, for items with these counts.

    Raises KeyError, TypeError or ValueError if the arrays or `max_history` are of no such model.
    """
    if isinstance(options, Sequential):
        # Imported here: torch takes seconds to import, and other baselines do not need it.
        from rere.baselines.sequential import load

        if type(max_history) is not int or max_history < 1:
            raise ValueError("a network has a longest history")
        return load(options, len(counts), max_history, arrays, device)
    if max_history is not None or (arrays and not isinstance(options, ItemKnn)):
        raise ValueError("only networks have a longest history, and they and item_knn arrays")
    match options:
        case Popularity():
            return PopularityModel(counts)
        case RepeatLast():
            return RepeatLastModel(counts)
        case ItemKnn():
            return ItemKnnModel.load(counts, arrays)


def hash_folder(folder: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """The hexadecimal sha256 of options and items in a folder, and of arrays in order of names."""
    digest = hashlib.sha256()
    for name in (OPTIONS, ITEMS):
        digest.update(bytes.fromhex(sha256(folder / name)))
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()
