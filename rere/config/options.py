"""The base class of all options, and their spelling on a command line."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rere.errors import hint

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME)]

Scoring = Literal["catalogue", "vocabulary"]
"""Tokens over which probabilities are normalised: those that continue a title, or all."""

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

    # Strict, so that YAML's `3e-4` (a string in YAML 1.1) is an error and not a guess.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

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


def refuse_renamed(values: Any, fields: Collection[str]) -> Any:
    """Return `values`; raise an error with the new name if a key or value has an old one."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if new := new_name(key, fields, value):
            raise PydanticCustomError("renamed", "renamed; write {new}", {"key": key, "new": new})
    return values


def new_name(key: Any, fields: Collection[str], value: Any = None) -> str | None:
    """Return the new name of a key, or of its value, if it was renamed; else None."""
    if key in fields:
        return RENAMED.get(f"{key}: {value}")
    new = RENAMED.get(key)
    return new if new in fields else None


def flags(options: BaseModel, skip: tuple[str, ...] = ()) -> list[str]:
    """Return all options as command-line arguments, so that a log shows the whole command."""
    values = options.model_dump(exclude=set(skip))
    return [word for name, value in values.items() for word in (flag(name), *words(value))]


def flag(name: str) -> str:
    """Return an option's spelling on the command line."""
    return f"--{name.replace('_', '-')}"


def words(value: Any) -> list[str]:
    """Return an option's value as command-line arguments."""
    return [str(each) for each in (value if isinstance(value, list) else [value])]
