"""The ways to install say the same: pyproject.toml, constraints.txt and both conda files."""

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def conda(path: str) -> tuple[list[str], list[str]]:
    """The conda packages and the pip packages of an environment file."""
    dependencies = yaml.safe_load((ROOT / path).read_text())["dependencies"]
    [pip] = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return [entry for entry in dependencies if isinstance(entry, str)], pip


RUNTIME = requirements(PROJECT["dependencies"])
EXTRAS = PROJECT["optional-dependencies"]
SERVE = requirements(EXTRAS["serve"])
PINS = requirements((ROOT / "constraints.txt").read_text().splitlines())


def test_constraints_pin_every_direct_requirement_exactly():
    assert all(str(pin.specifier).startswith("==") for pin in PINS.values())
    direct = RUNTIME | requirements([each for extra in EXTRAS.values() for each in extra])
    del direct["rere"]  # with an extra
    assert direct.keys() <= PINS.keys()
    for name, requirement in direct.items():
        version = str(PINS[name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), name


def test_the_workflows_environment_has_the_runtime_requirements_as_pinned():
    packages, pip = conda("envs/rere.yaml")
    assert {str(pin) for pin in requirements(pip).values()} == {str(PINS[name]) for name in RUNTIME}
    assert packages == ["python=3.11", "pip"]


def test_the_developers_environment_installs_the_repository_as_pinned():
    packages, pip = conda("environment.yml")
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    assert packages == ["python=3.11", "pip"]


def test_what_the_package_imports_is_required():
    for folder, required in (("rere", RUNTIME), ("rere/serve", RUNTIME | SERVE)):
        paths = {*(ROOT / folder).rglob("*.py")}
        if folder == "rere":
            paths -= {*(ROOT / "rere/serve").rglob("*.py")}
        needed = packages_imported_by(paths)
        assert needed - {"pydantic-core"} <= required.keys()  # pydantic pins its core itself


def packages_imported_by(paths: Iterable[Path]) -> set[str]:
    """The packages with the modules that these files import."""
    imported = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    modules = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"rere"}
    modules -= {"compression"}  # of the standard library from Python 3.14 on
    distributions = packages_distributions()
    return {canonicalize_name(distributions[module][0]) for module in modules}
