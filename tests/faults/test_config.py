"""What a config can know is refused before any job runs, in lines that name the key."""

import copy
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_configs import ABSENT, CONFIG, SHIPPED, changed, config_error

from rere.cli import parse
from rere.config.options import MAX_INTEGER, flags
from rere.config.study import Study
from rere.errors import InputError, printable
from rere.inputs import find_missing
from rere.study import load_study
from rere.training.rewards import import_function
from rere.yaml_files import check_yaml

MAIN = SHIPPED["tables"]["main"]
SFT = SHIPPED["methods"]["sft"]


def missing(**changes: Any) -> list[str]:
    """What the changed config names and jobs would not find."""
    return list(find_missing(load_study(changed(**changes))))


def yaml_error(folder: Path, text: str) -> str:
    """The line with which the check of a config file fails, without the folder."""
    (folder / "my.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        check_yaml(folder / "my.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/")


# ---------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("changes", "where", "owner"),
    [
        ({"tables__main.runs": MAIN}, "tables.main.runs", "tables.main"),
        ({"tables__main.curves": MAIN}, "tables.main.curves", "tables.main"),
        ({"tables__MAIN": MAIN}, "tables.MAIN", "tables.main"),
        ({"tables__Main.Runs": MAIN}, "tables.Main.Runs", "tables.main"),
        ({"tables__speed.curves": MAIN}, "tables.speed.curves", "benchmarks.speed"),
        (
            {"benchmarks__main": SHIPPED["benchmarks"]["speed"]},
            "tables.main",
            "benchmarks.main",
        ),
        (
            {"datasets__ml-100k.sha256": {"source": "ml-1m"}},
            "datasets.ml-100k.sha256",
            "datasets.ml-100k",
        ),
        ({"datasets__ML-100K": {"source": "ml-1m"}}, "datasets.ML-100K", "datasets.ml-100k"),
        ({"backbones__Tiny": SHIPPED["backbones"]["tiny"]}, "backbones.Tiny", "backbones.tiny"),
        ({"methods__SFT": SFT}, "methods.SFT", "methods.sft"),
        (
            {
                "methods__a": {"sft": {}, "grid": {"dtype": ["float32"]}},
                "methods__A-dtype=Float32": SFT,
            },
            "methods.A-dtype=Float32",
            "methods.a-dtype=float32",
        ),
    ],
)
def test_names_with_the_same_files_are_refused(changes, where, owner):
    assert config_error(changed(**changes)) == (
        f"{where}: its files would be those of {owner}; choose another name"
    )


def test_a_grid_member_with_the_name_of_a_method_is_refused():
    grid = {"sft": {}, "grid": {"patience": [1]}}
    for changes in (
        {"methods__a": grid, "methods__a-patience=1": SFT},
        {"methods__a-patience=1": SFT, "methods__a": grid},
    ):
        assert config_error(changed(**changes)) == "methods.a.grid: a-patience=1 comes twice"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 101, "string should have at most 100 characters, not"),
        (
            "a" * 20,
            "aaaaaaaaaaaaaaaaaaaa repeats the same letters 20 times, which Snakemake refuses",
        ),
        ("ab\x1b[31m", "names have letters, digits"),
        ("a\nb: c", "names have letters, digits"),
    ],
)
def test_unusable_names_are_one_line(name, message):
    line = config_error(changed(**{f"tables__{name}": MAIN}))
    assert line.isprintable()
    assert message in line


def test_a_name_of_100_characters_is_fine():
    name = "abcdefghi-" * 10
    assert name in load_study(changed(**{f"tables__{name}": MAIN})).tables


# ----------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n  b: 1\n  c: 2\n  b: 3\n",
            "my.yaml line 4: b comes twice, first in line 2; keep one",
        ),
        ("a: {b: 1, 'b': 2}", "my.yaml line 1: b comes twice, first in line 1; keep one"),
        ('{"a": 1,\n"a": 2}', "my.yaml line 2: a comes twice, first in line 1; keep one"),
        ("a:\n- &x [*x]\n", "my.yaml line 2: contains itself; write it out"),
        ("a: &x\n  b: *x\n", "my.yaml line 1: contains itself; write it out"),
        ("a: " + "[" * 1000, "my.yaml: is nested too deeply; write fewer brackets"),
        ("seed: " + "9" * 5000, "my.yaml line 1: has a number of 5000 digits; shorten it"),
        ("seed: 0x" + "f" * 5000, "my.yaml line 1: has a number of 5002 digits; shorten it"),
        ("a: b: c", "my.yaml line 1: mapping values are not allowed here; correct it"),
        ("a: *x", "my.yaml line 1: found undefined alias 'x'; correct it"),
    ],
    ids=range(10),
)
def test_yaml_that_loads_in_silence_or_kills_the_loader_is_refused(tmp_path, text, message):
    assert yaml_error(tmp_path, text) == message


