"""Config files laid over one another."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from snakemake.utils import update_config

from rere.errors import InputError
from rere.overlays import find_overwritten, lay_over, read_configs

SHIPPED = Path(__file__).parent.parent / "config"
MAIN = "results/tables/main.csv"
RUN = "results/runs/ml-100k/tiny/{}/seed0"
REMOVED = {"tables": {"main": None}}
MORE = {"methods": {"sft": {"sft": {"epochs": 2.0}}}}
MINE = {
    "datasets": {"mine": {"source": "ml-1m"}},
    "tables": {
        "main": None,
        "mine": {"datasets": ["mine"], "backbones": ["tiny"], "methods": ["sft"], "seeds": [0]},
    },
}


def overwritten(*configs: dict) -> list[str]:
    """What configs overwrite that are laid over the quick study, as second.yaml and third.yaml."""
    quick = yaml.safe_load((SHIPPED / "config.yaml").read_text())
    layers = zip(["first.yaml", "second.yaml", "third.yaml"], [quick, *configs], strict=False)
    return list(find_overwritten(list(layers), update_config))


@pytest.mark.parametrize(
    ("change", "entry", "path"),
    [
        (MORE, "methods.sft", RUN.format("sft")),
        ({"methods": {"rere": {"init": "sft_continued"}}}, "methods.rere", RUN.format("rere")),
        ({"methods": {"sft": {"seed": 7}}}, "methods.rere", RUN.format("rere")),
        ({"backbones": {"tiny": {"num_layers": 1}}}, "backbones.tiny", "results/backbones/tiny"),
        ({"datasets": {"ml-100k": {"core": 9}}}, "datasets.ml-100k", "results/data/ml-100k"),
        ({"tables": {"main": {"seeds": [0, 1]}}}, "tables.main", MAIN),
        ({"tables": {"main": {"labels": {"sft": "SFT"}}}}, "tables.main", MAIN),
        ({"tables": {"main": {"evaluation": {"rows": 500}}}}, "tables.main", MAIN),
        ({"evaluation": {"rows": 500}}, "tables.main", MAIN),
    ],
)
def test_a_change_needs_overwrite(change, entry, path):
    expected = f": {entry} is not that of first.yaml, and would overwrite {path}; choose"
    assert f"second.yaml{expected}" in "\n".join(overwritten(change))
    assert overwritten(change | {"overwrite": True}) == []
    # The permission of one file is not that of the next.
    assert f"third.yaml{expected}" in "\n".join(overwritten({"overwrite": True}, change))


def test_what_a_backbone_asks_of_training_is_part_of_it():
    config = {"backbones": {"tiny": {"training": {"rows_per_pass": 32}}}}
    (line,) = overwritten(config)
    assert line.startswith(
        "second.yaml: backbones.tiny.training is not that of first.yaml, and would overwrite "
        "results/runs/ml-100k/tiny; "
    )


def test_a_public_data_set_may_be_in_a_folder():
    assert overwritten({"datasets": {"ml-100k": {"folder": "data/ml-100k"}}}) == []
    own = {"source": "table", "folder": "data/one"}
    table = {"datasets": ["own"], "backbones": ["tiny"], "methods": ["popularity"], "seeds": [0]}
    first = {"datasets": {"own": own}, "tables": {"own": table}}
    (line,) = overwritten(first, {"datasets": {"own": {"folder": "data/two"}}})
    assert line.startswith("third.yaml: datasets.own is not that of second.yaml")


@pytest.mark.parametrize(
    "addition",
    [
        {},
        {"methods": {"other": {"sft": {"epochs": 2.0}}}},
        {"methods": {"sft": {"seed": 0}}},
        {"evaluation": {"rows": 500}} | REMOVED,
        {"evaluation": {"batch_size": 8}},
        {"tables": {"mine": MINE["tables"]["mine"] | {"datasets": ["ml-100k"]}}},
        # The same names with other options, for results with other paths.
        MORE | MINE,
    ],
)
def test_what_overwrites_nothing_passes(addition):
    assert overwritten(addition) == []


def test_a_removed_entry_keeps_its_results():
    table = {"tables": {"mine": MINE["tables"]["mine"] | {"datasets": ["ml-100k"]}}}
    assert overwritten(REMOVED, table) == []
    (line,) = overwritten(REMOVED, table | MORE)
    assert line.startswith("third.yaml: methods.sft is not that of first.yaml, and would")


def test_shipped_configs_overwrite_nothing_but_the_table_main():
    for names in (["paper"], ["ablations"], ["smollm2"], ["full"], ["sequential", "industrial"]):
        configs = [yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()) for name in names]
        assert overwritten(*configs) == []
        assert [config.get("overwrite") for config in configs] == [
            True if name in ("full", "paper") else None for name in names
        ]


VALUES = st.recursive(
    st.none() | st.integers(0, 2),
    lambda inner: st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
CONFIGS = st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2)


@given(configs=st.lists(CONFIGS, max_size=3))
def test_configs_are_laid_over_one_another_as_snakemake_does(configs):
    ours, theirs = {}, {}
    for config in configs:
        lay_over(ours, copy.deepcopy(config))
        update_config(theirs, copy.deepcopy(config))
    assert ours == theirs


def test_config_files_and_texts_are_read_in_their_order(tmp_path):
    (tmp_path / "a.yaml").write_text("methods: {sft: {seed: 1}, rere: {seed: 2}}\n")
    (tmp_path / "b.yaml").write_text("")
    files = [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]
    read = read_configs([*files, '{"methods": {"sft": null}}'])
    assert read == {"methods": {"sft": None, "rere": {"seed": 2}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: [}", r"^\{a: \[\}: cannot be read as YAML; correct it"),
        ("[1]", "is no mapping; write keys and values"),
        ("a: 1\na: 2", "a comes twice"),
    ],
)
def test_a_config_that_is_no_mapping_is_named(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_configs([text if text.startswith("{") else str(path)])
