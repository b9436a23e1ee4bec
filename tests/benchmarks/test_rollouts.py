"""The table of the ways to get candidates: its numbers by hand, the stage, and the study."""

import polars as pl
import pytest
import torch
from engine.search.test_beam import brute_force
from snakemake_runs import SMALL, planned, snakemake, write_raw
from study_configs import SHIPPED, changed, error
from tiny_models import CYCLE, write_data, write_fixed_model

from rere.backbones import load_tokenizer
from rere.benchmarks.rollouts import table
from rere.benchmarks.rollouts.figure import figure
from rere.benchmarks.rollouts.subject import CERTIFIED, Found, Side, load
from rere.config.benchmarks import Candidates
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out
from rere.study import load_study
from rere.tokenization import PromptEncoder

OPTIONS = Candidates(
    dataset="many",
    backbone="fixed",
    method="sft",
    rows=5,
    group_sizes=[2, 4],
    beams=[12],
    batch_sizes=[2],
)
MANY = [f"{first} {second}" for first in CYCLE[:3] for second in CYCLE[3:]]
"""More titles than are proved."""

# -------------------------------------------------------------------------------------- numbers


def test_what_candidates_are_worth_by_hand():
    leaves = [[5, 6, 5, -1], [7, 8], [-1, -1, 9, 9]]
    assert table.quality(leaves, [6, 9, 9]) == {
        "distinct": (2 + 2 + 1) / 3,
        "invalid": 3 / 10,
        "hit_rate": 2 / 3,
    }


def test_what_is_missing_by_hand():
    # Order and what else is found play no part.
    assert table.share_missing([([3, 2, 1, 9], [1, 2, 3]), ([1, 2, 4], [1, 2, 3])]) == 1 / 2
    assert table.share_missing([]) is None


def test_only_proved_rows_count():
    side, proof = Side("beam", "catalogue", 12), Side(CERTIFIED, "catalogue", 10)
    lists = [[1, 2], [1, 3], [1, 4]]
    proofs = [Found([1, 2], True, 5), Found([1, 2], True, 8), Found([1, 2], False, 20)]
    found = {side: [Found(leaves, False, 0) for leaves in lists], proof: proofs}
    worth = table.worth(side, found, [3, 3, 3])
    assert (worth["proved_rows"], worth["missed_top10"], worth["hit_rate"]) == (2, 1 / 2, 1 / 3)
    assert table.worth(proof, found, [3, 3, 3]) == {"proved_rows": 2, "nodes": 11}
    few = Side("beam", "catalogue", 8)
    assert "missed_top10" not in table.worth(few, {few: found[side]}, [3, 3, 3])


# ------------------------------------------------------------------------------------ the stage


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model's folder and a data folder."""
    root = tmp_path_factory.mktemp("search")
    rows = [([start, start + 1], start + 2) for start in range(8)]
    return write_fixed_model(root / "model"), write_data(root / "many", MANY, test=rows)


@pytest.fixture(scope="module")
def measured(inputs):
    """The folder with what the stage writes."""
    output = inputs[0].parent / "tables" / "search.csv"
    table.search(OPTIONS, *inputs, output)
    return output.parent


def test_the_table_has_a_row_a_way_and_size(measured):
    rows = pl.read_csv(measured / "search.csv", schema=table.SCHEMA)
    assert rows.select("what", "scoring", "candidates").rows() == [
        *(("beam", scoring, k) for scoring in ("vocabulary", "catalogue") for k in (2, 4, 12)),
        *((way, "catalogue", k) for way in table.DRAWS for k in (2, 4)),
        *(("unconstrained", "vocabulary", k) for k in (2, 4)),
        *((CERTIFIED, scoring, 10) for scoring in ("vocabulary", "catalogue")),
    ]
    assert set(rows["rows"]) == {5}
    assert set(rows["batch"]) == {2}
    assert (rows["seconds"] > 0).all()
    constrained = rows.filter(~pl.col("what").is_in(["unconstrained", CERTIFIED]))
    assert set(constrained["invalid"]) == {0}
    distinct = rows.filter(pl.col("what").is_in(["beam", "stochastic_beam"]))
    assert distinct["distinct"].to_list() == distinct["candidates"].to_list()
    # A random model writes no title by chance.
    free = rows.filter(what="unconstrained")
    assert set(free["invalid"]) == {1}
    assert set(free["distinct"]) == set(free["hit_rate"]) == {0}
    is_compared = (pl.col("what") == "beam") & (pl.col("candidates") >= 10)
    assert rows.select((pl.col("missed_top10").is_not_null() == is_compared).all()).item()
    is_proof = pl.col("what") == CERTIFIED
    assert rows.select((pl.col("nodes").is_not_null() == is_proof).all()).item()
    assert set(rows.filter(is_compared | is_proof)["proved_rows"]) == {5}


def test_misses_are_those_of_brute_force(inputs):
    subject = load(OPTIONS, *inputs)
    sequences = PromptEncoder(load_tokenizer(inputs[0]), MANY).responses()
    rows = range(len(subject.prompts))
    for scoring in table.SCORINGS:
        true = subject.find(Side(CERTIFIED, scoring, 10), rows)
        for prompt, found in zip(subject.prompts, true, strict=True):
            ranked = brute_force(subject.model, sequences, prompt, scoring)[:10]
            leaves = subject.tree.leaf_of_item[[sequences.index([*s]) for s, _ in ranked]]
            assert found.proved
            assert found.leaves == leaves.tolist()