def test_control_characters_in_yaml_are_refused(tmp_path):
    assert "my.yaml: cannot be read as YAML in UTF-8" in yaml_error(tmp_path, "a: \x1b[31m")


def test_a_yaml_bomb_is_refused_at_once(tmp_path):
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 40))
    (tmp_path / "my.yaml").write_text(f"l0: &l0 [x]\n{levels}")
    start = time.perf_counter()
    check_yaml(tmp_path / "my.yaml")
    bomb = yaml.safe_load((tmp_path / "my.yaml").read_text())["l39"]
    assert config_error(changed(methods__a={"sft": {}, "grid": {"dtype": bomb}})) == (
        "methods.a.grid.dtype: takes single values and lists, not a list"
    )
    assert config_error(changed(evaluation__rows=bomb)) == (
        "evaluation.rows: input should be a valid integer, not a list"
    )
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("config", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_configs_pass(config):
    check_yaml(config)


# -------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("key", "limit"),
    [
        ("tables__main__seeds", MAX_INTEGER),
        ("methods__sft__seed", MAX_INTEGER),
        ("backbones__tiny__seed", MAX_INTEGER),
        ("benchmarks__rollouts__seed", MAX_INTEGER),
        ("backbones__tiny__hidden_size", MAX_INTEGER),
        ("datasets__ml-100k__core", MAX_INTEGER),
        ("evaluation__rows", MAX_INTEGER),
        ("evaluation__list_length", 100_000),
        ("evaluation__num_beams", 10_000),
        ("methods__d3__decode__num_beams", 10_000),
        ("methods__sasrec__baseline__epochs", 10_000),
        ("methods__sft__sft__epochs", 10_000),
        ("methods__s_dpo__preference__steps", 10_000_000),
        ("methods__rere__rl__steps", 10_000_000),
        ("methods__rere__rl__group_size", 10_000),
    ],
)
def test_numbers_have_ceilings(key, limit):
    cast = float if key.endswith("sft__epochs") else int
    for value in (limit + 1, 10**30, 10**5000):
        if cast is float:
            value = float(min(value, 10**300))
        given = [value] if key.endswith("seeds") else value
        line = config_error(changed(**{key: given}))
        assert line.startswith(key.replace("__", ".") + ": input should be less than or equal to")
        assert str(limit) in line
    largest = cast(limit) if not key.endswith("hidden_size") else limit // 8 * 8
    load_study(changed(**{key: [largest] if key.endswith("seeds") else largest}))


@pytest.mark.parametrize(
    ("stage", "needed", "option"),
    [
        ("recommend --history", "--model . --history A", "--top=1000000000"),
        ("sft", "--init . --data . --output p", "--epochs=1e308"),
        ("sft", "--init . --data . --output p", "--seed=4294967296"),
        ("baseline item_knn", "--data . --output p", "--neighbours=1000000000000"),
        (
            "metrics",
            "--predictions p --data . --output p --dataset d --backbone b --method m",
            "--seed=4294967296",
        ),
    ],
)
def test_the_command_line_has_ceilings(stage, needed, option, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(stage, [*needed.split(), option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"rere {stage}: {option.partition('=')[0]}: input should be less than or"
    )


def test_a_grid_of_a_million_is_refused_before_it_is_expanded():
    grid = {name: list(range(1, 101)) for name in ("patience", "validations", "valid_rows")}
    start = time.perf_counter()
    assert config_error(changed(methods__a={"sft": {}, "grid": grid})) == (
        "methods.a.grid: has 1000000 members; give at most 10000"
    )
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, [[1]], [{}], 10**5000, [10**30]],
    ids=["map", "lists", "maps", "int", "ints"],
)
def test_a_grid_takes_values_that_a_name_can_hold(value):
    line = config_error(changed(methods__a={"sft": {}, "grid": {"patience": [value]}}))
    assert line.startswith("methods.a.grid.patience: takes single values and lists, not ")


def test_a_grid_may_have_null():
    grid = {"sft": {}, "grid": {"lora_rank": [None, 8]}}
    assert {"a-lora_rank=None", "a-lora_rank=8"} <= load_study(
        changed(methods__a=grid)
    ).methods.keys()


