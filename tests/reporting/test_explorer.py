"""The explorer: metrics of subsets by hand, and the page in a browser."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from browser import CHROMIUM, Page
from data_frames import items_frame, split_frame, users_frame
from reported_runs import HOSTILE, ROWS, write_run

from rere.config.run import NO_BACKBONE, Run
from rere.config.study import Comparison
from rere.data.dataset import read_split
from rere.errors import InputError
from rere.files import write_json
from rere.reporting.explorer import explorer, head_count

SFT = Comparison(reference="sft")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")


def baseline(method: str) -> Run:
    """A run on the data set of `explored`."""
    return Run(dataset="tiny", backbone=NO_BACKBONE, method=method, seed=0)


def content(page: Path) -> dict[str, Any]:
    """The data of a page."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*)</script>\n<script>', text, re.DOTALL)[1])


def subsets_of(dataset: dict[str, Any], method: str, metric: str) -> dict[str, float | None]:
    """A method's metric of each subset."""
    at = [f"{name}@{k}" for name in ("HR", "NDCG") for k in (1, 3, 5, 10)].index(metric)
    [row] = [each["subsets"] for each in dataset["methods"] if each["name"] == method]
    names = [subset["name"] for subset in dataset["subsets"]]
    return {name: each and each[at] for name, each in zip(names, row, strict=True)}


def test_the_metrics_of_subsets(explored, tmp_path):
    data, runs = explored
    explorer(runs, [data], tmp_path / "main.explorer.html", SFT)
    [dataset] = content(tmp_path / "main.explorer.html")["datasets"]
    # The head is the fifth with most training targets: two of ten items, and item 2 by a tie.
    assert {subset["name"]: subset["rows"] for subset in dataset["subsets"]} == {
        **{"all": 4, "head": 2, "tail": 2, "cold": 1},
        **{"history 1 to 3": 1, "history 4 to 6": 1, "history 7 to 9": 1, "history 10 or more": 1},
        **{"repeat": 1, "no repeat": 3},
    }
    # Ranks: 1, 4, none, 1.
    assert subsets_of(dataset, "rere", "HR@3") == {
        **{"all": 2 / 4, "head": 1 / 2, "tail": 1 / 2, "cold": 0},
        **{"history 1 to 3": 1, "history 4 to 6": 0, "history 7 to 9": 0, "history 10 or more": 1},
        **{"repeat": 0, "no repeat": pytest.approx(2 / 3, abs=1e-6)},
    }
    at_4, at_2 = 1 / math.log2(5), 1 / math.log2(3)
    ndcg = subsets_of(dataset, "rere", "NDCG@10")
    assert ndcg["all"] == pytest.approx((1 + at_4 + 0 + 1) / 4, abs=1e-6)
    assert ndcg["head"] == pytest.approx((1 + at_4) / 2, abs=1e-6)
    assert ndcg["repeat"] == pytest.approx(at_4, abs=1e-6)
    # Ranks: 2, none, 2 (titles 8 and 9 count once), none.
    ndcg = subsets_of(dataset, "sft", "NDCG@3")
    assert ndcg["all"] == pytest.approx((2 * at_2) / 4, abs=1e-6)
    assert ndcg["cold"] == ndcg["history 7 to 9"] == pytest.approx(at_2, abs=1e-6)
    assert ndcg["repeat"] == 0


def test_subsets_without_rows_have_no_metrics(explored, tmp_path):
    data, _ = explored
    split_frame([[3]], [0]).write_parquet(data / "test.parquet")
    test = read_split(data, "test")
    run = write_run(tmp_path, baseline("one"), test, [[0, 1]])
    explorer([run], [data], tmp_path / "main.explorer.html")
    page = content(tmp_path / "main.explorer.html")
    assert subsets_of(page["datasets"][0], "one", "HR@1")["repeat"] is None
    assert page["pair"] == ["one", "one"]


