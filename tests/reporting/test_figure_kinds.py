"""Figures of a table by model size, design space, hits, cost and popularity: what they draw."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib import rc_context
from reported_runs import write_log
from safetensors.numpy import save_file

from rere.config.study import DesignSpace, Shown
from rere.errors import InputError
from rere.evaluation.significance import bootstrap_interval
from rere.reporting.axes import axes_figure, draw_axes
from rere.reporting.backbones import backbones_figure, draw_backbones, read_sizes, show_count, sized
from rere.reporting.costs import (
    cost_figure,
    draw_cost,
    draw_hits,
    gains,
    hits_figure,
    pareto,
    total_costs,
)
from rere.reporting.figures import STYLE, read_table
from rere.reporting.popularity import by_popularity, item_thirds, popularity_figure
from rere.reporting.runs import read_runs
from rere.reporting.tables import group_by_method

STARTS = {"rere": ["sft"], "d3": ["sft", "sasrec"], "longer": ["rere"]}
COSTS = {"sasrec": 5.0, "sft": 100.0, "rere": 20.0, "d3": 1.0, "longer": 7.0}


def write_runs(folder: Path, **changes: float) -> Path:
    """A table's .runs.csv: two seeds of each method, but one of SASRec; NDCG falls with cost."""
    rows = [
        {
            "dataset": "toys",
            "backbone": "none" if method == "sasrec" else "tiny",
            "method": method,
            "seed": seed,
            "seconds": cost + seed,
            "NDCG@10": changes.get(method, 1 / cost) + seed / 1000,
        }
        for method, cost in COSTS.items()
        for seed in ([0] if method == "sasrec" else [0, 1])
    ]
    path = folder / "main.runs.csv"
    pl.DataFrame(rows).write_csv(path)
    return path


def write_table(folder: Path, rows: list[tuple[str, str, str, float]]) -> Path:
    """A table's .csv; intervals are 0.01 below and 0.02 above."""
    table = pl.DataFrame(
        [(*row, row[-1] - 0.01, row[-1] + 0.02) for row in rows],
        schema=["dataset", "backbone", "method", "NDCG@10", "NDCG@10_low", "NDCG@10_high"],
        orient="row",
    )
    path = folder / "main.csv"
    table.write_csv(path)
    return path


def refused(function, *arguments, match):
    with pytest.raises(InputError, match=match) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


def drawn_formats(folder: Path) -> list[Path]:
    return [folder / "figures" / f"main.kind.{suffix}" for suffix in ("pdf", "png")]


def check_written(outputs: list[Path]) -> None:
    for path, magic in zip(outputs, (b"%PDF", b"\x89PNG"), strict=True):
        assert path.read_bytes().startswith(magic)


# ----------------------------------------------------------------------------------------- cost


def test_a_run_costs_what_it_starts_from_too(tmp_path):
    path = write_runs(tmp_path)
    frame = pl.read_csv(path)
    costs = dict(
        zip(frame.select("method", "seed").rows(), total_costs(frame, STARTS, path), strict=True)
    )
    assert costs == {
        ("sasrec", 0): 5,
        ("sft", 0): 100,
        ("sft", 1): 101,
        ("rere", 0): 120,
        ("rere", 1): 122,
        # The only run of SASRec serves both seeds.
        ("d3", 0): 106,
        ("d3", 1): 108,
        ("longer", 0): 127,
        ("longer", 1): 130,
    }
    # SFT counts once, though two of the models come from it.
    both = total_costs(frame, STARTS | {"longer": ["rere", "sft"]}, path)
    assert both == list(costs.values())


def test_the_line_has_the_methods_that_no_cheaper_one_equals():
    means = pl.DataFrame(
        {"method": list("abcdef"), "cost": [1, 2, 3, 3, 4, 5], "x": [0.2, 0.1, 0.3, 0.4, 0.4, 0.5]}
    )
    assert pareto(means, "x")["method"].to_list() == ["a", "d", "f"]


def test_cost_has_a_point_per_method_and_its_range_over_seeds(tmp_path):
    path = write_runs(tmp_path)
    outputs = drawn_formats(tmp_path)
    cost_figure(path, STARTS, outputs)
    check_written(outputs)
    frame = pl.read_csv(path)
    points = frame.with_columns(cost=pl.Series(total_costs(frame, STARTS, path)))
    figure = draw_cost(points)
    (axes,) = figure.axes
    drawn = {
        tuple(round(each, 6) for each in line.get_xydata()[0])
        for line in axes.lines
        if len(line.get_xdata()) == 1
    }
    expected = {
        (5.0, 0.2),
        (100.5, 0.0105),
        (121.0, 0.0505),
        (107.0, 1.0005),
        (128.5, round(1 / 7 + 0.0005, 6)),
    }
    assert expected <= drawn
    figure.draw_without_rendering()
    shown = {text.get_text() for text in axes.get_xticklabels(which="both")}
    assert {"10", "20", "50", "100"} <= shown
    # The line: SASRec at 5 s with .2, D3 at 107 s with 1.0005, on to the most expensive, 128.5 s.
    line = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert line.get_xydata().tolist() == [[5, 0.2], [107, 1.0005], [128.5, 1.0005]]


