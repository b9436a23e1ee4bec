"""Statistics of token lengths."""

import json

import polars as pl
from data_frames import items_frame
from tiny_models import TITLES, tokenizer

from rere.data.dataset import SPLIT_SCHEMA
from rere.token_lengths import length_statistics, token_lengths
from rere.tokenization import PromptEncoder


def test_length_statistics_by_hand():
    assert length_statistics([[0] * n for n in (1, 2, 3, 10)]) == {
        "count": 4,
        "mean": 4.0,
        "median": 3,
        "99th_percentile": 10,
        "longest": 10,
    }


def test_lengths_are_those_of_encoded_titles_and_prompts(tmp_path):
    tokenizer("qwen2").save_pretrained(tmp_path / "backbone")
    data = tmp_path / "data"
    data.mkdir()
    items_frame(TITLES).write_parquet(data / "items.parquet")
    rows = [(7, 0, [0, 1], 2, None), (8, 0, [1], 0, None)]
    pl.DataFrame(rows, schema=SPLIT_SCHEMA, orient="row").write_parquet(data / "test.parquet")
    token_lengths(tmp_path / "backbone", data, None, tmp_path / "lengths.json")
    found = json.loads((tmp_path / "lengths.json").read_text())
    encoder = PromptEncoder(tokenizer("qwen2"), TITLES)
    titles = [len(ids) for ids in encoder.encode_responses()]
    assert (found["titles"]["count"], found["titles"]["longest"]) == (len(TITLES), max(titles))
    assert found["titles"]["mean"] == sum(titles) / len(titles)
    prompts = [len(ids) for ids in encoder.encode_prompts([7, 8], [[0, 1], [1]], 0)]
    assert (found["prompts"]["count"], found["prompts"]["longest"]) == (2, max(prompts))
