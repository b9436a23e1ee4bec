"""The exception for bad input, and messages that say how to correct it."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
"""In the messages of torch's RuntimeErrors."""
EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,9}")

MAX_MESSAGE = 1000
"""Characters of a printed line; a wrong value may have millions."""


class InputError(ValueError):
    """Bad input; the message is one line that names the file, key or row and the remedy."""


class LostProcess(InputError):
    """Another process of the same run has ended."""


def printable(text: str) -> str:
    """Return `text` as one line for a terminal: control characters escaped, a long middle cut."""
    line = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 200]} ... {line[-200:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, NumPy or torch means that memory ran out."""
    is_torch = isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(is_torch)


@contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """Raise InputError with the remedy if the block runs out of memory, on the host or a GPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"out of memory; {remedy} ({first_line(error)})") from error


def shown(value: Any) -> str:
    """Return a value of YAML for a message; a number may have too many digits for `repr`."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    try:
        return "nothing" if value is None else repr(value)
    except ValueError:
        return "a number of thousands of digits"


def unknown(name: str, names: Iterable[str]) -> str:
    """Return the message for a name that is not among `names`."""
    return f"there is no {name}; {hint(name, names)}"


def hint(name: str, names: Iterable[str], otherwise: str | None = None) -> str:
    """Return a suggestion for `name`: the closest of `names`, else `otherwise` or all of them."""
    names = list(names)
    # Comparing takes the square of the length.
    if close := difflib.get_close_matches(name[:100], names, n=1):
        return f"did you mean {close[0]}?"
    return otherwise or f"there are {', '.join(names) or 'none'}"


def remedy(problem: Any) -> str:
    """Return the message of one of pydantic's errors, with what to write instead."""
    value, context = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "value_error":
            return str(context["error"])
        case "unknown_key" | "renamed":
            return str(problem["msg"])
        case "missing" | "union_tag_not_found":
            return "missing"
        case "union_tag_invalid":
            return unknown(context["tag"], re.findall("'(.*?)'", context["expected_tags"]))
        case "string_pattern_mismatch":
            return "names have letters, digits, `_`, `.` and `-`, and start with a letter or digit"
        case "too_short":
            return "empty; give at least one"
        case "path_not_directory":
            return f"there is no folder {value}"
        case "string_type" if isinstance(value, int | float):
            return f"{shown(value)} is not a string to YAML; put it in quotes"
        case "float_type" if isinstance(value, str) and EXPONENT.fullmatch(value[:100]):
            mantissa, exponent = re.split("[eE]", value)
            number = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}"
            return f"'{value}' is a string to YAML; write {number}"
    message = re.sub(r", unable to .*| or instance of \w+", "", problem["msg"])
    message = message.replace("a valid dictionary", "a mapping")
    return f"{message[0].lower()}{message[1:]}, not {shown(value)}"
