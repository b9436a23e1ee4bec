"""Fixtures of rankings and of their metrics."""

from pathlib import Path

import polars as pl
import pytest
import torch
from data_frames import items_frame, split_frame
from ranking_data import ITEM_TITLES, SEED, TEST_ROWS
from tiny_models import causal_lm, tokenizer, write_data
from transformers import PreTrainedModel

from rere.config.evaluation import Recommend
from rere.data.factors import Factors
from rere.evaluation.predictions import read_predictions, write_predictions
from rere.evaluation.recommend import recommend


@pytest.fixture(scope="session")
def ranking_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of ITEM_TITLES and TEST_ROWS."""
    return write_data(tmp_path_factory.mktemp("data"), ITEM_TITLES, test=TEST_ROWS)


@pytest.fixture(scope="session")
def plain_model() -> PreTrainedModel:
    """The model of `fixed_model`, for plain forward passes."""
    return causal_lm("qwen2", len(tokenizer("qwen2")))


@pytest.fixture(scope="session")
def all_predictions(
    tmp_path_factory: pytest.TempPathFactory, fixed_model: Path, ranking_data: Path
) -> pl.DataFrame:
    """Predictions for all test rows, with more beams than titles."""
    path = tmp_path_factory.mktemp("all") / "predictions.parquet"
    recommend(Recommend(rows=None, num_beams=30), fixed_model, ranking_data, SEED, path)
    return read_predictions(path)


@pytest.fixture(scope="session")
def random_factors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Factors of a sequential model whose item scores are far apart, for the test rows."""
    generator = torch.Generator().manual_seed(0)
    factors = Factors(
        row_id=torch.arange(len(TEST_ROWS)),
        state=torch.randn(len(TEST_ROWS), 4, generator=generator),
        item=3 * torch.randn(len(ITEM_TITLES), 4, generator=generator),
    )
    path = tmp_path_factory.mktemp("factors") / "factors.test.safetensors"
    factors.save(path)
    return path


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    """A folder with the predictions of four rows of three users, and their data in `toy`.

    The target of the second row is the last item of its history.
    """
    data = tmp_path / "toy"
    data.mkdir()
    items_frame(["a", "b", "a", "c"], [4, 2, 0, 2]).write_parquet(data / "items.parquet")
    test = split_frame([[0], [0, 1], [0], [0]], [1, 1, 2, 3], users=[7, 7, 8, 9], first_row=100)
    test.write_parquet(data / "test.parquet")
    ranked = [[1, 0], [1, 2], [0, 2], [0, 2, 1]]
    scores = [[-float(rank) for rank in range(len(row))] for row in ranked]
    write_predictions(tmp_path / "predictions.parquet", test, ranked, scores)
    return tmp_path
