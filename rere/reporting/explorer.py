"""A page to look into the runs of a table: one .html, which has its data and needs no network.

It shows a test row's history, target and the first TOP items of each method, the rows that one
method hits and another misses, and the metrics of subsets of rows. All metrics are those of
`rere.evaluation.metrics` at title level: a title counts once, and a list shows it once.
"""

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rere.config.evaluation import CUTOFFS, METRICS
from rere.config.run import NO_BACKBONE
from rere.config.study import Comparison
from rere.data.audit import known_items
from rere.data.dataset import (
    read_items,
    read_split,
    read_users,
    sample_rows,
)
from rere.evaluation.metrics import (
    ABSENT,
    distinct_titles,
    pad_lists,
    read_test_predictions,
    target_ranks,
    title_codes,
)
from rere.files import replacing
from rere.reporting.runs import read_runs
from rere.reporting.tables import MethodRuns, check_names, group_by_method

DEFAULTS = Comparison()
TOP = 10
"""Titles per list."""
SHOWN = [f"{name}@{k}" for name in ("HR", "NDCG") for k in CUTOFFS if k <= TOP]
HEAD = 5
"""The head is one in HEAD items of the catalogue."""
LENGTHS = ((1, 3), (4, 6), (7, 9), (10, None))
"""Shortest and longest history of each subset of lengths."""
PAGE = Path(__file__).with_name("explorer.html")


class Subset(NamedTuple):
    """Test rows with something in common."""

    name: str
    meaning: str
    has_row: pl.Expr  # of a row's history and target


def explorer(
    runs: list[Path],
    data: list[Path],
    output: Path,
    options: Comparison = DEFAULTS,
    rows: int | None = None,
) -> None:
    """Write the page of the run folders `runs` to `output`.

    `data` are the folders of the data sets, named after them. The page holds `sample_rows` of each
    test split, or all if `rows` is None; the metrics of subsets are of all rows. Raises InputError
    as `table` does.
    """
    methods = group_by_method(read_runs(runs, data))
    check_names(output, methods, options)
    folders = {folder.name: folder for folder in data}
    datasets = list(dict.fromkeys(method.key[0] for method in methods))
    content = {
        "pair": first_pair(methods, options),
        "metric": options.metrics[-1],
        "metrics": SHOWN,
        "top": TOP,
        "datasets": [
            describe_dataset(
                folders[name], [each for each in methods if each.key[0] == name], options, rows
            )
            for name in datasets
        ],
    }
    title = f"{output.name.removesuffix('.html').removesuffix('.explorer')}: explorer"
    with replacing(output) as temporary:
        temporary.write_text(render(title, content), encoding="utf-8")


def first_pair(methods: list[MethodRuns], options: Comparison) -> list[str]:
    """The methods whose hits and misses the page opens with.

    They are `highlight`, else the last method that is not the reference, and `reference`, else the
    first other method.
    """
    names = list(dict.fromkeys(method.key[2] for method in methods))
    others = [name for name in names if name != options.reference] or names
    first = options.highlight or others[-1]
    second = options.reference or next((name for name in names if name != first), first)
    return [first, second]


def describe_dataset(
    folder: Path, methods: list[MethodRuns], options: Comparison, rows: int | None
) -> dict[str, Any]:
    """What the page holds of a data set and the methods on it."""
    test = read_split(folder, "test")
    test = test.filter(pl.col("row_id").is_in(methods[0].runs[0].rows["row_id"].implode()))
    items, users = read_items(folder), read_users(folder, test)
    subsets = make_subsets(items, known_items(read_split(folder, "train")))
    member = test.select(subset.has_row.alias(subset.name) for subset in subsets)
    shown = sample_rows(test.with_row_index("position"), len(test) if rows is None else rows)
    positions, history = shown["position"].to_numpy(), shown["history"]
    user_ids = shown["user_id"].unique().sort()
    bits = member.to_numpy().astype(np.int64) << np.arange(len(subsets))
    return {
        "label": options.label(folder.name),
        "rows": len(shown),
        "all_rows": len(test),
        "all_users": test["user_id"].n_unique(),
        "titles": items["title"].to_list(),
        "ids": items["raw_id"].to_list(),
        "counts": encode(items["count"].to_numpy()),
        "users": users[user_ids]["raw_id"].to_list(),
        "row_id": encode(shown["row_id"].to_numpy()),
        "user": encode(user_ids.search_sorted(shown["user_id"]).to_numpy()),
        "target": encode(shown["target"].to_numpy()),
        "lengths": encode(history.list.len().to_numpy()),
        "history": encode(history.explode().to_numpy()),
        "member": encode(bits.sum(axis=1)[positions]),
        "subsets": [
            {"name": subset.name, "meaning": subset.meaning, "rows": int(member[subset.name].sum())}
            for subset in subsets
        ],
        "backbones": {
            backbone: options.label(backbone)
            for _, backbone, _ in (method.key for method in methods)
            if backbone != NO_BACKBONE
        },
        "methods": [
            describe_method(folder, method, items, member, positions, options) for method in methods
        ],
    }