# ---------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path", ["{dataset}", "raw}", "a\nb", "a\x7f"], ids=["braces", "brace", "newline", "delete"]
)
def test_paths_that_snakemake_would_change_are_refused(path):
    own = {"source": "table", "folder": "raw"}
    for changes in (
        {"datasets__ml-100k__folder": path},
        {"datasets__own": own | {"events": path}},
        {"datasets__own": own | {"items": path}},
        {"backbones__own": {"source": "pretrained", "model": path}},
        {"methods__rere__rl__reward": ["semantic"], "methods__rere__rl__embeddings": path},
    ):
        line = config_error(changed(**changes))
        assert line.endswith(": holds braces or control characters; rename it")
        assert line.isprintable()


def test_a_null_character_is_refused():
    line = config_error(changed(**{"backbones__own": {"source": "pretrained", "model": "a\0b"}}))
    assert line == "backbones.own.model: holds a null character; remove it"


@pytest.mark.parametrize("value", ["--help", "-h", "--output", "a b", "'", "=", "$HOME", "*"])
def test_a_value_that_looks_like_a_flag_is_a_value(value):
    config = changed(**{"backbones__own": {"source": "pretrained", "model": value}})
    options = load_study(config).backbones["own"]
    command = parse(
        "backbone pretrained", [*flags(options, skip=("source", "training")), "--output=o"]
    )
    assert command.model == value


# -------------------------------------------------- modules, packages and folders that are named


@pytest.mark.parametrize(
    ("reward", "fault"),
    [
        ("nowhere:one", "there is no module nowhere; run the study where it is, or install it"),
        ("mine:two", "{folder}/mine.py has no function two; define it"),
        ("broken:one", "{folder}/broken.py line 2: expected ':'; correct it"),
        ("pack.inner:two", "{folder}/pack/inner.py has no function two; define it"),
        ("pack.other:one", "there is no module pack.other; run the study where it is, or install"),
        ("sys:exit", "sys is a module of Python; choose another name"),
        ("os:system", "os is a module of Python; choose another name"),
        ("json:one", "json is a module of Python; choose another name"),
        ("yaml:one", " instead of {folder}/yaml.py; rename yours"),
        ("tiny_models:nothing", "has no function nothing; define it"),
    ],
)
def test_a_reward_that_cannot_be_imported_is_refused(tmp_path, monkeypatch, reward, fault):
    write_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    [line] = missing(methods__rere__rl__reward=["rule", reward])
    assert line.startswith(f"methods.rere.rl.reward: {reward}: ")
    assert fault.format(folder=tmp_path) in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("reward", ["mine:one", "mine:Two", "mine:three", "pack.inner:one"])
def test_a_reward_is_found_without_running_it(tmp_path, monkeypatch, reward):
    write_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert missing(methods__rere__rl__reward=[reward]) == []
    assert not (tmp_path / "ran").exists()


def write_modules(folder: Path) -> None:
    """Write modules that would leave a file if they were run."""
    run = "open('ran', 'w')\n"
    text = f"{run}def one(groups): ...\nclass Two: ...\nif True:\n    three = lambda groups: ...\n"
    (folder / "mine.py").write_text(text)
    for name in ("json", "yaml"):
        (folder / f"{name}.py").write_text(text)
    (folder / "broken.py").write_text(f"{run}def one(groups)\n")
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text(f"{run}from elsewhere import *\n")
    (folder / "pack" / "inner.py").write_text(text)


def test_the_faults_of_a_grid_come_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = {"rl": {"reward": ["nowhere:one"]}, "grid": {"beta": [0.0, 0.1, 0.2]}}
    assert len(missing(methods__a=grid)) == 1


