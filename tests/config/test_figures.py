"""Figures of a table in a study's config: which there are, and what each needs."""

import pytest
from study_configs import SHIPPED, changed, config_error

from rere.config.options import flags
from rere.config.study import DesignSpace, FigureKind, Shown
from rere.stages import STAGES
from rere.study import load_study

RL = {"init": "sft", "rl": {}}


def test_a_table_has_bars_and_curves_unless_it_names_others():
    assert load_study(SHIPPED).figures("main") == ["main", "main.curves"]
    without_rl = load_study(changed(tables__main__methods=["popularity", "sft"]))
    assert without_rl.figures("main") == ["main"]
    named = changed(tables__main__figures=["cost", "methods", "popularity"])
    assert load_study(named).figures("main") == ["main.cost", "main", "main.popularity"]
    assert load_study(changed(tables__main__figures=[])).figures("main") == []


def test_every_other_kind_has_a_stage():
    kinds = {*FigureKind.__args__} - {"methods", "curves"}
    assert {f"figure {kind}" for kind in kinds} == {s for s in STAGES if s.startswith("figure ")}
    assert all(issubclass(STAGES[f"figure {kind}"], Shown) for kind in kinds)


def test_a_grid_in_an_axis_stands_for_its_members():
    config = changed(
        methods__sweep=RL | {"grid": {"beta": [0.0, 0.1]}},
        tables__main__methods=["rere", "sweep"],
        tables__main__reference="rere",
        tables__main__axes={"KL": ["rere", "sweep"]},
        tables__main__figures=["axes"],
    )
    axes = load_study(config).tables["main"].axes
    assert axes == {"KL": ["rere", "sweep-beta=0.0", "sweep-beta=0.1"]}
    words = flags(DesignSpace(axes=axes))
    assert words[-1] == 'KL:["rere", "sweep-beta=0.0", "sweep-beta=0.1"]'


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"figures": ["bars"]}, "figures: input should be 'methods', 'curves', 'backbones', "),
        ({"figures": ["cost", "cost"]}, "figures: cost comes twice"),
        (
            {"figures": ["axes"]},
            "figures: axes needs the axes of the table; name them under `axes`",
        ),
        ({"axes": {"KL": ["rer"]}}, "axes: there is no rer; did you mean rere?"),
        ({"axes": {"KL": []}}, "axes.KL: empty; give at least one"),
        ({"axes": {"a:b": ["rere"]}}, "axes: 'a:b' is no title; write printable characters with"),
        (
            {"figures": ["hits"], "methods": ["sft", "s_dpo"]},
            "figures: hits needs an RL method with `init`; leave it out",
        ),
        (
            {"figures": ["hits"], "methods": ["rere"], "reference": None},
            "figures: hits needs sft, which rere starts from; add it to `methods`",
        ),
        (
            {"figures": ["cost"], "methods": ["sft", "d3"]},
            "figures: cost needs sasrec, which d3 starts from; add it to `methods`",
        ),
        (
            {"figures": ["backbones"], "methods": ["sasrec"], "reference": None},
            "figures: backbones needs a method with a language model; leave it out",
        ),
    ],
)
def test_a_figure_without_what_it_shows_is_refused(table, message):
    main = SHIPPED["tables"]["main"] | table
    assert config_error(changed(tables__main=main)).startswith(f"tables.main.{message}")


def test_the_name_of_a_table_may_not_end_like_a_figure():
    config = changed(**{"tables__main.hits": SHIPPED["tables"]["main"]})
    line = "tables.main.hits: its files would be those of tables.main; choose another name"
    assert config_error(config) == line