def describe_method(
    folder: Path,
    method: MethodRuns,
    items: pl.DataFrame,
    member: pl.DataFrame,
    positions: np.ndarray,
    options: Comparison,
) -> dict[str, Any]:
    """What the page holds of a method: metrics of subsets, and of each run ranks and lists."""
    _, backbone, name = method.key
    runs = []
    for each in method.runs:
        frame = read_test_predictions(each.folder / "predictions.parquet", folder, items)
        ranks, lists = shown_lists(frame[positions], title_codes(items))
        lists = np.where(lists == ABSENT, len(items), lists)
        runs.append({"seed": each.run.seed, "ranks": encode(ranks), "lists": encode(lists)})
    return {
        "name": name,
        "label": options.label(name),
        "backbone": None if backbone == NO_BACKBONE else backbone,
        "subsets": subset_metrics(method, member),
        "runs": runs,
    }


def make_subsets(items: pl.DataFrame, known: pl.Series) -> list[Subset]:
    """The subsets of test rows of a data set; `known` are the items that train knows."""
    history, target = pl.col("history"), pl.col("target")
    least = head_count(items["count"])
    head = target.is_in(items.filter(pl.col("count") >= least)["item_id"].implode())
    is_repeat = history.list.contains(target)
    lengths = []
    for low, high in LENGTHS:
        name = f"{low} or more" if high is None else f"{low} to {high}"
        has_length = history.list.len().is_between(low, high or 2**32 - 1)
        lengths.append(Subset(f"history {name}", f"The history has {name} items.", has_length))
    return [
        Subset("all", "All test rows.", pl.lit(True)),
        Subset(
            "head",
            f"The target is in the fifth of the catalogue with the most training targets: at least "
            f"{least}.",
            head,
        ),
        Subset("tail", "The target is any other item.", ~head),
        Subset(
            "cold",
            "The target is never in train, neither as a target nor in a history.",
            ~target.is_in(known.implode()),
        ),
        *lengths,
        Subset("repeat", "The target is in the history.", is_repeat),
        Subset("no repeat", "The target is not in the history.", ~is_repeat),
    ]


def head_count(counts: pl.Series) -> int:
    """The fewest training targets of an item of the head: the fifth with most, and ties; from 1."""
    return max(counts.sort(descending=True)[math.ceil(len(counts) / HEAD) - 1], 1)


def subset_metrics(method: MethodRuns, member: pl.DataFrame) -> list[list[float] | None]:
    """The means over rows and seeds of SHOWN for each subset, None for one without rows.

    `member` (rows, subsets) says which rows are in a subset.
    """
    values = pl.DataFrame(method.values.mean(axis=0)[:, : len(METRICS)], schema=METRICS)
    values = values.select(SHOWN)
    means = [values.filter(member[name]).mean().row(0) for name in member.columns]
    return [None if row[0] is None else [round(value, 6) for value in row] for row in means]


def shown_lists(frame: pl.DataFrame, titles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's rank of the target, from 1 (0: not in the list), and its first TOP titles.

    `frame` comes from `read_test_predictions`, `titles` from `title_codes` -> (rows,) ranks and
    (rows, TOP) items: of each title the one with the best rank, padded with ABSENT.
    """
    ranked = pad_lists(frame["items"])
    distinct = distinct_titles(ranked, titles)
    codes = np.where(ranked == ABSENT, ABSENT, titles[ranked])
    lists = np.full((len(frame), TOP), ABSENT, dtype=np.int32)
    for rank, title in enumerate(distinct.T[:TOP]):
        first = (codes == title[:, None]).argmax(axis=1)
        lists[:, rank] = np.where(title == ABSENT, ABSENT, ranked[np.arange(len(frame)), first])
    return target_ranks(distinct, titles[frame["target"].to_numpy()]), lists


def encode(values: np.ndarray) -> list[str]:
    """Integers from 0 as base64 of the smallest type: its bytes, and the content, little-endian."""
    dtype = np.min_scalar_type(values.max(initial=0)).newbyteorder("<")
    if dtype.itemsize > 4:
        values, dtype = values.astype(np.float64), np.dtype("<f8")
    return [str(dtype.itemsize), base64.b64encode(values.astype(dtype).tobytes()).decode()]


def render(title: str, content: Any) -> str:
    """The page with its data, which may run no script but its own and load nothing."""
    page = PAGE.read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        *(f"{tag}-src '{digest(page, tag)}'" for tag in ("style", "script")),
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ]
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    values = {
        "policy": f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(policy)}">',
        "title": html.escape(title),
        "data": text.replace("<", r"\u003c"),  # no `</script>`, whatever a title says
    }
    return re.sub("<!-- (policy|title|data) -->", lambda found: values[found[1]], page)


def digest(page: str, tag: str) -> str:
    """The hash of the page's <style> or <script>, as a Content-Security-Policy has it."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found is not None, tag
    return f"sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}"