@pytest.mark.parametrize(
    ("counts", "least"), [([9, 5, 5, 1, 0], 9), ([9, 5, 5, 1, 0, 0], 5), ([3, 0, 0, 0, 0, 0], 1)]
)
def test_the_head_is_the_fifth_with_most_training_targets(counts, least):
    assert head_count(pl.Series(counts)) == least


def test_metrics_of_all_rows_are_those_of_the_table(tabled_runs, main_table, tmp_path):
    _, data, runs = tabled_runs
    explorer(runs, data, tmp_path / "main.explorer.html", SFT, rows=10)
    page = content(tmp_path / "main.explorer.html")
    rows = iter(main_table.iter_rows(named=True))
    for dataset in page["datasets"]:
        assert (dataset["rows"], dataset["all_rows"]) == (10, ROWS)
        for method in dataset["methods"]:
            row = next(rows)
            assert row["method"] == method["name"]
            names = page["metrics"]
            assert method["subsets"][0] == pytest.approx([row[name] for name in names], abs=2e-6)
    assert next(rows, None) is None


def test_the_pair_is_highlight_and_reference(explored, tmp_path):
    data, runs = explored

    def pair(**options: str) -> list[str]:
        explorer(runs, [data], tmp_path / "main.explorer.html", Comparison(**options))
        return content(tmp_path / "main.explorer.html")["pair"]

    assert pair() == ["rere", "sft"]
    assert pair(reference="rere") == ["sft", "rere"]
    assert pair(highlight="sft") == ["sft", "rere"]
    assert pair(highlight="sft", reference="rere") == ["sft", "rere"]


def test_bad_input_is_refused_with_one_line(explored, tmp_path):
    data, runs = explored
    output = tmp_path / "main.explorer.html"

    def refused(match: str, options: Comparison = SFT) -> None:
        with pytest.raises(InputError, match=match) as error:
            explorer(runs, [data], output, options)
        assert "\n" not in str(error.value) and not output.exists()

    refused("no run of the reference sftt; did you mean", Comparison(reference="sftt"))
    users_frame(2).write_parquet(data / "users.parquet")
    refused(r"users\.parquet: lacks user_id 2; make it again: `rere preprocess`")
    (data / "users.parquet").unlink()
    refused(r"users\.parquet: no such file; `rere preprocess` writes it")
    users_frame(3).write_parquet(data / "users.parquet")
    (data / "train.parquet").unlink()
    refused(r"train\.parquet: no such file")
    split_frame([[3]] * 4, [1, 1, 7, 9]).write_parquet(data / "test.parquet")
    refused(r"row_id 0 is not in .*test\.parquet with this user and target")
    (runs[0] / "metrics.json").unlink()
    refused(r"metrics\.json: no such file; `rere metrics` writes it")
    command = [sys.executable, "-m", "rere", "explorer", "--runs", "--data", str(data)]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_page_loads_nothing_and_runs_only_its_own_script(explored, tmp_path):
    data, runs = explored
    explorer(runs, [data], tmp_path / "<b>.explorer.html", SFT)
    text = (tmp_path / "<b>.explorer.html").read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;: explorer</title>" in text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert "://" not in text and text.count("</script>") == 2
    assert content(tmp_path / "<b>.explorer.html")["datasets"][0]["titles"][1] == HOSTILE


# ------------------------------------------------------------------------------- in a browser


def show(page: Page, path: Path, view: str = "") -> None:
    """Open an explorer anew."""
    page.open("about:blank#")
    page.messages.clear()
    page.open(f"{path.as_uri()}{view}")


def rows(page: Page) -> list[str]:
    return page.text("#rows li")