def test_a_table_without_the_initial_model_has_no_cost(tmp_path):
    path = write_runs(tmp_path)
    pl.read_csv(path).filter(pl.col("method") != "sft").write_csv(path)
    output = [tmp_path / "c.png"]
    match = "rere starts from sft, of which it has no run of seed 0; add sft to the table"
    refused(cost_figure, path, STARTS, output, match=match)
    path.write_text("dataset,backbone,method,seed,NDCG@10\n")
    refused(cost_figure, path, STARTS, output, match="not a table .*; make it again")
    assert not output[0].exists()


# ----------------------------------------------------------------------------------------- hits


def rl_logs(folder: Path) -> list[Path]:
    """Run folders of `rere`; shares of seed 0 have means .3 and .75, of seed 1 .5 and .25."""
    runs = []
    for seed, (hits, silent) in enumerate([((0.2, 0.4), (0.0, 0.5)), ((0.5,), (0.75,))]):
        lines = [{"step": 0, "eval_ndcg@10": 0.1}]
        lines += [
            {"step": step, "hit_rate": hit, "zero_advantage": zero}
            for step, (hit, zero) in enumerate(zip(hits, silent, strict=True), start=1)
        ]
        runs.append(write_log(folder / "runs" / "toys" / "tiny" / "rere" / f"seed{seed}", lines))
    return runs


def test_gains_are_over_the_run_of_the_same_seed(tmp_path):
    path, runs = write_runs(tmp_path, sft=0.04, rere=0.05), rl_logs(tmp_path)
    rows = pl.read_csv(path)
    is_other = (pl.col("method") == "rere") & (pl.col("seed") == 1)
    changed = pl.when(is_other).then(0.038).otherwise(pl.col("NDCG@10"))
    rows.with_columns(changed.alias("NDCG@10")).write_csv(path)
    points = list(gains(path, runs, {"rere": ["sft"]}, "NDCG@10"))
    # Seed 0: .05 - .04; seed 1: .038 - .041.
    assert [each["gain"] for each in points] == pytest.approx([0.01, -0.003])
    assert [each["hits"] for each in points] == pytest.approx([0.3, 0.5])
    assert [each["signal"] for each in points] == pytest.approx([0.75, 0.25])
    left, right = draw_hits(pl.DataFrame(points)).axes
    for axes, name in ((left, "hits"), (right, "signal")):
        drawn = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
        assert drawn == [[each[name], each["gain"]] for each in points]
    outputs = drawn_formats(tmp_path)
    hits_figure(path, runs, {"rere": ["sft"]}, outputs)
    check_written(outputs)


def test_gains_of_zero_are_on_a_readable_axis():
    names = {"dataset": "a", "backbone": "b", "method": "c"}
    left, _ = draw_hits(pl.DataFrame([names | {"gain": 1e-17, "hits": 0.2, "signal": 0.0}])).axes
    assert left.get_ylim() == pytest.approx((-0.001, 0.001))
    assert left.get_xlim()[0] == 0


def test_the_marks_of_all_gains_are_inside_of_the_axis():
    names = {"dataset": "a", "backbone": "b", "method": "c", "hits": 0.2, "signal": 0.0}
    points = pl.DataFrame([names | {"gain": gain} for gain in (-0.0015, 0.039)])
    left, _ = draw_hits(points).axes
    low, high = left.get_ylim()
    assert low < -0.004 and high > 0.042


def test_runs_without_hits_or_rows_are_refused(tmp_path):
    path, runs = write_runs(tmp_path), rl_logs(tmp_path)
    output = [tmp_path / "h.png"]
    starts = {"rere": ["sft"]}
    refused(hits_figure, path, runs, {}, output, match="starts from no method of the table")
    other = write_log(tmp_path / "toys" / "tiny" / "rere" / "seed7", [{"step": 1}])
    refused(hits_figure, path, [other], starts, output, match="has no run .*seed7; make it again")
    write_log(runs[0], [{"step": 1, "loss": 1.0}])
    refused(hits_figure, path, runs, starts, output, match=r"log\.jsonl: has no hit_rate; train")
    assert not output[0].exists()


