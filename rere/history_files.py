"""The files that `rere recommend` reads: ids of allowed items, and histories."""

import json
from pathlib import Path

from rere.errors import InputError


def read_ids(path: Path) -> list[str]:
    """The ids in a file, one per line; empty lines are skipped. Raises InputError for none."""
    ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not ids:
        raise InputError(f"{path}: has no ids; write one per line")
    return ids


def read_lists(path: Path) -> list[list[str]]:
    """The histories in a file, a list of JSON per line; raises InputError with the line."""
    lists = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            history = json.loads(line)
        except (ValueError, RecursionError):
            history = None
        if not isinstance(history, list) or not history:
            raise InputError(f'{path} line {number}: not a list such as ["id or title", "id"]')
        lists.append(history)
    if not lists:
        raise InputError(f"{path}: has no histories; write a list of JSON per line")
    return lists


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({error}); correct it") from None
