"""The paper's study: that each of its entries is checked, and that its settings are documented."""

import copy
import re
from datetime import date
from typing import Any

import pytest
import yaml
from study_configs import CONFIG, SHIPPED, config_error, trained

from rere.config.run import NO_BACKBONE
from rere.config.study import METHOD_STAGES
from rere.study import load_study

OWN = yaml.safe_load((CONFIG / "paper.yaml").read_text())
PAGE = (CONFIG.parent / "docs" / "paper.md").read_text()
TABLES = {
    *("main", "backbones", "sampling", "reward", "algorithm", "generation", "initialisation"),
    *("axes", "protocols", "cost", "tuning"),
}


def test_the_tables_are_those_of_the_page(paper):
    assert set(paper.tables) == TABLES
    for name, table in paper.tables.items():
        assert f"`{name}`" in PAGE
        assert table.seeds == ([0] if name == "tuning" else [0, 1, 2])
    used = {backbone for table in paper.tables.values() for backbone in table.backbones}
    assert used == OWN["backbones"].keys() - {"smollm2-135m"}


def misspelt(paper_config: dict[str, Any], section: str, name: str) -> tuple[dict[str, Any], str]:
    """The config with a misspelt option in an entry, and the option's place."""
    changed = copy.deepcopy(paper_config)
    entry, where = changed[section][name], f"{section}.{name}"
    for key in (*METHOD_STAGES, "training", "evaluation"):
        if isinstance(entry.get(key), dict):
            entry, where = entry[key], f"{where}.{key}"
    entry["misspelt"] = 1
    return changed, f"{where}.misspelt"


@pytest.mark.parametrize("section", ["datasets", "backbones", "methods", "tables"])
def test_the_options_of_each_entry_are_checked(paper_config, section):
    names = [name for name, entry in OWN[section].items() if entry is not None]
    assert len(names) > 4
    for name in names:
        wrong, where = misspelt(paper_config, section, name)
        assert f"{where}: unknown key" in config_error(wrong), where


def test_each_training_run_has_a_command(paper):
    assert len(trained(paper)) == 28 + 3 * 3  # on the main backbone, and on three others


def test_a_large_backbone_has_what_it_needs(paper):
    options = paper.options_of("rere_faithful", "qwen2.5-7b")
    assert (options.sharded, options.gradient_checkpointing, options.rows_per_pass) == (
        True,
        True,
        4,
    )
    plain = paper.options_of("rere_faithful", "qwen2-0.5b")
    assert (plain.sharded, plain.rows_per_pass, plain.sync_interval) == (False, 8, 64)
    assert paper.options_of("sasrec", NO_BACKBONE) == paper.methods["sasrec"].options


SETTING = re.compile(r"^\| `(\w+)` \| `(\w+)` \| `(.*?)` \| `(.*?)` \|", re.M)
OURS = {"sft": ("sft", "sft"), "d3": ("d3_faithful", "d3")}
OURS |= {name: (f"{name}_faithful", name) for name in ("gru4rec", "caser", "sasrec")}
OURS |= {name: (f"{name}_faithful", f"{name}_corrected") for name in ("rere", "s_dpo", "sprec")}


def test_the_settings_are_those_of_the_page(paper):
    rows = SETTING.findall(PAGE)
    assert {name for name, *_ in rows} == {*OURS, "evaluation"}
    for name, option, *written in rows:
        if name == "evaluation":
            found = [paper.evaluation_of("main"), paper.evaluation_of("protocols")]
        else:
            found = [paper.methods[method].options for method in OURS[name]]
        values = [getattr(each, option) for each in found]
        assert values == [*map(yaml.safe_load, written)], f"{name}.{option}"


@pytest.mark.parametrize("name", ["rere", "s_dpo", "sprec"])
def test_no_difference_from_the_published_settings_is_left_out(paper, name):
    faithful, ours = (paper.methods[each].options.model_dump() for each in OURS[name])
    differing = {option for option in faithful if faithful[option] != ours[option]}
    assert differing <= {option for of, option, *_ in SETTING.findall(PAGE) if of == name}


def test_the_data_sets_follow_the_papers_rules(paper):
    amazon = {"core": 5, "max_history": 10, "max_title_words": 20, "min_items": 3000}
    amazon |= {"split": "chronological", "repeats": "keep", "end": date(2018, 11, 1)}
    starts = {"toys": date(2016, 10, 1), "industrial": date(1996, 10, 1)}
    for name, start in starts.items():
        options = paper.datasets[name].model_dump()
        assert options | amazon | {"start": start} == options
    yelp = paper.datasets["yelp"].model_dump()
    assert (yelp["start"], yelp["end"]) == (date(2021, 1, 1), date(2022, 1, 1))
    assert yelp | {"core": 5, "max_title_words": 20, "title": "address"} == yelp
    commented = (CONFIG / "paper.yaml").read_text().partition("  # private:")[2]
    example = commented.partition("\n\n")[0].replace("  #", "")
    private = {"private": yaml.safe_load(example)}
    assert load_study({**SHIPPED, "datasets": {**SHIPPED["datasets"], **private}})


def test_each_claim_of_the_abstract_is_compared(paper):
    assert SHIPPED["claims"].keys() <= paper.claims.keys()
    for name, claim in paper.claims.items():
        assert claim.comparisons, name
        for compared in claim.comparisons:
            methods = paper.tables[compared.table].methods
            assert {compared.method, *compared.than} <= set(methods), name


def test_the_schema_accepts_it(paper_config, config_schema):
    config_schema.validate(paper_config)
