"""Benchmarks of search: its comparisons, the table, the curves and the figure."""

from dataclasses import replace

import polars as pl
import pytest
import torch
from benchmark_options import SPEED, SPEED_ROWS

from rere.benchmarks.figures import draw_speed, speed_figure
from rere.benchmarks.models import GENERATE, Searcher, load_benchmark_model
from rere.benchmarks.speed import search, table
from rere.benchmarks.speed.curves import (
    PANELS,
    benchmark_speed_curves,
    make_titles,
    repeat_to_length,
    with_synthetic_titles,
)
from rere.benchmarks.timing import PRELOADED, run_in_process
from rere.prefix_tree import PrefixTree

# -------------------------------------------------------------------------------------- searches


def test_ours_and_generate_find_the_same_synthetic_titles(random_inputs):
    model = with_synthetic_titles(load_benchmark_model("random", *random_inputs), 60, seed=0)
    prompts = [row.prompt for row in model.sample_prompts(SPEED_ROWS, seed=0)]
    ours, theirs = (
        model.to_leaves(model.search(searcher, 5, prompts))
        for searcher in (Searcher("vocabulary"), GENERATE)
    )
    assert ours == theirs
    assert [len(row) for row in ours] == [5] * 5


def test_other_lists_are_not_equal(benchmark_model):
    prompts = [row.prompt for row in benchmark_model.sample_prompts(SPEED_ROWS, seed=0)]
    theirs = benchmark_model.to_leaves(benchmark_model.search(GENERATE, 4, prompts))
    for ours, equal in ((theirs, True), ([theirs[0][::-1], *theirs[1:]], False)):
        pair = [search.SearchResult(2, None, lists, None, None) for lists in (ours, theirs)]
        assert search.equals_generate(benchmark_model, 4, prompts, *pair) is equal
    ours = benchmark_model.search(Searcher("catalogue"), 4, prompts)
    for lists, equal in ((ours, True), ([row[::-1] for row in ours], False)):
        assert search.equals_plain_search(benchmark_model, 4, prompts, lists) is equal


@pytest.mark.parametrize("name", ["vocabulary", "generate"])
def test_bfloat16_is_arithmetic_over_float32_weights(random_inputs, name):
    model = load_benchmark_model("random", *random_inputs, ["float32", "bfloat16"])
    halved = {w.dtype for w in model.models["bfloat16"].model.layers.parameters()}
    assert halved == {torch.float32, torch.bfloat16}  # norms and linear layers
    assert model.models["bfloat16"].lm_head.weight.dtype == torch.float32
    seen = []

    def record(layer, inputs, output):
        seen.append(output.dtype)

    prompts = [row.prompt for row in model.sample_prompts(SPEED_ROWS, seed=0)]
    handle = model.models["bfloat16"].model.layers[0].mlp.down_proj.register_forward_hook(record)
    found = model.search(Searcher(name, "bfloat16"), 4, prompts)
    handle.remove()
    assert set(seen) == {torch.bfloat16}
    same = replace(model, models={"bfloat16": model.float32})
    assert found == same.search(Searcher(name, "bfloat16"), 4, prompts)


def test_peak_memory_of_a_search_in_a_fresh_process(inputs):
    arguments = (*inputs, GENERATE, 4, [[5, 6, 7, 8]] * 2)
    peak = run_in_process(PRELOADED, search.peak_of_search, *arguments)
    assert peak is None or 0 <= peak < 50


def test_the_shortest_prompts_come_first(benchmark_model):
    rows = benchmark_model.sample_prompts(None, seed=0)
    lengths = [len(row.prompt) for row in rows]
    assert lengths == sorted(lengths)
    assert [row.target for row in sorted(rows)] == [2, 3, 4, 5, 6, 7]


# ----------------------------------------------------------------------------------------- table


def test_the_table_has_one_row_per_comparison(speed_results):
    rows = pl.read_csv(speed_results / "speed.csv")
    assert rows.columns == list(table.SCHEMA)
    half_tail = f"batch 2, {torch.get_num_threads()} threads, bfloat16"
    tail = f"batch 2 (theirs 2), {torch.get_num_threads()} threads, float32"
    settings = [
        f"{model}, cycle, {beams} beams, {scoring}"
        for model in ("random", "fixed sft")
        for beams in (2, 4)
        for scoring in ("vocabulary", "catalogue")
    ]
    size = rows["setting"][16].partition(", from")[0]
    assert size.startswith("2000 reviews, 600 metadata rows, ")
    threads = f"{pl.thread_pool_size()} threads"
    assert rows.select("what", "against", "setting").rows() == [
        *(("beam search", "transformers generate", f"{s}, {tail}") for s in settings),
        *(("beam search in bfloat16", "float32", f"{s}, {half_tail}") for s in settings),
        ("preprocessing", "plain Python", f"{size}, from gzip, {threads}"),
        ("preprocessing", "plain Python", f"{size}, from parsed rows, {threads}"),
        ("prefix tree", None, "50 synthetic titles"),
    ]
    searches, half, data, tree = rows[:8], rows[8:16], rows[16:18], rows[18]
    assert searches["equal"].all() and data["equal"].all()
    assert half["equal"].is_null().all()
    assert half["differing_lists"].is_between(0, 1).all()
    for part in (searches, half, data):
        ratio = part["theirs_seconds"] / part["ours_seconds"]
        assert part["ratio"].to_list() == pytest.approx(ratio.to_list(), rel=0.01)
    for part in (searches, half):
        for side in ("ours", "theirs"):
            assert part[f"ndcg@10_{side}"].is_between(0, 1).all()
    exact = searches.filter(pl.col("setting").str.contains("vocabulary"))
    assert exact["ndcg@10_ours"].equals(exact["ndcg@10_theirs"])
    is_catalogue = searches["setting"].str.contains("catalogue")
    assert searches["differing_lists"].is_not_null().equals(is_catalogue)
    assert tree["ours_seconds"][0] > 0
    assert tree["theirs_seconds"].is_null().all()


