"""Files of ids and of histories are read, or refused with the line."""

import json

import pytest

from rere.errors import InputError
from rere.history_files import read_ids, read_lists

HISTORIES = [["Heat"], ["Toy Story (1995)", "Heat"], ["raw3"]]


def test_files_of_ids_and_of_histories(tmp_path):
    path = tmp_path / "file"
    path.write_text("SKU-1\r\n\n caf\u00e9 \n", encoding="utf-8")
    assert read_ids(path) == ["SKU-1", "caf\u00e9"]
    path.write_text(" \n\n")
    with pytest.raises(InputError, match="file: has no ids; write one per line"):
        read_ids(path)
    path.write_text("\n".join(json.dumps(history) for history in HISTORIES))
    assert read_lists(path) == HISTORIES


@pytest.mark.parametrize("line", ["Heat", "[]", "{}", '"Heat"', '["Heat"', "[" * 100_000])
def test_a_line_that_is_no_history_is_named(tmp_path, line):
    path = tmp_path / "file"
    path.write_text(f'["Heat"]\n{line}\n')
    with pytest.raises(InputError, match="file line 2: not a list such as "):
        read_lists(path)
    path.write_text("")
    with pytest.raises(InputError, match="file: has no histories"):
        read_lists(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="file: is no text in UTF-8"):
        read_ids(path)
