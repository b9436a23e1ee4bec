import gzip
import json
from datetime import date

import pytest

from rere.config.data import Amazon2018
from rere.data.preprocess import from_events, read
from rere.data.splits import SPLIT_SCHEMA
from rere.speed import plain_data, preprocessing
from rere.speed.reviews import Size, write_reviews


@pytest.mark.parametrize("seed", [0, 1])
def test_both_sides_make_the_same_splits(seed, tmp_path):
    unpacked = write_reviews(tmp_path, "Toys", Size(20_000, 4000), seed)
    assert unpacked == sum(len(gzip.decompress(p.read_bytes())) for p in tmp_path.iterdir())
    options = Amazon2018(category="Toys", least_items=150, start=date(2017, 10, 1))
    made = from_events(options, read(options, tmp_path))
    events, titles = plain_data.read(tmp_path, "Toys")
    rules = (options.start, options.end, options.least_items, options.max_title_words)
    names, splits = plain_data.split(events, titles, *rules, options.core, options.max_history)
    assert made.items["title"].to_list() == names
    assert [frame.select(*SPLIT_SCHEMA).rows() for frame in made.splits.values()] == splits
    # The window moved, and every rule had something to do.
    assert made.stats["window"]["start"] < "2017-10-01"
    gone = dict(made.stats["interactions_dropped"])
    assert gone.pop("repeats of an earlier one") == 0
    assert len(gone) == 4 and min(gone.values()) > 0
    assert len(splits[2]) > 100


@pytest.mark.slow
def test_the_rows_of_the_table():
    found = list(preprocessing.rows(Size(20_000, 4000), seed=0))
    assert [row["setting"].split(", ")[3] for row in found] == ["from gzip", "from parsed rows"]
    for row in found:
        assert row["equal"]
        assert row["ratio"] == row["theirs_seconds"] / row["ours_seconds"]
        assert (row["what"], row["against"]) == ("preprocessing", "plain Python")
    assert found[0]["peak_mb_ours"] > 0 and found[0]["peak_mb_theirs"] > 0


def test_the_files_are_amazons(tmp_path):
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