def test_the_markdown_has_aligned_columns_and_the_versions(speed_results):
    text = (speed_results / "speed.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 19
    assert len({line.count("|") for line in lines}) == 1
    assert len(set(map(len, lines))) == 1
    assert f"torch {torch.__version__}" in text


# ---------------------------------------------------------------------------------------- curves


def test_the_curves_have_every_point_of_every_panel(speed_results):
    curves = pl.read_csv(speed_results / "speed.curves.csv")
    sizes = zip(PANELS, ([20, 50], [1, 3], [8, 16]), strict=True)
    searchers = ("catalogue", "vocabulary", "generate")
    points = [(x, panel, name) for panel, xs in sizes for x in xs for name in searchers]
    points += [
        (x, "reviews", side) for x in (1000, 2000) for side in ("preprocessing", "plain Python")
    ]
    assert curves.select("x", "panel", "what").rows() == points
    assert (curves["seconds"] > 0).all()
    assert curves["peak_mb"].is_null().to_list() == [panel != "reviews" for _, panel, _ in points]


def test_a_curve_ends_when_a_batch_takes_too_long(inputs, tmp_path):
    options = SPEED.model_copy(update={"curve_seconds": 1e-9, "reviews": []})
    benchmark_speed_curves(options, *inputs, tmp_path / "speed.curves.csv")
    curves = pl.read_csv(tmp_path / "speed.curves.csv")
    assert curves["x"].to_list() == [20] * 3 + [1] * 3 + [8] * 3


def test_synthetic_titles_share_prefixes_as_titles_do():
    titles = make_titles(20_000, 4096, seed=0)
    assert titles == make_titles(20_000, 4096, seed=0)
    assert titles != make_titles(20_000, 4096, seed=1)
    assert {(title[0], title[-2], title[-1]) for title in titles} == {(1, 2, 0)}
    assert {len(title) for title in titles} == set(range(6, 16))
    assert all(2 < token < 4096 for title in titles for token in title[1:-2])
    counts = torch.tensor([title[1] for title in titles]).bincount().sort(descending=True).values
    # Zipf's law over 4093 tokens: the first has 1 in 8.9, the second half of that.
    assert counts[:3].tolist() == pytest.approx([2248, 1124, 749], rel=0.1)
    tree = PrefixTree.build(titles)
    assert len(set(tree.leaf_of_item.tolist())) > 19_000


def test_prompts_are_repeated_to_a_length():
    assert repeat_to_length([1, 2, 3], 4, [[[9], [9]], [[9]]]) == [
        [[1, 2, 3, 1], [2, 3, 1, 2]],
        [[3, 1, 2, 3]],
    ]


# ---------------------------------------------------------------------------------------- figure


def test_the_figure_is_the_same_when_drawn_again(speed_results, tmp_path):
    curves = pl.read_csv(speed_results / "speed.curves.csv")
    # One curve that ends early; memory that is not measured without fresh processes.
    curves = curves.filter((pl.col("what") != "generate") | (pl.col("x") == 20))
    curves = curves.with_columns(peak_mb=pl.col("peak_mb").abs() + 1)
    curves.write_csv(tmp_path / "speed.curves.csv")
    searches = curves.filter(pl.col("panel") != "reviews")
    figures = [speed_figure(points).get_axes() for points in (curves, searches)]
    assert [len(panels) for panels in figures] == [5, 3]
    assert [label.get_text() for label in figures[0][-1].get_xticklabels()] == ["1k", "2k"]
    for name in ("first", "second"):
        outputs = [tmp_path / name / f"speed.{suffix}" for suffix in ("pdf", "png")]
        draw_speed(tmp_path / "speed.curves.csv", outputs)
    for name, magic in {"speed.pdf": b"%PDF", "speed.png": b"\x89PNG"}.items():
        content = (tmp_path / "first" / name).read_bytes()
        assert content.startswith(magic)
        assert content == (tmp_path / "second" / name).read_bytes()
