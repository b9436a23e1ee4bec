"""The base class of all options, and their spelling on a command line."""

import json
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rere.errors import hint, shown

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
VALUES = r"(?:-[a-z_]+=[A-Za-z0-9_.+-]+)*"
"""The options of a member of a grid, at the end of its name: `-beta=0.1-steps=60`."""
MethodName = Annotated[str, Field(pattern=NAME.replace("$", f"{VALUES}$"), max_length=200)]
"""A name, or that of a member of a grid, which also has the options that differ."""

MAX_INTEGER = 2**32 - 1
"""The largest whole number of any option, and so of a seed, as of numpy's."""
MAX_STEPS = 10_000_000
MAX_EPOCHS = 10_000
MAX_BEAMS = 10_000

Scoring = Literal["catalogue", "vocabulary"]
"""Tokens over which probabilities are normalised: those that continue a title, or all."""

Precision = Literal["auto", "float32", "bfloat16"]

RENAMED = {
    "skip_silent": "skip_zero_advantage",
    "redraw": "dynamic_sampling",
    "evaluations": "validations",
    "method": "algorithm",
    "least_items": "min_items",
    "repeats: merge": "first",
    "rollout: common": "iid",
    "rollout: dynamic": "oversample",
    "rollout: dynamic_with_target": "oversample_with_target",
    "speed": "benchmarks",
    "search": "benchmarks",
}
"""New names of renamed keys, and new values of renamed values (`key: value`)."""


class Options(BaseModel):
    """Options that reject unknown keys and values of another type."""

    many_processes: ClassVar[bool] = False
    """Whether `torchrun` may start several processes of the command."""

    # Strict, so that YAML's `3e-4` (a string in YAML 1.1) is an error and not a guess. Deferred,
    # since a command needs the validators of one stage only.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def check_keys(cls, values: Any) -> Any:
        """Raise an error that names the key that was meant, which `extra="forbid"` does not."""
        refuse_renamed(values, cls.model_fields)
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                context = {"key": str(key), "hint": hint(str(key), cls.model_fields)}
                raise PydanticCustomError("unknown_key", "unknown key; {hint}", context)
        return values

    @field_validator("*")
    @classmethod
    def check_value(cls, value: Any) -> Any:
        """Raise an error for a whole number that no option needs, or text no command can pass."""
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and each > MAX_INTEGER:
                raise ValueError(
                    f"input should be less than or equal to {MAX_INTEGER}, not {shown(each)}"
                )
            if isinstance(each, str) and "\0" in each:
                raise ValueError("holds a null character; remove it")
        return value


def same(options: type[Options], name: str) -> Any:
    """The field of an option that other options have, too."""
    return options.model_fields[name]


def refuse_renamed(values: Any, fields: Collection[str]) -> Any:
    """Return `values`; raise an error with the new name if a key or value has an old one."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if new := new_name(key, fields, value):
            raise PydanticCustomError("renamed", "renamed; write {new}", {"key": key, "new": new})
    return values


def new_name(key: Any, fields: Collection[str], value: Any = None) -> str | None:
    """Return the new name of a key, or of its value, if it was renamed; else None."""
    if key in fields:
        return RENAMED.get(f"{key}: {value}") if isinstance(value, str) else None
    new = RENAMED.get(key)
    return new if new in fields else None


def flags(options: BaseModel, skip: tuple[str, ...] = ()) -> list[str]:
    """Return all options as command-line arguments, so that a log shows the whole command.

    A single value is joined to its flag: it may look like a flag itself.
    """
    given: list[str] = []
    for name, value in options.model_dump(exclude=set(skip)).items():
        if isinstance(value, list | dict):
            given += [flag(name), *words(value)]
        else:
            given.append(f"{flag(name)}={value}")
    return given


def flag(name: str) -> str:
    """Return an option's spelling on the command line."""
    return f"--{name.rstrip('_').replace('_', '-')}"  # `json_`, since pydantic has a `json`


def words(value: Any) -> list[str]:
    """Return an option's value as command-line arguments."""
    if isinstance(value, dict):
        texts = {
            key: json.dumps(each, ensure_ascii=False) if isinstance(each, dict | list) else each
            for key, each in value.items()
        }
        return [f"{key}:{text}" for key, text in texts.items()]
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def read_words(value: Any) -> Any:
    """Return a mapping of JSON as `words` spells it, from the list of a command line.

    Another value is returned as it is. Raises ValueError for text that is no name:JSON.
    """
    if not isinstance(value, list):
        return value
    pairs = [str(each).partition(":")[::2] for each in value]
    try:
        return {name: json.loads(text) for name, text in pairs}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"write name:JSON ({error})") from None