# ------------------------------------------------------------------------------------ backbones


def store_backbones(folder: Path) -> list[Path]:
    """Backbones of 60 and 600 parameters, and one of another family with 200."""
    for name, family, count in [("a", "qwen2", 60), ("b", "qwen2", 600), ("c", "gemma", 200)]:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": family}))
        weights = {"half": np.zeros((count // 4, 2)), "scalars": np.zeros(count // 2)}
        save_file(weights, folder / name / "model.safetensors")
    return [folder / name for name in "abc"]


def test_lines_go_over_the_parameters_of_a_family(tmp_path):
    folders = store_backbones(tmp_path)
    rows = [
        ("toys", "none", "sasrec", 0.05),
        ("toys", "b", "sft", 0.04),
        ("toys", "a", "sft", 0.03),
    ]
    rows += [("toys", "c", "sft", 0.06), ("toys", "a", "rere", 0.07)]
    table = write_table(tmp_path, rows)
    sizes = read_sizes(folders)
    assert sizes == {"a": ("qwen2", 60), "b": ("qwen2", 600), "c": ("gemma", 200)}
    (axes,) = draw_backbones(sized(read_table(table, ["NDCG@10"]), sizes, table)).axes
    lines = {
        (container.lines[0].get_color(), container.lines[0].get_linestyle()): container
        for container in axes.containers
    }
    drawn = {key: each.lines[0].get_xydata().tolist() for key, each in lines.items()}
    assert drawn == {
        ("C0", "-"): [[60, 0.03], [600, 0.04]],
        ("C0", "--"): [[200, 0.06]],
        ("C1", "-"): [[60, 0.07]],
    }
    (bars,) = lines["C0", "-"].lines[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert np.allclose(ends, [[0.02, 0.05], [0.03, 0.06]])
    (other,) = [line for line in axes.lines if line.get_color() == "grey"]
    assert list(other.get_ydata()) == [0.05, 0.05]
    names = {text.get_text(): text.xy[0] for text in axes.texts if text.get_text() != "sasrec"}
    assert names == {"a": 60, "c": 200, "b": 600}
    outputs = drawn_formats(tmp_path)
    backbones_figure(table, folders, outputs)
    check_written(outputs)


def test_backbones_that_are_not_there_are_named(tmp_path):
    folders = store_backbones(tmp_path)
    table = write_table(tmp_path, [("toys", "b", "sft", 0.04)])
    output = [tmp_path / "b.png"]
    refused(backbones_figure, table, folders[:1], output, match="has the backbone b; give its")
    (folders[1] / "model.safetensors").write_bytes(b"x" * 50)
    refused(backbones_figure, table, folders, output, match=r"model\.safetensors: not readable")
    folders = [folders[0]]
    table = write_table(tmp_path, [("toys", "none", "sasrec", 0.04)])
    refused(backbones_figure, table, folders, output, match="has no method with a backbone")
    assert not output[0].exists()


@pytest.mark.parametrize(
    ("count", "text"), [(2e9, "2B"), (1.5e9, "1.5B"), (5e8, "500M"), (1e3, "1k"), (20, "20")]
)
def test_counts_are_shown_as_in_the_names_of_models(count, text):
    assert show_count(count) == text


# ----------------------------------------------------------------------------------------- axes

AXES = {"Sampling": ["rere", "grid-rollout=iid"], "Reward": ["a", "b", "rere"]}


def test_each_axis_has_a_panel_with_its_methods(tmp_path):
    values = {"rere": 0.05, "grid-rollout=iid": 0.04, "a": 0.03, "b": 0.02, "sft": 0.01}
    table = write_table(tmp_path, [("toys", "tiny", name, value) for name, value in values.items()])
    options = DesignSpace(axes=AXES, reference="rere", labels={"b": "B"})
    with rc_context(fname=STYLE):
        panels = draw_axes(read_table(table, ["NDCG@10"]), options).axes
    assert [panel.get_title("left") for panel in panels] == ["Sampling", "Reward"]
    labels = [[text.get_text() for text in panel.get_yticklabels()] for panel in panels]
    assert labels == [["rere", "iid"], ["a", "B", "rere"]]
    for panel, names in zip(panels, AXES.values(), strict=True):
        intervals, points = panel.collections
        assert points.get_offsets().tolist() == [
            [values[name], height] for height, name in enumerate(names)
        ]
        ends = [segment[:, 0].tolist() for segment in intervals.get_segments()]
        assert np.allclose(ends, [[values[name] - 0.01, values[name] + 0.02] for name in names])
        (line,) = panel.lines
        assert list(line.get_xdata()) == [0.05, 0.05]
    outputs = drawn_formats(tmp_path)
    axes_figure(table, outputs, options)
    check_written(outputs)


def test_an_axis_without_the_reference_has_a_line_at_its_first_method(tmp_path):
    table = write_table(tmp_path, [("toys", "tiny", name, 0.1) for name in ("rere", "a")])
    options = DesignSpace(axes={"Other": ["a"]}, reference="rere")
    (panel,) = draw_axes(read_table(table, ["NDCG@10"]), options).axes
    assert list(panel.lines[0].get_xdata()) == [0.1, 0.1]


def test_axes_are_in_pairs_and_one_alone_is_wide(tmp_path):
    table = read_table(write_table(tmp_path, [("toys", "tiny", "rere", 0.1)]), ["NDCG@10"])
    for count, visible in ((1, [True]), (2, [True] * 2), (3, [True] * 3 + [False])):
        axes = {title: ["rere"] for title in "abc"[:count]}
        panels = draw_axes(table, DesignSpace(axes=axes)).axes
        assert [panel.get_visible() for panel in panels] == visible


def test_an_axis_with_a_method_that_the_table_lacks_is_refused(tmp_path):
    table = write_table(tmp_path, [("toys", "tiny", "rere", 0.05)])
    options = DesignSpace(axes={"Sampling": ["rere", "reree"]})
    refused(axes_figure, table, [tmp_path / "a.png"], options, match="has no reree; did you mean")


# ----------------------------------------------------------------------------------- popularity


@pytest.mark.parametrize(
    ("counts", "thirds"),
    [
        # 12 targets: those with more than 6, 3, 2, 1, 0 have 0, 6, 9, 11, 12.
        ([6, 3, 2, 1, 0], [0, 1, 2, 2, 2]),
        ([0, 1, 2, 3, 6], [2, 2, 2, 1, 0]),
        # Equal counts are together; 9 targets, 0 of them above 3.
        ([3, 3, 3], [0, 0, 0]),
        # 9 targets: 3 are above 2, exactly a third.
        ([3, 2, 2, 2], [0, 1, 1, 1]),
        ([0, 0], [2, 2]),
    ],
)
def test_items_are_split_into_thirds_of_the_training_targets(counts, thirds):
    assert item_thirds(np.array(counts)).tolist() == thirds


def test_metrics_of_head_middle_and_tail(tabled_runs, tmp_path):
    root, data, runs = tabled_runs
    methods = group_by_method(read_runs(runs, data))
    found = by_popularity(methods, data, "HR@10")
    assert len(found) == len(methods)
    row = found.filter(dataset="toys_", backbone="tiny", method="sft").row(0, named=True)
    folder = root / "data" / "toys_"
    items, test = (pl.read_parquet(folder / f"{name}.parquet") for name in ("items", "test"))
    counts, titles = items["count"].to_list(), items["title"].to_list()
    hits = {"head": [], "middle": [], "tail": []}
    users = {name: [] for name in hits}
    ranked = [
        pl.read_parquet(root / "results/runs/toys_/tiny/sft" / f"seed{seed}/predictions.parquet")
        for seed in (0, 1, 2)
    ]
    for number, (target, user) in enumerate(zip(test["target"], test["user_id"], strict=True)):
        more = sum(count for count in counts if count > counts[target])
        share = more / sum(counts)
        name = "head" if share < 1 / 3 else "middle" if share < 2 / 3 else "tail"
        name = name if counts[target] else "tail"
        of_seeds = [
            titles[target]
            in list(dict.fromkeys(titles[item] for item in each["items"][number]))[:10]
            for each in ranked
        ]
        hits[name].append(float(np.mean(of_seeds)))
        users[name].append(user)
    assert all(map(len, hits.values()))
    for name, values in hits.items():
        assert row[name] == pytest.approx(math.fsum(values) / len(values))
        low, high = bootstrap_interval(np.array(values)[:, None], np.array(users[name]))
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low[0], high[0]))
    outputs = drawn_formats(tmp_path)
    popularity_figure(runs, data, outputs, Shown(metrics=["HR@10"]))
    check_written(outputs)


def test_figures_have_the_same_bytes_each_time(tmp_path):
    path = write_runs(tmp_path)
    for name in ("first", "second"):
        cost_figure(path, STARTS, drawn_formats(tmp_path / name))
    for first, second in zip(
        drawn_formats(tmp_path / "first"), drawn_formats(tmp_path / "second"), strict=True
    ):
        assert first.read_bytes() == second.read_bytes()
