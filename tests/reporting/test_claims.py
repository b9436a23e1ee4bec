"""The page of claims: its numbers against an oracle, verdicts, and what is missing."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from reported_runs import BACKBONES, DATASETS, planned_runs

from rere.config.claims import Claim, Compared
from rere.errors import InputError
from rere.evaluation.significance import holm, two_way_clustered_test
from rere.reporting.claims import RULES, claims, compare, read_tables


def claim(*comparisons: Compared, **options) -> Claim:
    return Claim(sentence="A | B is better.", comparisons=list(comparisons), **options)


def compared(method="rere_0.1", *than, datasets=DATASETS, backbones=BACKBONES, table="main"):
    return Compared(
        table=table,
        method=method,
        than=list(than or ["sft"]),
        datasets=list(datasets),
        backbones=list(backbones),
    )


def of_table(runs: list[Path], table: str = "main") -> list[tuple[str, Path]]:
    return [(table, run) for run in runs]


def ndcg_of_rows(run: Path, data: Path, cutoff: int = 10) -> list[float]:
    """NDCG at title level of each test row, with a loop."""
    titles = pl.read_parquet(data / "items.parquet")["title"].to_list()
    frame = pl.read_parquet(run / "predictions.parquet").sort("row_id")
    values = []
    for ranked, target in zip(frame["items"].to_list(), frame["target"], strict=True):
        shown = list(dict.fromkeys(titles[item] for item in ranked))[:cutoff]
        hit = titles[target] in shown
        values.append(1 / np.log2(shown.index(titles[target]) + 2) if hit else 0.0)
    return values


def oracle(root: Path, dataset: str, backbone: str, method: str, than: str, cutoff: int = 10):
    """The test of two methods with three seeds, from their predictions."""
    data = root / "data" / dataset
    values = {
        name: np.array(
            [
                ndcg_of_rows(root / run.folder, data, cutoff)
                for run in planned_runs()
                if (run.dataset, run.method) == (dataset, name)
                and run.backbone in (backbone, "none")
            ]
        )
        for name in (method, than)
    }
    users = pl.read_parquet(data / "test.parquet").sort("row_id")["user_id"].to_numpy()
    return two_way_clustered_test(values[method] - values[than], users), values[than].mean()


def test_comparisons_are_tested_over_users_and_seeds(tabled_runs):
    root, data, runs = tabled_runs
    declared = {
        "sft": claim(compared()),
        "again": claim(compared()),
        "popularity": claim(compared("rere_0.1", "popularity"), metric="NDCG@5"),
    }
    entries = list(compare(declared, read_tables(of_table(runs), data)))
    assert [len(entry.made) for entry in entries] == [4, 4, 4]
    first, again, popularity = (entry.made for entry in entries)
    assert [tested for _, tested in first] == [tested for _, tested in again]
    expected = []
    for made, cutoff in [*((each, 10) for each, _ in first), *((p, 5) for p, _ in popularity)]:
        pair = made.pair
        test, other = oracle(root, pair.dataset, pair.backbone, pair.method, pair.than, cutoff)
        assert made.difference == pytest.approx(test)
        assert made.means == pytest.approx([other + test.mean, other])
        assert made.is_over_seeds
        expected.append(test.p_value)
    # The second claim repeats the first one's hypotheses, which count once.
    adjusted = [tested.adjusted for made in (first, popularity) for _, tested in made]
    assert adjusted == pytest.approx(holm(np.array(expected)).tolist())


def test_the_page_has_rule_verdicts_and_comparisons(tabled_runs, tmp_path):
    root, data, runs = tabled_runs
    declared = {
        "better": claim(compared("rere_0.1", "popularity")),
        "worse": claim(compared("popularity", "rere_0.1", datasets=["toys_"])),
        "nothing": claim(),
    }
    claims(declared, of_table(runs), data, tmp_path / "claims.md")
    text = (tmp_path / "claims.md").read_text()
    assert text.startswith(f"# Claims\n\n{RULES}\n\n| Claim ")
    summary = [
        [cell.strip() for cell in line.replace(r"\|", "/").split("|")[1:-1]]
        for line in text.split("\n\n## ")[0].splitlines()
        if line.startswith("| A ")
    ]
    assert [row[0] for row in summary] == ["A / B is better."] * 3
    verdicts = ["**supported**", "**contradicted**", "**not run**"]
    assert [row[1] for row in summary] == verdicts
    assert [row[2:6] for row in summary] == [
        ["4", "0", "0", "0"],
        ["0", "2", "0", "0"],
        ["0", "0", "0", "0"],
    ]
    test, other = oracle(root, "ml-100k", "tiny", "rere_0.1", "popularity")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    cells = next(row for row in rows if row[1:3] == ["`ml-100k`", "`tiny`"])
    means = f"{other + test.mean:.4f} and {other:.4f}".replace("0.", ".")
    share = 100 * test.mean / other
    assert cells == [
        *("`main`", "`ml-100k`", "`tiny`", "`rere_0.1`", "`popularity`", means),
        f"{100 * test.mean:+.2f} ({share:+.1f} %)",
        f"{100 * test.low:+.2f} to {100 * test.high:+.2f}",
        cells[8],
        "3",
        "won",
    ]
    assert text.count("No table of the study speaks to it.") == 1
    assert "No table" in text.split("`nothing`: **not run**")[1]


def test_one_seed_decides_nothing(tabled_runs, tmp_path):
    _, data, runs = tabled_runs
    first = [run for run in runs if run.name == "seed0"]
    (entry,) = compare({"a": claim(compared())}, read_tables(of_table(first), data))
    assert entry.verdict == "not decided"
    assert all(made.difference.low > 0 for made, _ in entry.made)
    claims({"a": claim(compared())}, of_table(first), data, tmp_path / "claims.md")
    assert "open: users alone" in (tmp_path / "claims.md").read_text()


def test_a_single_run_is_paired_with_every_seed(tabled_runs):
    _, data, runs = tabled_runs
    kept = [run for run in runs if run.parent.name != "sft" or run.name == "seed0"]
    (entry,) = compare({"a": claim(compared())}, read_tables(of_table(kept), data))
    assert all(made.is_over_seeds for made, _ in entry.made)


def test_two_methods_without_backbones_are_compared_once(tabled_runs, tmp_path):
    root, _, runs = tabled_runs
    study = tmp_path / "study"
    shutil.copytree(root, study)
    kept = [study / run.relative_to(root) for run in runs if run.parent.name == "popularity"]
    twins = [Path(str(run).replace("popularity", "sasrec")) for run in kept]
    for run, twin in zip(kept, twins, strict=True):
        shutil.copytree(run, twin)
        metrics = (twin / "metrics.json").read_text().replace('popularity"', 'sasrec"')
        (twin / "metrics.json").write_text(metrics)
    tables = read_tables(of_table([*kept, *twins]), [study / "data" / name for name in DATASETS])
    (entry,) = compare({"a": claim(compared("sasrec", "popularity"))}, tables)
    assert [made.pair.backbone for made, _ in entry.made] == ["none", "none"]
    assert [made.difference.mean for made, _ in entry.made] == [0, 0]


def test_each_data_set_may_have_its_own_verdict(tabled_runs):
    _, data, runs = tabled_runs
    kept = [run for run in runs if "toys_" not in run.parts or run.parent.name != "popularity"]
    pairs = compared("rere_0.1", "popularity")
    declared = {"a": claim(pairs, each_dataset=True), "all": claim(pairs)}
    entries = list(compare(declared, read_tables(of_table(kept), data)))
    assert [(entry.sentence, entry.verdict) for entry in entries] == [
        ("A | B is better. (ml-100k)", "supported"),
        ("A | B is better. (toys_)", "not run"),
        ("A | B is better.", "not run"),
    ]


def test_what_is_missing_is_named(tabled_runs, tmp_path):
    root, data, runs = tabled_runs
    study = tmp_path / "study"
    shutil.copytree(root, study)
    copied = [study / run.relative_to(root) for run in runs]
    unmade = next(run for run in copied if run.parts[-4:-1] == ("toys_", "tiny", "sft"))
    (unmade / "metrics.json").unlink()
    declared = {
        "one": claim(compared()),
        "other": claim(compared("rere_0.1", "sasrec", datasets=["toys_"], backbones=["tiny"])),
        "table": claim(Compared(table="sampling", method="rere_0.1", than=["sft"])),
    }
    data = [study / "data" / name for name in DATASETS]
    claims(declared, of_table(copied), data, study / "claims.md")
    text = (study / "claims.md").read_text()
    assert text.count("**not run**\n") == 3
    assert f"* `main`, `toys_`, `tiny`, `rere_0.1` and `sft`: `{unmade}` is not made\n" in text
    assert "* `main`, `toys_`, `tiny`, `rere_0.1` and `sasrec`: `main` has no run of `sas" in text
    assert "* `sampling`, `rere_0.1` and `sft`: the table is not in the study" in text


def test_a_kept_initial_model_is_noted(tabled_runs, tmp_path):
    root, _, runs = tabled_runs
    study = tmp_path / "study"
    shutil.copytree(root, study)
    copied = [study / run.relative_to(root) for run in runs]
    rere = next(run for run in copied if run.parent.name == "rere_0.1")
    (rere / "run.json").write_text('{"seconds": 1, "peak_memory_mb": 1, "best_step": 0}')
    data = [study / "data" / name for name in DATASETS]
    claims({"a": claim(compared())}, of_table(copied), data, study / "claims.md")
    text = (study / "claims.md").read_text()
    assert text.endswith(
        f"`{rere.relative_to(study)}`: no validation was better than that of the initial model, "
        "which was kept.\n"
    )


def test_the_page_has_the_same_bytes_each_time(tabled_runs, tmp_path):
    _, data, runs = tabled_runs
    for name in ("first.md", "second.md"):
        claims({"a": claim(compared())}, of_table(runs), data, tmp_path / name)
    assert (tmp_path / "first.md").read_bytes() == (tmp_path / "second.md").read_bytes()


def test_unusable_runs_are_refused_and_nothing_is_written(tabled_runs, tmp_path):
    _, data, runs = tabled_runs
    study = tmp_path / "copy"
    broken = study / "results" / Path(*runs[0].parts[-5:])
    shutil.copytree(runs[0], broken)
    (broken / "metrics.json").write_text("{")
    twin = study / "twin" / "results" / Path(*runs[0].parts[-5:])
    shutil.copytree(runs[0], twin)
    for folders, match in [
        ([broken], "metrics.json: not readable as JSON"),
        ([runs[0], twin], "are the same run; give one"),
        ([tmp_path / "elsewhere"], "is no folder of a run; give dataset/backbone/method/seed0"),
    ]:
        with pytest.raises(InputError, match=match) as error:
            claims({"a": claim(compared())}, of_table(folders), data, study / "claims.md")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="give the folder of that data set too"):
        claims({"a": claim(compared())}, of_table(runs), data[:1], study / "claims.md")
    assert not list(study.glob("*.md"))