def test_rewards_are_imported_from_the_working_folder_last(tmp_path, monkeypatch):
    """So a module there replaces no installed one, as it would in front."""
    (tmp_path / "reward_of_mine.py").write_text("def one(groups): ...\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert import_function("reward_of_mine:one").__name__ == "one"
    assert sys.path[-1] == str(tmp_path)


def test_trackers_without_a_package_are_refused(monkeypatch):
    monkeypatch.setattr("rere.inputs.find_module", lambda name, path: None)
    assert missing(methods__sft__sft__report_to=["tensorboard", "wandb"]) == [
        "methods.sft.sft.report_to: there is no package tensorboard; pip install tensorboard",
        "methods.sft.sft.report_to: there is no package wandb; pip install wandb",
    ]


def test_tensorboard_alone_serves_tensorboard(monkeypatch):
    def find(name, path):
        return name if name == "tensorboardX" else None

    monkeypatch.setattr("rere.inputs.find_module", find)
    assert len(missing(methods__sft__sft__report_to=["tensorboard"])) == 1


@pytest.mark.parametrize("model", ["/models/x", "./x", "../x", "~/x", "a/b/c"])
def test_a_model_folder_that_is_not_there_is_refused(model):
    own = {"source": "pretrained", "model": model}
    assert missing(backbones__own=own) == [f"backbones.own.model: there is no folder {model}"]


def test_the_id_of_a_model_is_not_a_folder(tmp_path):
    assert missing(backbones__own={"source": "pretrained", "model": "Qwen/Qwen2-0.5B"}) == []
    assert missing(backbones__own={"source": "pretrained", "model": str(tmp_path)}) == []


def test_embeddings_that_are_not_there_are_refused():
    changes = {"methods__rere__rl__reward": ["semantic"], "methods__rere__rl__embeddings": "None"}
    assert missing(**changes) == ["methods.rere.rl.embeddings: there is no folder None"]


# ------------------------------------------------------------------------------------- commands


def test_fetch_says_where_yelp_is_as_documented(capsys):
    parse("fetch", ["--source", "yelp"]).run()
    assert "https://business.yelp.com" in capsys.readouterr().out
    with pytest.raises(InputError, match="--output: missing; name the folder for the raw files"):
        parse("fetch", ["--source", "ml-100k"]).run()
    with pytest.raises(InputError, match="yelp: its licence needs your agreement"):
        parse("fetch", ["--source", "yelp", "--output", "raw"]).run()


# ---------------------------------------------------------------------------------------- fuzzed

TEXT = st.text(max_size=8) | st.sampled_from(["None", "1e5", "tiny", "sft", "rule=x", "a:b"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.dates()
    | st.binary(max_size=3)
)
KEYS = TEXT | st.integers() | st.none() | st.booleans() | st.sampled_from(["grid", "init", "seed"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def configs(draw: st.DrawFn) -> dict[Any, Any]:
    """The shipped config with up to three values set, added or removed anywhere."""
    config = copy.deepcopy(SHIPPED)
    for _ in range(draw(st.integers(1, 3))):
        node = config
        while True:
            key = draw(st.sampled_from(list(node)) if node and draw(st.integers(0, 4)) else KEYS)
            if isinstance(node.get(key), dict) and draw(st.integers(0, 4)):
                node = node[key]
                continue
            if draw(st.booleans()) and key in node:
                del node[key]
            else:
                node[key] = draw(VALUES)
            break
    return config


def check_outcome(config: Any) -> None:
    """Loading gives a study, or lines that each name a key."""
    try:
        study = load_study(config)
    except InputError as error:
        keys = tuple(printable(str(key)) for key in {*config, *Study.model_fields})
        for line in str(error).split("\n"):
            assert line.isprintable()
            assert line.startswith(keys), line
    else:
        assert isinstance(study, Study)


@pytest.mark.fuzz
@settings(suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_any_mapping_gives_a_study_or_lines_that_name_keys(config):
    check_outcome(config)


@pytest.mark.fuzz
@settings(suppress_health_check=list(HealthCheck))
@given(
    position=st.integers(0, 4000),
    length=st.integers(0, 20),
    inserted=st.text(max_size=10) | st.sampled_from(["\n", "  ", "&a ", "*a", "- ", "{", "!!int "]),
)
def test_any_text_gives_a_study_or_one_line(tmp_path_factory, position, length, inserted):
    text = (CONFIG / "config.yaml").read_text()
    text = text[:position] + inserted + text[position + length :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        check_yaml(path)
    except InputError as error:
        assert re.match(rf"{re.escape(str(path))}(:| line \d+:) ", str(error))
        assert str(error).isprintable()
        return
    config = yaml.safe_load(text)
    if isinstance(config, dict):
        check_outcome(config)
    else:
        assert config_error(config).startswith("input should be a mapping")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int ''", "line 1: '' is no int"),
        ("a: 1\nb: !!bool x", "line 2: 'x' is no bool"),
        ("a: 2001-99-99", "line 1: '2001-99-99' is no timestamp"),
        ("a: !!set [1]", "line 1: expected a mapping node, but found sequence"),
        ("<<: 3", "line 1: expected a mapping or list of mappings for merging"),
        ("a: &a {b: 1}\nc: {<<: *a, d: 2}", None),
    ],
)
def test_values_that_the_loader_dies_of_are_named(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    if message is None:
        check_yaml(path)
        assert yaml.safe_load(text)["c"]["b"] == 1
    else:
        with pytest.raises(InputError, match=re.escape(f"{path} {message}")):
            check_yaml(path)


@pytest.mark.parametrize(("key", "shown"), [("'", "'"), ("", "''"), ("'x'", "'x'"), (3, "3")])
def test_an_unknown_key_is_shown_as_it_is(key, shown):
    assert config_error(changed(**{str(key): None})).startswith(f"{shown}: unknown key; ")


def test_absent_sections_are_named():
    for section in ("datasets", "backbones", "methods", "tables"):
        assert f"{section}: missing" in config_error(changed(**{section: ABSENT})).split("\n")