@needs_browser
def test_hits_and_misses_of_two_methods(page, explored, tmp_path):
    data, runs = explored
    explorer(runs, [data], tmp_path / "main.explorer.html", SFT)
    show(page, tmp_path / "main.explorer.html")
    kinds = ["All: 4", "rere hits, sft misses: 2", "sft hits, rere misses: 1", "Both hit: 1"]
    assert [text.strip() for text in page.text("#only label")] == [*kinds, "Both miss: 0"]
    assert page.evaluate("document.querySelector('#only :checked').value") == "a"
    assert rows(page) == [
        f"{HOSTILE}user u1; A: rank 4, B: not in the list",
        "Sameuser u2; A: rank 1, B: not in the list",
    ]
    assert page.text("#row") == ["User u1, row_id 1"]
    assert page.text("#history li")[0] == "t3 raw3"
    assert page.text("#target") == [f"{HOSTILE} raw1"]
    assert page.text("#facts") == ["5 training targets, head, repeat"]
    assert page.text("#lists th") == ["#", "rereA, rank 4", "sftB, not in the list"]
    assert page.text("#lists .hit") == [f"✓ {HOSTILE} raw1"]
    assert page.text("#lists .seen") == ["t3 raw3", "t3 raw3", "t4 raw4", f"✓ {HOSTILE} raw1"]
    page.set("#k", "3")
    assert rows(page) == ["Sameuser u2; A: rank 1, B: not in the list"]
    page.click("#swap")
    assert rows(page) == ["t7user u2; A: rank 2, B: not in the list"]
    assert page.text("#lists .hit") == ["✓ t7 raw7"]
    assert page.text("#lists tbody tr:first-child td") == ["1", "Same raw8", f"{HOSTILE} raw1"]
    assert page.evaluate("document.getElementById('evil')") is None
    assert page.messages == []


@needs_browser
def test_users_titles_and_subsets_are_found(page, explored, tmp_path):
    data, runs = explored
    explorer(runs, [data], tmp_path / "main.explorer.html", SFT)
    show(page, tmp_path / "main.explorer.html", "#only=all&user=u2")
    assert [row.partition("user")[0] for row in rows(page)] == ["t7", "Same"]
    page.set("#user", "u")
    assert len(rows(page)) == 4
    page.set("#user", "v")
    assert rows(page) == [] and page.text("#page") == ["no such rows"]
    page.click("#clear")
    for where, found in {"any": 3, "target": 1, "history": 0, "lists": 3}.items():
        page.set("#title", "HEA")
        page.set("#where", where)
        assert len(rows(page)) == found - (where in ("any", "lists"))
    assert page.text("#lists .found")[0].endswith("Heat raw0")
    page.set("#title", "raw4")
    page.set("#where", "history")
    assert [row.partition("user")[0] for row in rows(page)] == [HOSTILE, "Same"]
    page.click("#clear")
    page.evaluate("document.querySelector('#subsets th:nth-child(5) button').focus()")
    page.evaluate("document.activeElement.click()")
    assert page.evaluate("document.activeElement.textContent") == "cold"
    assert [row.partition("user")[0] for row in rows(page)] == ["t7"]
    assert page.text("#subsets td:nth-child(5)") == ["1", ".6309", ".0000"]
    assert page.text("#subsets td:nth-child(5) b") == [".6309"]
    assert "neither as a target nor in a history" in page.text("#meaning")[0]
    view = page.evaluate("location.hash")
    show(page, tmp_path / "main.explorer.html", view)
    assert [row.partition("user")[0] for row in rows(page)] == ["t7"]


@needs_browser
def test_data_sets_backbones_and_seeds_are_chosen(page, tabled_runs, tmp_path):
    _, data, runs = tabled_runs
    labels = {"toys_": "Toys & <Games>", "tiny": "Tiny", "rere_0.1": "ReRe"}
    explorer(
        runs, data, tmp_path / "main.explorer.html", Comparison(reference="sft", labels=labels)
    )
    show(page, tmp_path / "main.explorer.html", "#only=all")
    assert page.text("#dataset option") == ["ml-100k", "Toys & <Games>"]
    assert page.text("#backbone option") == ["Tiny", "large_1.5b"]
    assert page.text("#seed option") == ["0", "1", "2"]
    assert page.text("#subsets tbody td:first-child") == ["popularity", "sft", "ReRe"]
    assert page.text("#spread") == [
        "Means over 3 seeds. Counts and metrics are of all test rows. Bold: the best of a subset."
    ]
    lists = page.text("#lists td")
    page.set("#seed", "1")
    assert page.text("#lists td") != lists
    assert "Lists are of seed 1." in page.text("#about")[0]
    page.set("#dataset", "1")
    page.set("#backbone", "large_1.5b")
    assert page.text("#about")[0].startswith(f"Toys & <Games>, large_1.5b: {ROWS} test rows of ")
    expected = pl.read_parquet(data[1] / "test.parquet")["target"]
    titles = pl.read_parquet(data[1] / "items.parquet")["title"]
    assert [row.partition("user")[0] for row in rows(page)] == titles[expected].to_list()
    assert page.messages == []


