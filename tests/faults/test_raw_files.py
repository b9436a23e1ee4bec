"""Hostile and damaged raw files: bounded time and memory, and every line read or counted."""

import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from raw_files import random_events, write_yelp_tar

from rere.config.data import Yelp
from rere.data.readers.json_lines import decode_literal, read_json_records
from rere.data.readers.text_files import LineCounter, open_decompressed
from rere.data.readers.yelp import read_yelp
from rere.errors import InputError

FIELDS = {"item": "asin", "title": "title"}


def records(path: Path, content: bytes, tolerance: float = 0.99) -> tuple[list[tuple], dict]:
    """Items and titles of a file of JSON lines, and the counts of its lines."""
    path.write_bytes(content)
    counter = LineCounter(path, tolerance)
    rows = [
        row
        for block in read_json_records(path, FIELDS, counter)
        for row in block.select("item", "title").rows()
    ]
    return rows, counter.check()


# ----------------------------------------------------------------------------------- JSON lines

HUGE = "9" * 10_000
UNREADABLE = "not a JSON object of plain values"


@pytest.mark.parametrize(
    "line",
    [
        f"{{'asin': 'B', 'title': {HUGE}}}",
        f"{{'asin': 0x{HUGE}, 'title': 'x'}}",
        f"{{'asin': 'B', 'price': {HUGE}, 'title': 'x'}}",
        "{'asin': b'B', 'title': 'x'}",
        "{'asin': {1, 2}, 'title': 'x'}",
        '{"asin": "B", "title": "\\ud83d"}',
        '{"asin": "B", "title": "\\udc00\\ud800"}',
    ],
)
def test_lines_that_cannot_be_read_are_counted(tmp_path, line, caplog):
    good = '{"asin": "A", "title": "a"}\n'
    rows, counts = records(tmp_path / "a.json", f"{good}{line}\n{good}".encode())
    assert rows == [("A", "a")] * 2
    assert counts == {"lines": 3, UNREADABLE: 1}
    assert f"{tmp_path}/a.json line 2: {UNREADABLE}" in caplog.text


@pytest.mark.parametrize("key", ["asin", "title", "price"])
@pytest.mark.parametrize("number", [HUGE, f"-{HUGE}", "1e999", "1" * 400])
def test_huge_numbers_are_counted_or_read_whole(tmp_path, key, number):
    line = json.dumps({"asin": "B", "title": "b"} | {key: 0}).replace(" 0", f" {number}")
    rows, counts = records(tmp_path / "a.json", f'{{"asin": "A", "title": "a"}}\n{line}\n'.encode())
    assert counts["lines"] == len(rows) + counts.get(UNREADABLE, 0) == 2
    assert len(rows) == 1 or rows[1] == ("B", "b") or number in rows[1]


def test_ids_of_many_digits_stay_different(tmp_path):
    lines = [f'{{"asin": {10**20 + n}, "title": "x"}}\n' for n in range(3)]
    lines += [f'{{"asin": {2**63 + n}, "title": "x"}}\n' for n in range(3)]
    rows, counts = records(tmp_path / "a.json", "".join(lines).encode())
    assert len({item for item, _ in rows}) == len(rows)
    assert len(rows) + counts.get(UNREADABLE, 0) == 6


def test_surrogates_of_2014_are_joined_and_lone_ones_replaced():
    line = "{'asin': 'B', 'title': 'a \\ud83d\\ude00 b \\ud83d c'}"
    assert decode_literal(line, ("title",)) == {"title": "a \U0001f600 b \ufffd c"}


PIECES = ['"asin"', '"title"', ": ", ", ", "{", "}", "{'asin': 'x'", "}", "null", "NaN", "1e9"]
PIECES += [HUGE, '"\\ud800"', "'\\ud800'", "[", "]", '"x"', "\\", "\x00", "\x85", "true", "-"]


@pytest.mark.fuzz
@given(
    st.lists(
        st.lists(st.sampled_from(PIECES), max_size=8).map(lambda each: "".join(each).encode())
        | st.binary(max_size=12),
        max_size=8,
    )
)
def test_any_lines_are_read_or_counted_and_good_ones_never_vanish(lines):
    content = b""
    for n, line in enumerate(lines):
        content += line.replace(b"\n", b"") + b'\n{"asin": "good%d", "title": "t"}\n' % n
    with TemporaryDirectory() as folder:
        try:
            rows, counts = records(Path(folder, "a.json"), content)
        except InputError as error:
            assert "a.json" in str(error) and "\n" not in str(error)
            return
    assert [item for item, _ in rows if item and item[:4] == "good"] == [
        f"good{n}" for n in range(len(lines))
    ]
    assert counts.pop("lines") == len(rows) + sum(counts.values())


# ----------------------------------------------------------------------------------------- tars

GIGABYTES = 3 << 30


def header(kind: bytes, size: int) -> bytes:
    """A tar header that claims `size` bytes of names and attributes."""
    entry = tarfile.TarInfo("claims")
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE),
    ],
)
def test_a_header_that_claims_gigabytes_is_refused_at_once(tmp_path, kind, compress):
    path = tmp_path / "yelp_dataset.tar"
    path.write_bytes(compress(header(kind, GIGABYTES) + bytes(1 << 20)))
    before, started = peak_megabytes(), time.process_time()
    with pytest.raises(InputError, match=r"tar: cut short or damaged \(a header of 3221225472"):
        read_yelp(Yelp(), tmp_path)
    assert time.process_time() - started < 1
    assert peak_megabytes() - before < 50


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_bomb_behind_such_a_header_costs_neither_time_nor_memory(tmp_path):
    """In a process of its own, whose address space could not hold the claim."""
    path = tmp_path / "yelp_dataset.tar"
    with zstd.open(path, "wb") as file:
        file.write(header(tarfile.XHDTYPE, GIGABYTES))
        for _ in range(64):
            file.write(bytes(1 << 20))
    code = (
        "import resource, sys; from rere.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        f"sys.argv[1:] = 'preprocess yelp --output x --raw'.split() + [{str(tmp_path)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"rere preprocess yelp: {path}: cut short or damaged (a header of 32")


def test_a_thousand_small_extensions_are_skipped(tmp_path):
    content = b'{"review_id": 1}\n'
    entry = tarfile.TarInfo("yelp/reviews.json")
    entry.size = len(content)
    block = header(tarfile.GNUTYPE_LONGNAME, 5) + b"name\0".ljust(512, b"\0")
    body = entry.tobuf() + content.ljust(512, b"\0") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(block * 3000 + body)
    with open_decompressed(tmp_path / "a.tar", "reviews.json") as file:
        assert file.read() == content


def test_tars_of_every_format_are_read(tmp_path):
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            entry = tarfile.TarInfo("f" * 60 + "/" + "a.json")
            entry.mtime, entry.size = 1.5 if form == tarfile.PAX_FORMAT else 1, 3
            archive.addfile(entry, io.BytesIO(b"abc"))
        with open_decompressed(path, "a.json") as file:
            assert file.read() == b"abc"


def test_the_tar_of_yelp_is_read_as_before(tmp_path):
    events, titles = random_events(50, 5, 10)
    write_yelp_tar(tmp_path, events, titles, compress=True)
    raw = read_yelp(Yelp(start=None, end=None, title="name"), tmp_path)
    assert raw.events.rows() == events
