"""Imports point one way, identifiers have the field's words, and fixtures are in conftest.py."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    {"errors"},
    {
        "config",
        "devices",
        "files",
        "history_files",
        "lease",
        "prefix_tree",
        "progress",
        "signals",
        "tokenization",
        "yaml_files",
    },
    {
        "adapters",
        "backbone_lock",
        "catalogue",
        "data",
        "engine",
        "model_card",
        "provenance",
        "pruning",
        "ranks",
        "study",
    },
    {"backbones", "engine.model", "inputs", "overlays"},
    {"engine.candidates", "engine.search", "token_lengths"},
    {"evaluation"},
    {"baselines", "reporting", "training"},
    {"planning"},
    {"benchmarks", "push", "recommender"},
    {"serve"},
    {"stages"},
    {"cli"},
    {"__main__"},
)
"""The parts of `rere`. One imports itself and parts of earlier layers, not those of its own."""

OLD_WORDS = re.compile(
    "(^|_)(silent|redraw|redrawn|kept_prompts?|recall|recalling|rooms?|heated|frontiers?|log_mass|"
    "assistant|no_result|facts?|certificates?|lay_out_apart)(_|$)"
)
"""Words of this project's own, in snake case, that the field's terms have replaced."""
RENAMED = ROOT / "rere/config/options.py"
"""Has the old names of options, to say the new ones."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in (ROOT / "rere").rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, within functions, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def part_of(module: str) -> str:
    """`data` for rere.data.fetch, `engine.search` for rere.engine.search.beam."""
    names = module.split(".")[1:]
    return ".".join(names[: 2 if names[:1] == ["engine"] else 1])


def imported_by(part: str) -> set[str]:
    return set().union(*(IMPORTS[module] for module in MODULES if part_of(module) == part))


def parts_imported_by(part: str) -> set[str]:
    """The other parts of `rere` that a part imports."""
    return {part_of(name) for name in imported_by(part) if name.startswith("rere.")} - {part}


def test_every_part_has_one_layer():
    parts = [part for layer in LAYERS for part in layer]
    assert sorted(parts) == sorted({part_of(module) for module in MODULES} - {""})


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_parts_import_earlier_layers_only(number):
    earlier = set().union(*LAYERS[:number])
    for part in LAYERS[number]:
        assert parts_imported_by(part) <= earlier, part


def test_the_options_import_nothing_heavy():
    packages = {name.partition(".")[0] for name in imported_by("config")}
    assert packages - sys.stdlib_module_names == {"pydantic", "pydantic_core", "rere"}
    assert parts_imported_by("config") == {"errors"}


def test_the_engine_knows_token_ids_and_trees_only():
    parts = {part_of(module) for module in MODULES if module.startswith("rere.engine")}
    for part in parts:
        assert parts_imported_by(part) <= parts | {"config", "errors", "prefix_tree", "pruning"}, (
            part
        )


def test_stages_alone_import_benchmarks():
    parts = {part_of(module) for module in MODULES} - {"benchmarks"}
    assert {part for part in parts if "benchmarks" in parts_imported_by(part)} == {"stages"}


def test_nothing_imports_snakemake():
    packages = {name.partition(".")[0] for names in IMPORTS.values() for name in names}
    assert not {name for name in packages if name.startswith("snakemake")}


def test_no_imports_form_a_cycle():
    TopologicalSorter(IMPORTS).prepare()


def identifiers(path: Path) -> Iterator[str]:
    """The names in a file of code or options, and its strings that could be names."""
    if path.suffix == ".yaml":
        for line in path.read_text().splitlines():
            yield from re.findall(r"\w+", line.partition("#")[0])
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.NAME, tokenize.STRING):
            yield token.string.strip("\"'")


def is_old(name: str) -> bool:
    return bool(OLD_WORDS.search(re.sub(r"(?<=[a-z])(?=[A-Z])|\W+", "_", name).lower()))


def test_old_words_are_found_in_every_spelling():
    old = ["skip_silent", "KeptPrompts", "log-mass", "NO_RESULT", "FACTS", "The room"]
    assert all(map(is_old, old))
    assert not any(map(is_old, ["mushroom", "artifacts", "result"]))


@pytest.mark.parametrize("folder", ["rere", "config", "workflow"])
def test_identifiers_have_no_old_words(folder):
    files = [path for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    assert not [path for path in files if is_old(path.stem)]
    code = [path for path in files if path.suffix in (".py", ".smk", ".yaml") and path != RENAMED]
    assert code
    for path in code:
        assert not {name for name in identifiers(path) if name.isidentifier() and is_old(name)}, (
            path
        )


def test_headings_of_the_documentation_have_no_old_words():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        headings = re.findall(r"^#+ (.*)", path.read_text(), re.M)
        assert path.name == "renamed.md" or not list(filter(is_old, headings)), path


def test_no_test_module_defines_a_fixture():
    paths = (ROOT / "tests").rglob("test_*.py")
    assert not [path.name for path in paths if "\n@pytest.fixture" in path.read_text()]
