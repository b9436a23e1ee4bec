"""The benchmark of preprocessing: both sides make the same splits of synthetic reviews."""

import gzip
import json
from datetime import date

import pytest

from rere.benchmarks.plain import data as plain
from rere.benchmarks.reviews import Size, write_reviews
from rere.benchmarks.speed import preprocessing
from rere.config.data import Amazon2018
from rere.data.dataset import SPLIT_SCHEMA
from rere.data.preprocess import process_events, read_raw


@pytest.mark.parametrize("seed", [0, 1])
def test_both_sides_make_the_same_splits(seed, tmp_path):
    unpacked = write_reviews(tmp_path, "Toys", Size(20_000, 4000), seed)
    assert unpacked == sum(len(gzip.decompress(p.read_bytes())) for p in tmp_path.iterdir())
    options = Amazon2018(category="Toys", min_items=150, start=date(2017, 10, 1))
    made = process_events(options, read_raw(options, tmp_path))
    names, splits = plain.split(*plain.read(tmp_path, "Toys"), options)
    assert made.items["title"].to_list() == names
    assert [frame.select(*SPLIT_SCHEMA).rows() for frame in made.splits.values()] == splits
    # The window moved, and every rule had something to do.
    assert made.stats["window"]["start"] < "2017-10-01"
    gone = dict(made.stats["interactions_dropped"])
    assert gone.pop("repeats of an earlier one") == 0
    assert len(gone) == 4 and min(gone.values()) > 0
    assert len(splits[2]) > 100


def test_the_rows_of_the_table(preprocess_inline):
    found = list(preprocessing.benchmark_preprocessing(Size(20_000, 4000), seed=0))
    for row, part in zip(found, ("from gzip", "from parsed rows"), strict=True):
        assert row["setting"].startswith("20000 reviews, 4000 metadata rows, ")
        assert row["setting"].split(", ")[3] == part
        assert row["equal"]
        assert row["ratio"] == row["theirs_seconds"] / row["ours_seconds"]
        assert (row["what"], row["against"]) == ("preprocessing", "plain Python")
    assert found[0]["peak_mb_ours"] is not None and found[1]["peak_mb_ours"] is None


def test_other_splits_are_not_equal(preprocess_inline, monkeypatch):
    split = plain.split

    def split_differently(*arguments):
        titles, splits = split(*arguments)
        return titles, [*splits[:2], splits[2][:-1]]

    monkeypatch.setattr(plain, "split", split_differently)
    rows = preprocessing.benchmark_preprocessing(Size(1000, 300), seed=0)
    assert [row["equal"] for row in rows] == [False, False]


def test_a_curve_ends_when_preprocessing_takes_too_long(preprocess_inline, monkeypatch):
    took = {"preprocessing": {1000: 1.0, 2000: 3.0, 3000: 9.0}, "plain Python": {1000: 4.0}}
    sizes = []

    def stage(side):
        return lambda raw: preprocessing.Cost(took[side][sizes[-1].reviews], 7.0)

    monkeypatch.setattr(preprocessing, "STAGES", {side: stage(side) for side in took})
    monkeypatch.setattr(
        preprocessing, "write_reviews", lambda *arguments: sizes.append(arguments[2])
    )
    assert list(preprocessing.time_by_reviews([1000, 2000, 3000, 4000], limit=3.0, seed=0)) == [
        (1000, "reviews", "preprocessing", 1.0, 7.0),
        (1000, "reviews", "plain Python", 4.0, 7.0),
        (2000, "reviews", "preprocessing", 3.0, 7.0),
        (3000, "reviews", "preprocessing", 9.0, 7.0),
    ]
    assert sizes == [Size(1000, 300), Size(2000, 600), Size(3000, 900)]


@pytest.mark.slow
def test_the_stages_in_fresh_processes():
    (_, *ours), (_, *theirs) = preprocessing.time_by_reviews([50_000], limit=60, seed=0)
    assert (ours[1], theirs[1]) == ("preprocessing", "plain Python")
    for seconds, peak_mb in (ours[2:], theirs[2:]):
        assert 0 < seconds < 60
        assert peak_mb > 1


def test_the_files_are_laid_out_like_amazons(tmp_path):
    write_reviews(tmp_path, "Toys", Size(500, 300), 0)
    with gzip.open(tmp_path / "Toys_5.json.gz", "rt") as file:
        reviews = [json.loads(line) for line in file]
    with gzip.open(tmp_path / "meta_Toys.json.gz", "rt") as file:
        metadata = [json.loads(line) for line in file]
    assert (len(reviews), len(metadata)) == (500, 300)
    assert {len(review["reviewerID"]) for review in reviews} == {14}
    assert {len(each["asin"]) for each in reviews + metadata} == {10}
    assert len({each["asin"] for each in metadata}) == 300
    assert {review["asin"] for review in reviews} <= {each["asin"] for each in metadata}
    assert sum("title" not in each for each in metadata) == 3
