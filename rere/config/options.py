"""What the options of all stages have in common, and how a command line spells them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rere.errors import hint

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME)]


class Options(BaseModel):
    # Strict, so that YAML's `3e-4` (a string to YAML 1.1) is an error and not a guess.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def keys_are_known(cls, values: Any) -> Any:
        """Tell a misspelt key which one was meant, as `extra="forbid"` does not."""
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                context = {"key": str(key), "hint": hint(str(key), cls.model_fields)}
                raise PydanticCustomError("unknown_key", "unknown key; {hint}", context)
        return values


def flags(options: BaseModel, skip: tuple[str, ...] = ()) -> list[str]:
    """Options as command-line arguments, all of them, so that a log shows the whole command."""
    values = options.model_dump(exclude=set(skip))
    return [word for name, value in values.items() for word in (flag(name), *words(value))]


def flag(name: str) -> str:
    """The command line's spelling of an option."""
    return f"--{name.replace('_', '-')}"


def words(value: Any) -> list[str]:
    """An option's value as the command line takes it."""
    return [str(each) for each in (value if isinstance(value, list) else [value])]
