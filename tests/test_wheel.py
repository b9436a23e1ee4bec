"""The package works from its wheel, outside the repository, with all of its files."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def files_of(package: Path) -> set[str]:
    """The files of a package, relative to it, without compiled ones."""
    files = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


def run_installed(target: Path, folder: Path, *command: str | Path) -> str:
    """The output of a command in an empty folder, where `import rere` finds the installed one."""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_wheel_has_every_file_of_the_package(installed_wheel):
    installed = files_of(installed_wheel / "rere")
    assert installed == files_of(ROOT / "rere")
    assert {"py.typed", "reporting/rere.mplstyle", "reporting/explorer.html"} <= installed


def test_the_installed_package_runs(installed_wheel, tmp_path):
    place = run_installed(
        installed_wheel, tmp_path, sys.executable, "-c", "import rere; print(rere.__file__)"
    )
    assert Path(place.strip()).parent == installed_wheel / "rere"
    help = run_installed(installed_wheel, tmp_path, sys.executable, "-m", "rere", "--help")
    assert "  schema  " in help


def test_the_installed_command_runs(installed_wheel, tmp_path):
    rere = installed_wheel / "bin" / "rere"
    assert '"properties"' in run_installed(installed_wheel, tmp_path, rere, "schema")
