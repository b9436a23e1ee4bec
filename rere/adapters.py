"""LoRA adapters stored without the weights that they adapt, those of their base.

adapter_config.json, adapter_model.safetensors   the adapters, in the format of peft
base.json                                        where the base is, and a hash of its weights
"""

import copy
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from rere.errors import InputError
from rere.files import write_json

if TYPE_CHECKING:  # peft and torch take seconds to import, and planning a graph needs neither
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"


class AdapterBase(BaseModel):
    """The model that adapters were trained on: its place and its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str  # folder as it was given, or id on the hub
    relative: str | None = None  # the folder, seen from that of the adapters
    hub: str | None = None  # id of the published model that the folder is a copy of
    sha256: str  # of `hash_weights`


class Adapters(NamedTuple):
    """LoRA adapters in memory."""

    config: "LoraConfig"
    weights: "Mapping[str, Tensor]"  # by name


def is_adapters(folder: str | Path) -> bool:
    """Whether a folder has adapters instead of a whole model."""
    return os.path.isfile(os.path.join(folder, CONFIG))


def read_adapter_base(folder: Path) -> AdapterBase:
    """What base.json in the folder of adapters says; raises InputError if malformed."""
    path = folder / BASE
    try:
        return AdapterBase.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise InputError(
            f"{path}: missing or malformed; train again with `save: merged`, which needs no base"
        ) from None


def find_base(folder: Path) -> str:
    """The folder of the base of the adapters in `folder`, or its id on the hub.

    It is looked for from the adapters, so that both may move together, then where it was. Raises
    InputError if it is in neither place and was not published.
    """
    base = read_adapter_base(folder)
    places = [base.model]
    if base.relative is not None:
        beside = os.path.normpath(folder.resolve() / base.relative)
        places.insert(0, beside if os.path.isabs(base.model) else os.path.relpath(beside))
    for place in filter(os.path.isdir, places):
        if is_adapters(place):
            raise InputError(
                f"{place}: has adapters, and cannot be the base of those in {folder}; put the "
                "base back, or train them again with `save: merged`"
            )
        return place
    if base.hub is None:
        raise InputError(
            f"{base.model}: missing, and the adapters in {folder} need it; put it back, or train "
            "them again with `save: merged`"
        )
    return base.hub


def check_base(folder: Path, place: str, model: "PreTrainedModel") -> None:
    """Raise InputError unless `model`, which was loaded from `place`, is the adapters' base."""
    if hash_weights(model) != read_adapter_base(folder).sha256:
        weights = os.path.join(place, "model.safetensors") if os.path.isdir(place) else place
        raise InputError(
            f"{weights}: has other weights than the adapters in {folder} were trained on; put "
            "those back, or train the adapters again"
        )


def hash_weights(model: "PreTrainedModel | PeftModel") -> str:
    """The sha256 of a model's weights without its adapters, whatever files they are stored in."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if ".lora_" not in name:
            digest.update(repr(tuple(weight.shape)).encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def merge_adapters(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """Add the adapters in `folder` to the weights of `model`, their base, and return it.

    Draws no random numbers. Raises ValueError for adapters that are not finite or do not fit.
    """
    import torch
    from peft import get_peft_model, set_peft_model_state_dict

    config, weights = load_adapters(folder)
    config.base_model_name_or_path = model.name_or_path  # else peft warns of another name
    with torch.random.fork_rng([]):
        adapted = get_peft_model(model, config)
    unfit = set_peft_model_state_dict(adapted, dict(weights))
    missing = [name for name in unfit.missing_keys if ".lora_" in name]
    if wrong := [*missing, *unfit.unexpected_keys]:
        raise ValueError(f"the adapters are of another model, which shows in {wrong[0]}")
    merged: PreTrainedModel = adapted.merge_and_unload().requires_grad_(True)
    merged.__dict__.pop("peft_config", None)
    return merged


def load_adapters(folder: Path) -> Adapters:
    """The adapters in `folder`; raises ValueError if they are not finite or of another kind."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    config, weights = LoraConfig.from_pretrained(folder), load_file(folder / WEIGHTS)
    ranks = {len(weight) for name, weight in weights.items() if ".lora_A." in name}
    if not isinstance(config, LoraConfig) or ranks != {config.r}:
        raise ValueError(f"{CONFIG} and {WEIGHTS} are not of the same LoRA adapters")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} has infinite or NaN weights")
    return Adapters(config, weights)


def save_adapters(
    model: "PeftModel", base: AdapterBase, earlier: Adapters | None, folder: Path, output: Path
) -> None:
    """Write the adapters of `model` to `folder`, which is to become `output`.

    Where training began with a base and `earlier` adapters, both are written as one, whose rank is
    the sum of theirs.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(model.peft_config["default"])
    weights = get_peft_model_state_dict(model)
    if earlier is not None:
        weights = join(earlier, Adapters(config, weights))
        config.r += earlier.config.r
        config.lora_alpha = config.r
    config.base_model_name_or_path = base.model
    config.target_modules = sorted(config.target_modules)  # a set has another order each time
    config.inference_mode = True
    config.save_pretrained(folder)
    contiguous = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    if os.path.isdir(base.model):
        place = os.path.relpath(os.path.realpath(base.model), output.resolve())
        base = base.model_copy(update={"relative": place})
    write_json(folder / BASE, base.model_dump())


def join(first: Adapters, second: Adapters) -> "dict[str, Tensor]":
    """The weights of adapters that add what both add, for lora_alpha equal to their rank.

    s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2], where s is lora_alpha / rank.
    """
    import torch

    names = second.weights.keys()
    assert first.weights.keys() == names, first.weights.keys() ^ names
    joined = {}
    for name in names:
        both = [each.weights[name].detach().cpu() for each in (first, second)]
        if ".lora_B." in name:
            scales = (each.config.lora_alpha / each.config.r for each in (first, second))
            both = [weight * scale for weight, scale in zip(both, scales, strict=True)]
        joined[name] = torch.cat(both, dim=1 if ".lora_B." in name else 0)
    return joined
