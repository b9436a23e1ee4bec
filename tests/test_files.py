"""Outputs appear complete or not at all, and the user's own files are kept."""

import os
from pathlib import Path

import pytest

from rere.errors import InputError
from rere.files import SNAKEMAKE, read_json, replacing, sha256, write_json


def write(path: Path, *names: str) -> None:
    """Write a folder with files of these names to `path` with `replacing`."""
    with replacing(path) as temporary:
        temporary.mkdir()
        for name in names:
            (temporary / name).write_text("new")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------- files


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "a.csv"
    with replacing(path) as temporary:
        assert temporary.name == "a.csv"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_replaces_another(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"a.csv": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_nothing(tmp_path, error):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    for path, fill in ((tmp_path / "file", Path.touch), (tmp_path / "folder", Path.mkdir)):
        with pytest.raises(error), replacing(path) as temporary:
            fill(temporary)
            raise error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
    assert contents(tmp_path / "folder") == {"a": "old"}


def test_a_folder_is_flushed_to_disk_before_it_appears(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor: int) -> None:
        assert not (tmp_path / "folder").exists()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "folder", "a", "b")
    assert sorted(synced) == sorted(p.stat().st_ino for p in (tmp_path / "folder").iterdir())


def test_an_output_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").mkdir()
    write(tmp_path / "folder", "a")
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode


# -------------------------------------------------------------------------------------- folders


def test_a_folder_replaces_another(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("old")
    (folder / SNAKEMAKE).touch()

    def replace(new: Path, path: Path) -> None:
        # The old one is moved away, and removed only after the new one has replaced it.
        assert not path.exists()
        assert sorted(file.read_text() for file in new.parent.rglob("a")) == ["new", "old"]
        os.replace(new, path)

    monkeypatch.setattr(Path, "replace", replace)
    write(folder, "a", "b")
    assert contents(folder) == {"a": "new", "b": "new"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_replaces_an_empty_one(tmp_path):
    write(tmp_path, "a")
    assert contents(tmp_path) == {"a": "new"}


def test_a_folder_with_other_files_is_kept(tmp_path):
    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "a").write_text("old")
    with pytest.raises(InputError) as error:
        write(home, "a", "b")
    assert str(error.value) == (f"{home}/thesis: would be lost; remove it or choose another output")
    assert (home / "thesis").is_dir()
    assert (home / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [home]


def test_the_working_directory_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").touch()
    for path in (Path("."), Path(""), Path("../") / tmp_path.name):
        with pytest.raises(InputError, match="mine: would be lost"):
            write(path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_files_and_folders_do_not_replace_each_other(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    with pytest.raises(InputError, match="file: is a file; remove it or choose another output"):
        write(file, "a")
    with pytest.raises(InputError, match="folder: is a folder; remove it or choose another"):
        write_json(folder, 1)
    assert sorted(tmp_path.iterdir()) == [file, folder]
    assert file.read_text() == "old"


def test_a_link_to_a_folder_is_followed(tmp_path):
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    (disk / "a").write_text("old")
    link.symlink_to(disk)
    write(link, "a")
    assert link.is_symlink()
    assert contents(disk) == {"a": "new"}
    (disk / "mine").touch()
    with pytest.raises(InputError, match="disk/mine: would be lost"):
        write(link, "a")


def test_a_link_inside_a_folder_is_not_followed(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    (folder / "a").symlink_to(elsewhere)
    write(folder, "a")
    assert contents(folder) == {"a": "new"}
    assert (elsewhere / "mine").exists()


# -------------------------------------------------------------------------------- JSON and sha256


def test_json_ends_with_a_newline_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, "é"]})
    assert path.read_bytes().endswith(b"\n")
    assert read_json(path, "`rere`") == {"a": [1, "é"]}
    for broken in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, {"a": broken})
    assert read_json(path, "`rere`") == {"a": [1, "é"]}


def test_what_is_no_mapping_in_json_is_refused_with_the_stage(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"a\.json: no such file; `rere audit` writes it"):
        read_json(path, "`rere audit`")
    for text in ("", "{", "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match="; make it again: `rere audit`"):
            read_json(path, "`rere audit`")


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
