"""The price of a study by hand."""

import pytest

from rere.errors import InputError
from rere.planning.hardware import GPUS
from rere.planning.price import affordable, as_text, cost, disk


def job(tables, seconds, checkpoint=0, backbone="small", **more):
    each = {"seconds": seconds, "peak": 2e9}
    return {
        **{"tables": tables, "dataset": "toys", "backbone": backbone, "method": "sft"},
        **{"stage": "sft" if checkpoint else "recommend", "evaluation": ""},
        **{"tokens": 3e6, "operations": 2e15, "operations_without_sharing": 5e15},
        **{"weights": 100, "checkpoint": checkpoint, "cpu": each},
        "gpus": dict.fromkeys(GPUS, each) | more,
    }


ROWS = [
    job({"main": [0, 1], "seeds": [0, 1, 2]}, 3600, checkpoint=300),
    job({"main": [0]}, 1800),
    job({"large": [0]}, 7200, backbone="large", A100={"seconds": None, "peak": 9e11}),
]
TABLES = ["main", "large", "seeds"]


def test_a_table_costs_the_seeds_of_all_its_jobs():
    assert [cost(ROWS, "H200", {table}) for table in TABLES] == [2.5, 2, 3]
    assert cost(ROWS, "H200", {"main", "seeds"}) == 3.5  # jobs that both need count once
    assert cost(ROWS, "H200", set(TABLES)) == 5.5
    assert cost(ROWS, "A100", {"large"}) is None


def test_disk_holds_backbones_models_and_the_checkpoints_of_one_run():
    assert disk(ROWS) == 2 * 100 + 3 * 100 + 4 * 300


@pytest.mark.parametrize(
    ("budget", "on", "tables"),
    [
        (100, "H200", TABLES),
        (5, "H200", ["main", "large"]),
        (4, "H200", ["main", "seeds"]),
        (100, "A100", ["main", "seeds"]),
        (2, "cpu", ["large"]),
    ],
)
def test_a_budget_pays_for_tables_in_order(budget, on, tables):
    assert affordable(ROWS, [*TABLES, "baselines"], on, budget) == tables


def test_a_budget_that_pays_for_nothing_is_refused():
    with pytest.raises(InputError) as caught:
        affordable(ROWS, TABLES, "A100", 2)
    assert str(caught.value) == (
        "--budget 2: pays for no table; the cheapest, main, takes 2.5 hours (A100)"
    )
    with pytest.raises(InputError, match="--on A100: no table fits into its memory"):
        affordable(ROWS[2:], ["large"], "A100", 100)
    with pytest.raises(InputError, match="--on cpu: no table has a language model"):
        affordable([], ["baselines"], "cpu", 100)


def test_a_study_of_baselines_has_a_text():
    lines = as_text([], ["baselines"]).splitlines()
    assert ["baselines", "0", *["0.00"] * 4] in [line.split() for line in lines]


def test_the_text_has_jobs_tables_and_their_sum():
    lines = as_text(ROWS, TABLES).splitlines()
    cells = [line.split() for line in lines]
    assert cells[2] == [
        *["toys", "small", "sft", "sft", "3", "9.0", "6", "2.5", "2.0"],
        *["3.00", "3.00", "3.00", "3.00"],
    ]
    assert ["large", "1", "2.00", "-", "2.00", "2.00"] in cells
    assert ["all", "3", "5.50", "-", "5.50", "5.50"] in cells
