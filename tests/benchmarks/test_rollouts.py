"""The benchmark of rollout strategies: its numbers by hand, the table and the figure."""

import polars as pl
import pytest
import torch
from benchmark_options import ROLLOUTS
from search_oracles import brute_force

from rere.benchmarks.figures import draw_rollouts, rollouts_figure
from rere.benchmarks.models import SCORINGS
from rere.benchmarks.rollouts import (
    CERTIFIED,
    SAMPLERS,
    SCHEMA,
    Found,
    Setting,
    benchmark_rollouts,
    find_candidates,
    score_candidates,
    score_setting,
    share_incomplete,
)
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out

# --------------------------------------------------------------------------------------- numbers


def test_the_quality_of_candidates_by_hand():
    leaves = [[5, 6, 5, -1], [7, 8], [-1, -1, 9, 9]]
    assert score_candidates(leaves, [6, 9, 9]) == {
        "distinct": (2 + 2 + 1) / 3,
        "invalid": 3 / 10,
        "hit_rate": 2 / 3,
    }


def test_the_share_of_incomplete_lists_by_hand():
    # Neither the order nor other leaves matter.
    assert share_incomplete([([3, 2, 1, 9], [1, 2, 3]), ([1, 2, 4], [1, 2, 3])]) == 1 / 2
    assert share_incomplete([]) is None


def test_only_proved_rows_are_compared():
    beam, proof = Setting("beam", "catalogue", 12), Setting(CERTIFIED, "catalogue", 10)
    lists = [[1, 2], [1, 3], [1, 4]]
    proofs = [Found([1, 2], True, 5), Found([1, 2], True, 8), Found([1, 2], False, 20)]
    found = {beam: list(map(Found, lists)), proof: proofs}
    values = score_setting(beam, found, [3, 3, 3])
    assert (values["proved_rows"], values["missed_top10"], values["hit_rate"]) == (2, 1 / 2, 1 / 3)
    assert score_setting(proof, found, [3, 3, 3]) == {"proved_rows": 2, "nodes": 11}
    few = Setting("beam", "catalogue", 8)
    assert "missed_top10" not in score_setting(few, {few: found[beam]}, [3, 3, 3])


# ------------------------------------------------------------------------------------ candidates


@pytest.mark.parametrize("scoring", SCORINGS)
def test_the_certified_top_10_is_that_of_brute_force(rollouts_model, rollouts_rows, scoring):
    model, setting = rollouts_model, Setting(CERTIFIED, scoring, 10)
    found = find_candidates(model, ROLLOUTS, setting, rollouts_rows)
    for row, certified in zip(rollouts_rows, found, strict=True):
        ranked = brute_force(model.float32, model.sequences, row.prompt, scoring)[:10]
        assert certified.is_proved
        assert certified.leaves == [model.leaf_of_sequence[path] for path, _ in ranked]


def test_a_proof_may_exceed_its_nodes(rollouts_model, rollouts_rows):
    options = ROLLOUTS.model_copy(update={"max_nodes": 1})
    setting = Setting(CERTIFIED, "vocabulary", 10)
    found = find_candidates(rollouts_model, options, setting, rollouts_rows[:3])
    assert not any(row.is_proved for row in found)


def test_a_small_catalogue_is_certified_as_a_whole(benchmark_model):
    model = benchmark_model
    prompts = model.sample_prompts(1, 0)
    (found,) = find_candidates(model, ROLLOUTS, Setting(CERTIFIED, "catalogue", 10), prompts)
    assert found.is_proved
    assert sorted(found.leaves) == sorted(model.tree.leaf_of_item.tolist())
    (beams,) = find_candidates(model, ROLLOUTS, Setting("beam", "catalogue", 12), prompts)
    assert sorted(beams.leaves) == sorted(found.leaves)


