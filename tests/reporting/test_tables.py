"""Tables and figures of small runs: two data sets, two backbones, several seeds."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from reported_runs import BACKBONES, DATASETS, ROWS, SKILL, make_run, planned_runs

from rere.config.evaluation import CUTOFFS
from rere.config.run import NO_BACKBONE, Run
from rere.config.study import Comparison, Shown
from rere.errors import InputError
from rere.evaluation.metrics import METRICS
from rere.evaluation.significance import holm, paired_permutation_test, two_way_clustered_test
from rere.reporting.figures import draw_bars, figure
from rere.reporting.markup import split_facets
from rere.reporting.tables import COLUMNS, table

SFT = Comparison(reference="sft")

# --------------------------------------------------------------------------------------- tables


def test_columns_of_the_table(main_table):
    suffixes = ["", "_item", "_sd", "_low", "_high"]
    expected = [f"{name}{suffix}" for suffix in suffixes for name in METRICS]
    names = ["dataset", "backbone", "method", "seeds", "rows"]
    assert main_table.columns == [*names, *expected, "NDCG@10_p"]


def test_the_columns_are_documented(tabled_runs, main_table):
    names = [name for names in COLUMNS for name in names.split(", ")]
    every_k = [name.replace("@K", f"@{k}") for name in names for k in CUTOFFS]
    runs = pl.read_csv(tabled_runs[0] / "tables" / "main.runs.csv")
    assert set(every_k) == {*main_table.columns, *runs.columns}


def test_rows_of_the_table_are_in_the_order_of_the_runs(tabled_runs, main_table, tmp_path):
    expected = list(
        dict.fromkeys((run.dataset, run.backbone, run.method) for run in planned_runs())
    )
    assert len(expected) == 2 * (1 + 2 * 2)
    assert main_table.select("dataset", "backbone", "method").rows() == expected
    assert set(main_table["seeds"]) == {3}
    assert set(main_table["rows"]) == {ROWS}
    _, data, runs = tabled_runs
    table(runs[::-1], data, tmp_path / "main.csv", SFT)
    backwards = pl.read_csv(tmp_path / "main.csv")
    assert backwards.select("dataset", "backbone", "method").rows() == expected[::-1]
    assert backwards.reverse().equals(main_table)


def test_means_and_spread_over_seeds(tabled_runs, main_table):
    root, _, _ = tabled_runs
    each = pl.read_csv(root / "tables" / "main.runs.csv")
    key = ["dataset", "backbone", "method"]
    for row in main_table.iter_rows(named=True):
        runs = each.filter(**{name: row[name] for name in key})
        assert runs["seed"].to_list() == [0, 1, 2]
        for name in ("HR@5", "NDCG@10", "NDCG@20_item"):
            assert row[name] == pytest.approx(runs[name].mean(), abs=2e-6)
        assert row["NDCG@10_sd"] == pytest.approx(runs["NDCG@10"].std(), abs=2e-6)
        assert row["NDCG@10_low"] < row["NDCG@10"] < row["NDCG@10_high"]


def test_p_values_compare_with_the_reference_of_the_backbone(tabled_runs, main_table):
    root, _, _ = tabled_runs
    tested = main_table.filter(pl.col("NDCG@10_p").is_not_null())
    # Popularity has no backbone and sft has two, so there is no single reference for it.
    assert set(tested["method"]) == {"rere_0.1"}
    for dataset in DATASETS:
        test = pl.read_parquet(root / "data" / dataset / "test.parquet")
        raw = []
        for backbone in BACKBONES:
            values = {
                method: np.array(
                    [
                        ndcg_10(root / run.folder, test, root / "data" / dataset)
                        for run in planned_runs()
                        if (run.dataset, run.backbone, run.method) == (dataset, backbone, method)
                    ]
                )
                for method in ("sft", "rere_0.1")
            }
            differences = values["rere_0.1"] - values["sft"]  # (seeds, rows)
            raw.append(two_way_clustered_test(differences, test["user_id"].to_numpy()).p_value)
        p_values = tested.filter(dataset=dataset)["NDCG@10_p"]
        assert p_values.to_list() == pytest.approx(holm(raw).tolist(), abs=1e-6)


def ndcg_10(run: Path, test: pl.DataFrame, data: Path) -> list[float]:
    titles = pl.read_parquet(data / "items.parquet")["title"].to_list()
    values = []
    ranked = pl.read_parquet(run / "predictions.parquet")["items"].to_list()
    for row, target in zip(ranked, test["target"], strict=True):
        shown = list(dict.fromkeys(titles[item] for item in row))[:10]
        hit = titles[target] in shown
        values.append(1 / np.log2(shown.index(titles[target]) + 2) if hit else 0.0)
    return values


def test_unpaired_seeds_are_tested_over_users_only(tabled_runs, tmp_path):
    root, _, _ = tabled_runs
    test = pl.read_parquet(root / "data" / "toys_" / "test.parquet")

    def of(method, *seeds):
        runs = [Run(dataset="toys_", backbone="tiny", method=method, seed=seed) for seed in seeds]
        return [root / run.folder for run in runs]

    for seeds, others in [((1,), (1,)), ((0, 1), (1, 2))]:
        chosen = of("sft", *seeds), of("rere_0.1", *others)
        table([*chosen[0], *chosen[1]], [root / "data" / "toys_"], tmp_path / "t.csv", SFT)
        sft, rere = (
            np.mean([ndcg_10(run, test, root / "data" / "toys_") for run in runs], axis=0)
            for runs in chosen
        )
        p_value = paired_permutation_test(rere - sft, test["user_id"].to_numpy())
        assert pl.read_csv(tmp_path / "t.csv")["NDCG@10_p"][1] == pytest.approx(p_value, abs=1e-6)


@pytest.mark.parametrize(("seeds", "others"), [((1,), (0, 1, 2)), ((0, 1, 2), (1,))])
def test_a_single_run_is_paired_with_every_seed(tabled_runs, tmp_path, seeds, others):
    root, _, _ = tabled_runs
    data = root / "data" / "toys_"
    test = pl.read_parquet(data / "test.parquet")
    sft, rere = (
        [
            root / Run(dataset="toys_", backbone="tiny", method=method, seed=seed).folder
            for seed in chosen
        ]
        for method, chosen in (("sft", seeds), ("rere_0.1", others))
    )
    table([*sft, *rere], [data], tmp_path / "t.csv", SFT)
    values = [np.array([ndcg_10(run, test, data) for run in runs]) for runs in (sft, rere)]
    expected = two_way_clustered_test(values[1] - values[0], test["user_id"].to_numpy()).p_value
    assert pl.read_csv(tmp_path / "t.csv")["NDCG@10_p"][1] == pytest.approx(expected, abs=1e-6)


def test_a_reference_without_a_backbone_is_compared_with_every_method(tabled_runs, tmp_path):
    _, data, runs = tabled_runs
    table(runs, data, tmp_path / "main.csv", Comparison(reference="popularity"))
    tested = pl.read_csv(tmp_path / "main.csv").filter(pl.col("NDCG@10_p").is_not_null())
    assert set(tested["method"]) == {"sft", "rere_0.1"}
    assert len(tested) == 8


def test_one_seed_has_no_spread_and_no_reference_means_no_p_value(tabled_runs, tmp_path):
    _, data, runs = tabled_runs
    table([run for run in runs if run.name == "seed0"], data, tmp_path / "one.csv")
    one = pl.read_csv(tmp_path / "one.csv")
    assert set(one["seeds"]) == {1}
    for name in [*(f"{metric}_sd" for metric in METRICS), "NDCG@10_p"]:
        assert one[name].null_count() == len(one)
    assert "1 seed per method" in (tmp_path / "one.md").read_text()
    table(runs[:4], data, tmp_path / "mixed.csv")
    assert "1 to 3 seeds per method" in (tmp_path / "mixed.md").read_text()


def test_the_table_of_runs_has_costs_and_validation(tabled_runs):
    root, _, runs = tabled_runs
    each = pl.read_csv(root / "tables" / "main.runs.csv")
    assert len(each) == len(runs)
    assert each.columns[:5] == ["dataset", "backbone", "method", "seed", "evaluation"]
    assert each.columns[-4:] == ["seconds", "peak_memory_mb", "best_step", "valid_NDCG@10"]
    assert each.row(0)[-4:] == (2.5, 640.0, None, 0.25)
    assert each.row(1)[-4:] == (None, None, None, None)
    assert each.row(2)[-4:] == (None, None, None, None)
    assert {"HR@1_norepeat", "coverage@20", "popularity@20"} <= set(each.columns)


def test_markdown_has_a_table_per_data_set_and_backbone(tabled_runs, main_table):
    text = (tabled_runs[0] / "tables" / "main.md").read_text()
    titles = [line[4:] for line in text.splitlines() if line.startswith("### ")]
    assert titles == [f"{data}, {name}" for data in DATASETS for name in BACKBONES]
    assert text.count("percentile bootstrap over users") == 1
    users = pl.read_parquet(tabled_runs[1][0] / "test.parquet")["user_id"].n_unique()
    assert f"ml-100k: {ROWS} test rows of {users} users, 3 seeds per method." in text
    facet = main_table.filter(pl.col("backbone").is_in([NO_BACKBONE, "tiny"]), dataset="ml-100k")
    first = text.split("### ")[1]
    best = facet.sort("HR@10")[-1]
    assert f"**{best['HR@10'][0]:.4f}** ± {best['HR@10_sd'][0]:.4f}".replace("0.", ".") in first
    lines = [line for line in first.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*SKILL]
    assert len({line.count("|") for line in lines}) == 1


def test_the_files_show_the_chosen_metrics_and_labels(tabled_runs, tmp_path):
    root, data, runs = tabled_runs
    options = Comparison(
        reference="sft", highlight="rere_0.1", metrics=["HR@5"], labels={"rere_0.1": "ReRe"}
    )
    table(runs, data, tmp_path / "main.csv", options)
    text = (tmp_path / "main.md").read_text()
    assert "| Method      | HR@5 " in text
    assert "| ReRe        | **" in text
    assert text.count("Improvement") == 4 + 1  # tables and note
    assert "Holm" not in text
    for name in ("main.csv", "main.runs.csv"):
        assert (tmp_path / name).read_bytes() == (root / "tables" / name).read_bytes()


def test_a_table_has_the_same_bytes_each_time(tabled_runs, tmp_path):
    root, data, runs = tabled_runs
    table(runs, data, tmp_path / "main.csv", SFT)
    files = ["main.csv", "main.runs.csv", "main.md", "main.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    for name in files:
        assert (tmp_path / name).read_bytes() == (root / "tables" / name).read_bytes()


def refused(root, folders, data, match, **options):
    with pytest.raises(InputError, match=match) as error:
        table(folders, data, root / "main.csv", Comparison(**options))
    assert "\n" not in str(error.value)
    assert not list(root.glob("main*"))


def test_runs_on_different_rows_are_refused(planned_pair):
    root, data, (first, second) = planned_pair
    folders = [make_run(root, first), make_run(root, second, 50)]
    refused(root, folders, [data], "sft/seed0 and .*rere_0.1/seed0 have different test rows")


def test_unusable_runs_are_refused(planned_pair):
    root, data, (first, _) = planned_pair
    folder = make_run(root, first)
    (folder / "log.jsonl").write_text('{"valid_NDCG@10": 0.5}\n{')
    refused(root, [folder], [data], "log.jsonl: not a readable log")
    (folder / "log.jsonl").unlink()
    refused(root, [folder, folder], [data], "are the same run")
    refused(root, [folder], [root / "data" / "other"], "is a run on toys_")
    refused(root, [folder], [data], "no run of the reference sftt; did you mean", reference="sftt")
    refused(root, [folder], [data], "no run of the highlight rere; there are sft", highlight="rere")
    refused(root, [folder], [data], "labels: no run of tini; did you mean", labels={"tini": "T"})
    (folder / "predictions.parquet").unlink()
    refused(root, [folder], [data], "predictions.parquet: no such file")
    (folder / "metrics.json").write_text("{")
    refused(root, [folder], [data], "metrics.json: not readable as JSON")


# -------------------------------------------------------------------------------------- figures


def test_every_facet_has_the_methods_without_a_backbone(main_table):
    facets = split_facets(main_table, Shown(labels={"toys_": "Toys"}))
    assert [title for title, _ in facets] == [
        f"{data}, {name}" for data in ("ml-100k", "Toys") for name in BACKBONES
    ]
    for (_, facet), backbone in zip(facets, BACKBONES * 2, strict=True):
        assert facet["method"].to_list() == list(SKILL)
        assert facet["backbone"].to_list() == [NO_BACKBONE, backbone, backbone]
    alone = split_facets(main_table.filter(backbone=NO_BACKBONE), Shown())
    assert [title for title, _ in alone] == ["ml-100k", "toys_"]
    assert [facet["method"].to_list() for _, facet in alone] == [["popularity"]] * 2


def test_panels_have_a_bar_an_interval_and_a_number_per_method(main_table):
    facet = main_table.filter(pl.col("backbone").is_in([NO_BACKBONE, "tiny"]), dataset="toys_")
    axes = draw_bars(facet).axes
    assert [panel.get_title("right") for panel in axes] == ["HR@10", "NDCG@10"]
    assert axes[0].get_title("left") == "toys_, tiny"
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(SKILL)
    for panel, metric in zip(axes, ("HR@10", "NDCG@10"), strict=True):
        widths = {round(bar.get_y() + 0.4): bar.get_width() for bar in panel.patches}
        assert [widths[row] for row in range(3)] == facet[metric].to_list()
        [intervals] = [line for line in panel.collections if len(line.get_segments()) == 3]
        low, high = facet[f"{metric}_low"], facet[f"{metric}_high"]
        ends = [
            [[start, row], [end, row]]
            for row, (start, end) in enumerate(zip(low, high, strict=True))
        ]
        assert [segment.tolist() for segment in intervals.get_segments()] == ends
        assert [text.get_text() for text in panel.texts] == [f"{v:.3f}" for v in facet[metric]]


def test_the_figure_shows_the_chosen_metrics_and_labels(main_table):
    facet = main_table.filter(dataset="toys_", backbone="tiny")
    labels = {"sft": "US$ & $x_1$", "tiny": "Qwen2"}
    drawn = draw_bars(facet, Shown(metrics=["HR@1", "HR@5", "NDCG@5"], labels=labels))
    assert [panel.get_title("right") for panel in drawn.axes] == ["HR@1", "HR@5", "NDCG@5"]
    assert drawn.axes[0].get_title("left") == "toys_, Qwen2\n"
    names = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert names == [r"US\$ & \$x_1\$", "rere_0.1"]
    drawn.draw_without_rendering()


def test_the_figure_is_written_in_each_format_with_the_same_bytes_each_time(tabled_runs, tmp_path):
    source = tabled_runs[0] / "tables" / "main.csv"
    for name in ("first", "second"):
        figure(source, [tmp_path / name / "main.pdf", tmp_path / name / "main.png"])
    for name, magic in {"main.pdf": b"%PDF", "main.png": b"\x89PNG"}.items():
        content = (tmp_path / "first" / name).read_bytes()
        assert content.startswith(magic)
        assert content == (tmp_path / "second" / name).read_bytes()
        assert b"CreationDate" not in content


def test_the_figure_of_a_numeric_name_and_no_hits(main_table, tmp_path):
    zeros = [pl.lit(0.0).alias(name) for name in main_table.columns if "@" in name]
    toys = main_table.filter(dataset="toys_")
    numbered = toys.with_columns(pl.lit("2014").alias("dataset"), *zeros)
    numbered.write_csv(tmp_path / "main.csv")
    figure(tmp_path / "main.csv", [tmp_path / "main.png"])
    assert (tmp_path / "main.png").stat().st_size > 0


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, b"\xff\xfe", b"a,b,c\n", b"dataset,backbone\n1,2,3\n", None]
)
def test_a_file_that_is_no_table_is_refused(main_table, tmp_path, content):
    path = tmp_path / "main.csv"
    if content is None:
        main_table.with_columns(pl.lit(None).alias("HR@10")).write_csv(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"main\.csv: not a table \(.*\); make it again") as error:
        figure(path, [tmp_path / "main.png"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "main.png").exists()