@needs_browser
def test_a_sample_is_said(page, tabled_runs, tmp_path):
    _, data, runs = tabled_runs
    for shown, note in (
        (10, f"A sample of 10 of the {ROWS} test rows; counts below are of the sample."),
        (None, None),
    ):
        explorer(runs, data, tmp_path / "main.explorer.html", SFT, rows=shown)
        show(page, tmp_path / "main.explorer.html", "#only=all")
        assert page.evaluate("get('sample').hidden") == (note is None)
        assert note is None or page.text("#sample") == [note]
        assert page.text("#only label")[0].strip() == f"All: {shown or ROWS}"
        assert page.text("#subsets thead td:nth-child(2)") == [str(ROWS)]


@pytest.mark.slow
@needs_browser
def test_10_000_rows_of_13_methods_are_smooth(page, tmp_path):
    rng = np.random.default_rng(0)
    data, num_rows, num_items = tmp_path / "data" / "tiny", 10_000, 5_000
    data.mkdir(parents=True)
    items = items_frame([f"Title {item}" for item in range(num_items)])
    items.write_parquet(data / "items.parquet")
    users_frame(num_rows).write_parquet(data / "users.parquet")
    histories = rng.integers(0, num_items, (num_rows, 10)).tolist()
    test = split_frame(histories, rng.integers(0, num_items, num_rows))
    for split in ("train", "test"):
        test.write_parquet(data / f"{split}.parquet")
    starts = rng.integers(0, num_items, (2, num_rows, 1))
    ranked = ((starts + np.arange(20)) % num_items).tolist()
    runs = [
        write_run(tmp_path, baseline(f"m{number}"), test, lists)
        for number, lists in enumerate(ranked)
    ]
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    for number in range(2, 13):  # copies of the second, which need no metrics of their own
        run = baseline(f"m{number}")
        runs.append(shutil.copytree(runs[1], tmp_path / run.folder))
        write_json(runs[-1] / "metrics.json", metrics | {"method": run.method})
    explorer(runs, [data], tmp_path / "main.explorer.html")
    assert (tmp_path / "main.explorer.html").stat().st_size < 6_000_000
    show(page, tmp_path / "main.explorer.html", "#only=all")
    assert page.text("#page") == ["1 to 100 of 10000 rows"]

    def seconds(action: str) -> float:
        code = f"{{ const start = performance.now(); {action}; performance.now() - start }}"
        return page.evaluate(code) / 1000

    typed = "get('title').value = 'title 12'; get('title').dispatchEvent(new Event('input'))"
    times = [seconds(typed), seconds("get('swap').click()"), seconds("get('next').click()")]
    assert max(times) < 1  # on a busy machine; 0.02 alone
    assert page.evaluate("shown.length") > 100
    page.click("#clear")
    page.evaluate("get('rows').focus()")
    page.press("Home")
    for key, number in {
        "ArrowDown": 1,
        "PageDown": 101,
        "ArrowUp": 100,
        "End": 9999,
        "Home": 0,
    }.items():
        page.press(key)
        chosen = page.text("#rows [aria-selected=true] small")
        assert len(chosen) == 1 and chosen[0].startswith(f"user u{number};")
        active = page.evaluate("get('rows').getAttribute('aria-activedescendant')")
        assert active == f"row{number}"
    assert page.messages == []