def test_samples_depend_on_the_row_and_not_on_its_batch(rollouts_model, rollouts_rows):
    model, rows = rollouts_model, rollouts_rows
    seeds = row_seeds(ROLLOUTS.seed, 0, [row.row_id for row in rows])
    prompts = [row.prompt for row in rows]
    expected = roll_out(model.float32, model.tree, prompts, "iid", 3, seeds).leaf.tolist()
    setting = Setting("iid", "catalogue", 3)
    found = [find_candidates(model, ROLLOUTS, setting, [row])[0].leaves for row in rows]
    assert found == expected


# ----------------------------------------------------------------------------- table and figure


def test_the_table_has_one_row_per_setting(rollouts_results):
    rows = pl.read_csv(rollouts_results / "rollouts.csv", schema=SCHEMA)
    assert rows.select("strategy", "scoring", "candidates").rows() == [
        *(("beam", scoring, k) for scoring in SCORINGS for k in (2, 4, 12)),
        *((strategy, "catalogue", k) for strategy in SAMPLERS for k in (2, 4)),
        *(("unconstrained", "vocabulary", k) for k in (2, 4)),
        *((CERTIFIED, scoring, 10) for scoring in SCORINGS),
    ]
    assert set(rows["rows"]) == {5}
    assert set(rows["batch"]) == {2}
    assert (rows["seconds"] > 0).all()
    constrained = rows.filter(~pl.col("strategy").is_in(["unconstrained", CERTIFIED]))
    assert set(constrained["invalid"]) == {0}
    distinct = rows.filter(pl.col("strategy").is_in(["beam", "stochastic_beam"]))
    assert distinct["distinct"].to_list() == distinct["candidates"].to_list()
    # A random model generates no title by chance.
    free = rows.filter(strategy="unconstrained")
    assert set(free["invalid"]) == {1}
    assert set(free["distinct"]) == set(free["hit_rate"]) == {0}
    is_compared = (pl.col("strategy") == "beam") & (pl.col("candidates") >= 10)
    assert rows.select((pl.col("missed_top10").is_not_null() == is_compared).all()).item()
    is_proof = pl.col("strategy") == CERTIFIED
    assert rows.select((pl.col("nodes").is_not_null() == is_proof).all()).item()
    assert set(rows.filter(is_compared | is_proof)["proved_rows"]) == {5}


def test_only_the_seconds_differ_when_measured_again(rollouts_inputs, rollouts_results, tmp_path):
    benchmark_rollouts(ROLLOUTS, "fixed sft", *rollouts_inputs, tmp_path / "rollouts.csv")
    first, second = (
        pl.read_csv(path / "rollouts.csv").drop("seconds") for path in (rollouts_results, tmp_path)
    )
    assert first.equals(second)


def test_the_markdown_has_aligned_columns_and_the_versions(rollouts_results):
    text = (rollouts_results / "rollouts.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 16
    assert len(set(map(len, lines))) == 1
    assert "fixed sft, many" in text
    assert f"torch {torch.__version__}" in text


def test_the_figure_compares_group_sizes_and_misses_of_all_numbers_of_beams(rollouts_results):
    figure = rollouts_figure(pl.read_csv(rollouts_results / "rollouts.csv", schema=SCHEMA))
    distinct, _, missed = figure.axes
    ticks = [[text.get_text() for text in panel.get_xticklabels()] for panel in (distinct, missed)]
    assert ticks == [["2", "4"], ["12"]]
    names = [f"beam, {scoring}" for scoring in SCORINGS]
    names += ["iid", "oversample", "stochastic beam", "unconstrained"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_the_figure_is_the_same_when_drawn_again(rollouts_results, tmp_path):
    for name in ("first", "second"):
        outputs = [tmp_path / name / f"rollouts.{suffix}" for suffix in ("pdf", "png")]
        draw_rollouts(rollouts_results / "rollouts.csv", outputs)
    for name, magic in {"rollouts.pdf": b"%PDF", "rollouts.png": b"\x89PNG"}.items():
        content = (tmp_path / "first" / name).read_bytes()
        assert content.startswith(magic)
        assert content == (tmp_path / "second" / name).read_bytes()
