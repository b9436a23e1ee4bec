"""The package works from its wheel, outside the repository, with all of its files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def files_of(package: Path) -> set[str]:
    """The files of a package, relative to it, without compiled ones."""
    files = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


def pip(*arguments: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"], check=True
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel of the package is installed in. Nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    # Not built in the repository, where setuptools would leave files and pick up old ones.
    source, target = folder / "source", folder / "target"
    shutil.copytree(ROOT / "rere", source / "rere", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", folder)
    [wheel] = folder.glob("*.whl")
    pip("install", wheel, "--no-compile", "--target", target)
    return target


def run_installed(target: Path, folder: Path, *command: str | Path) -> str:
    """The output of a command in an empty folder, where `import rere` finds the installed one."""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_wheel_has_every_file_of_the_package(target):
    installed = files_of(target / "rere")
    assert installed == files_of(ROOT / "rere")
    assert {"py.typed", "reporting/rere.mplstyle"} <= installed


def test_the_installed_package_runs(target, tmp_path):
    place = run_installed(
        target, tmp_path, sys.executable, "-c", "import rere; print(rere.__file__)"
    )
    assert Path(place.strip()).parent == target / "rere"
    help = run_installed(target, tmp_path, sys.executable, "-m", "rere", "--help")
    assert "  schema  " in help


def test_the_installed_command_runs(target, tmp_path):
    assert '"properties"' in run_installed(target, tmp_path, target / "bin" / "rere", "schema")
