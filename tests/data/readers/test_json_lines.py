"""JSON lines are decoded to text, and broken ones to null."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rere.data.readers.json_lines import decode_each, decode_json


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('{"a": 1, "b": "x", "c": [1]}', ("1", "x")),
        (' {"a": 1400000000.0} ', ("1400000000", None)),
        ('{"a": null, "b": true}', (None, "true")),
        ("{}", (None, None)),
        ('{"a": "\\u00e9\\n\\"\\\\"}', ('é\n"\\', None)),
        ('{"a": ["q"]}', None),
        ('{"b": {"q": 1}}', None),
        ('{"a": 1', None),
        ('{"a": 1} x', None),
        ('{"a": 1}{"a": 2}', None),
        ('{"a": 1}, {"a": 2}', None),
        ('"b": 2}', None),
        ("[1]", None),
        ("7", None),
        ("null", None),
        ('{"a": NaN}', None),
        ('{"a": "raw\ttab"}', None),
        ("[" * 5000, None),
        ("{'a': 'it\\'s', 'b': 3}", ("it's", "3")),
        ("{'a': None, 'c': [1]}", (None, None)),
        ("{'a': ['q']}", None),
        ("{'a': f(1)}", None),
        ("{'a': " * 5000 + "}", None),
        (None, None),
    ],
)
def test_the_values_of_each_line_are_decoded(line, values):
    lines = pl.Series([line, '{"a": "ok"}', line], dtype=pl.String)
    expected = None if values is None else dict(zip("ab", values, strict=True))
    assert decode_each(lines, ("a", "b")).to_list() == [expected, {"a": "ok", "b": None}, expected]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(['{"a": 1}', '{"a": ', '{"a": 1}, {"a": 2}', "{", "}"]), min_size=1)
)
def test_broken_lines_are_null_in_any_position(lines):
    found = decode_json(pl.Series(lines), pl.Struct({"a": pl.String}))
    assert [record is not None for record in found.to_list()] == [x == '{"a": 1}' for x in lines]
