"""Config files laid over one another."""

from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from rere.overlays import find_overwritten

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


def test_shipped_configs_overwrite_nothing_but_the_table_of_three_seeds():
    for names in (["paper"], ["ablations"], ["smollm2"], ["full"], ["sequential", "industrial"]):
        configs = [yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()) for name in names]
        assert overwritten(*configs) == []
        assert [config.get("overwrite") for config in configs] == [
            True if name == "full" else None for name in names
        ]