def test_a_budget_leaves_rows_unproved(inputs):
    subject = load(OPTIONS.model_copy(update={"max_nodes": 1}), *inputs)
    found = subject.find(Side(CERTIFIED, "vocabulary", 10), range(3))
    assert not any(row.proved for row in found)


def test_a_small_catalogue_is_proved_as_a_whole(tmp_path):
    rows = [([0, 1], 2)] * 3
    model, data = write_fixed_model(tmp_path / "m"), write_data(tmp_path / "d", CYCLE, test=rows)
    subject = load(OPTIONS, model, data)
    (found,) = subject.find(Side(CERTIFIED, "catalogue", 10), range(1))
    assert found.proved
    assert sorted(found.leaves) == sorted(subject.tree.leaf_of_item.tolist())
    (beams,) = subject.find(Side("beam", "catalogue", 12), range(1))
    assert sorted(beams.leaves) == sorted(found.leaves)


def test_candidates_are_those_of_the_rows_seeds(inputs):
    subject = load(OPTIONS, *inputs)
    side = Side("iid", "catalogue", 3)
    every = row_seeds(OPTIONS.seed, 0, range(8)).tolist()
    assert len(set(subject.seeds.tolist()) & set(every)) == 5
    expected = roll_out(
        subject.model, subject.tree, subject.prompts, "iid", 3, subject.seeds
    ).leaf.tolist()
    # One at a time, since batches make no difference.
    found = [subject.find(side, range(row, row + 1))[0].leaves for row in range(5)]
    assert found == expected


def test_the_same_twice_but_for_the_clock(inputs, measured, tmp_path):
    table.search(OPTIONS, *inputs, tmp_path / "search.csv")
    first, second = (
        pl.read_csv(path / "search.csv").drop("seconds") for path in (measured, tmp_path)
    )
    assert first.equals(second)


def test_the_markdown_is_regular_and_says_what_it_was_measured_with(measured):
    text = (measured / "search.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 16
    assert len(set(map(len, lines))) == 1
    assert "fixed sft, many" in text
    assert f"torch {torch.__version__}" in text


def test_the_figure_is_written_in_each_format_and_the_same_twice(measured, tmp_path):
    for name in ("first", "second"):
        outputs = [tmp_path / name / f"search.{suffix}" for suffix in ("pdf", "png")]
        figure(measured / "search.csv", outputs)
    for name, magic in {"search.pdf": b"%PDF", "search.png": b"\x89PNG"}.items():
        content = (tmp_path / "first" / name).read_bytes()
        assert content.startswith(magic)
        assert content == (tmp_path / "second" / name).read_bytes()


# ------------------------------------------------------------------------------------ the study

SEARCH = SHIPPED["search"]["search"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"search__search__dataset": "ml100k"},
            "search.search.dataset: there is no ml100k; did you mean ml-100k?",
        ),
        (
            {"search__search__backbone": "tini"},
            "search.search.backbone: there is no tini; did you mean tiny?",
        ),
        (
            {"search__search__method": "stf"},
            "search.search.method: there is no stf; did you mean sft?",
        ),
        (
            {"search__search__method": "sasrec"},
            "search.search.method: sasrec is a baseline, which trains no model to measure",
        ),
        (
            {"search__search__group_size": [2]},
            "search.search.group_size: unknown key; did you mean group_sizes?",
        ),
        (
            {"search__search__beams": [8]},
            "search.search.beams: input should be greater than or equal to 10, not 8",
        ),
        (
            {"tables__search": SHIPPED["tables"]["main"]},
            "tables.search: search has a table of that name; choose another name",
        ),
        (
            {"search": {"speed": SEARCH}},
            "search.speed: speed has a table of that name; choose another name",
        ),
    ],
)
def test_one_line_names_the_key_and_the_remedy(changes, message):
    assert error(changed(**changes)) == message


def test_the_model_that_is_measured():
    search = load_study(SHIPPED).search["search"]
    assert search.folder(search.dataset) == "results/runs/ml-100k/tiny/sft/seed0/model"


def test_the_graph_measures_when_asked(tmp_path):
    write_raw(tmp_path / "raw")
    targets = ["results/tables/search.csv", "results/figures/search.pdf"]
    assert planned(tmp_path, SMALL, *targets) == {
        "preprocess": 1,
        "backbone": 1,
        "sft": 1,
        "search": 1,
        "search_figure": 1,
    }
    assert not {"search", "search_figure"} & planned(tmp_path, SMALL).keys()


@pytest.mark.slow
def test_the_graph_makes_table_and_figure(tmp_path):
    write_raw(tmp_path / "raw")
    done = snakemake(tmp_path, SMALL, "results/tables/search.csv", "results/figures/search.pdf")
    assert done.returncode == 0, done.stdout
    rows = pl.read_csv(tmp_path / "results" / "tables" / "search.csv")
    # 2 and 4 candidates in six ways, 12 beams in two, two proofs.
    assert len(rows) == 2 * 6 + 2 + 2
    assert (tmp_path / "results" / "figures" / "search.png").exists()
