"""Text files are read line by line, whatever compresses or damages them."""

import gzip
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from backports import zstd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rere.data.readers import text_files
from rere.data.readers.text_files import drop_blank, find_file, open_decompressed, read_lines
from rere.errors import InputError


def numbered_lines(path: Path, fallback: str | None = None) -> list[tuple[int, str | None]]:
    """The lines of a file that are not blank, with their numbers."""
    with open_decompressed(path) as file:
        blocks = [drop_blank(lines) for lines in read_lines(file, path, fallback)]
    return [row for block in blocks for row in block.select("line", "text").rows()]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"]))),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([bytes, gzip.compress, zstd.compress]),
    st.integers(1, 40),
)
@example(["é" * 30, "", " ", "last"], "\n", False, gzip.compress, 7)
def test_all_lines_are_read_with_their_numbers(texts, end, closed, compress, size):
    content = end.join(texts) + (end if closed and texts else "")
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", size)
        found = numbered_lines(write(Path(folder, "a"), compress(content.encode())))
    # U+001C .. U+001F are white space in Python, but not in Unicode.
    blank = [not t.strip() and not set(t) & set("\x1c\x1d\x1e\x1f") for t in texts]
    assert found == [(n, t) for n, t in enumerate(texts, 1) if not blank[n - 1]]


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert numbered_lines(write(tmp_path / "a", "\ufeffa\nb".encode())) == [(1, "a"), (2, "b")]


def test_lines_that_are_not_utf8_are_null_or_decoded_as_the_fallback(tmp_path):
    path = write(tmp_path / "a", b"a\r\nM\xe9\r\n\xc3\xa9\n")
    assert numbered_lines(path) == [(1, "a"), (2, None), (3, "é")]
    assert numbered_lines(path, "latin-1") == [(1, "a"), (2, "Mé"), (3, "é")]


def test_damaged_compressed_files_are_refused(tmp_path):
    text = bytes(range(256)) * 9
    gzipped, zipped = gzip.compress(text), zstd.compress(text)
    for content in (gzipped[:99], gzipped[:30] + b"??" + gzipped[32:], gzipped[:-1], zipped[:99]):
        path = write(tmp_path / "a", content)
        with pytest.raises(InputError) as error:
            numbered_lines(path)
        assert str(error.value).startswith(f"{path}: cut short or damaged (")
        assert "fetch it again" in str(error.value)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE", 1 << 20)
    path = write(tmp_path / "a", b"x" * (3 << 20))
    with pytest.raises(InputError, match="a line of more than 1 MB"):
        numbered_lines(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no a\.json or b\.json, plain .*; fetch them"):
        find_file(tmp_path, "a.json", "b.json", remedy="fetch them")
    write(tmp_path / "b.json.zst", b"")
    assert find_file(tmp_path, "a.json", "b.json", remedy="").name == "b.json.zst"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "b.json.zst", "b.json.zst")
    with (
        pytest.raises(InputError, match=r"a\.tar: holds no b\.json; fetch it again"),
        open_decompressed(tmp_path / "a.tar", "b.json"),
    ):
        pass
