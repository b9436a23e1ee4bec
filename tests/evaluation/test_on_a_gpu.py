"""Rankings by a model on an imitated GPU equal those on the CPU."""

import pytest
from fake_gpu import fake_gpu
from polars.testing import assert_frame_equal
from ranking_data import ITEM_TITLES, SEED

from rere import Recommender
from rere.config.decoding import D3, Bigrec
from rere.config.evaluation import Decoding, Recommend
from rere.evaluation.decode import decode
from rere.evaluation.predictions import read_predictions
from rere.evaluation.recommend import recommend


def assert_same_on_both(run, folder):
    """`run(path)` writes the same predictions on the CPU and on a GPU, which computes them."""
    run(folder / "cpu.parquet")
    with fake_gpu() as gpu:
        run(folder / "gpu.parquet")
    assert gpu.operations > 1000
    expected = read_predictions(folder / "cpu.parquet")
    found = read_predictions(folder / "gpu.parquet")
    assert_frame_equal(found, expected, abs_tol=1e-5, rel_tol=0)


@pytest.mark.parametrize(
    "options", [{}, {"scoring": "vocabulary", "length_penalty": 1.0}, {"dtype": "bfloat16"}]
)
def test_recommend(tmp_path, fixed_model, ranking_data, options):
    options = Recommend(rows=None, num_beams=7, batch_size=5, **options)
    assert_same_on_both(
        lambda path: recommend(options, fixed_model, ranking_data, SEED, path), tmp_path
    )


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_d3(tmp_path, fixed_model, ranking_data, random_factors, alpha):
    factors = random_factors if alpha < 1 else None
    options, evaluation = D3(alpha=alpha, num_beams=7), Decoding(batch_size=5)
    assert_same_on_both(
        lambda path: decode(options, evaluation, fixed_model, ranking_data, SEED, path, factors),
        tmp_path,
    )


def test_bigrec(tmp_path, fixed_model, ranking_data):
    assert_same_on_both(
        lambda path: decode(Bigrec(), Decoding(), fixed_model, ranking_data, SEED, path), tmp_path
    )


def test_recommender(recommender, model_with_catalogue):
    histories = [["Heat", ITEM_TITLES[0]], [ITEM_TITLES[6]]]
    with fake_gpu() as gpu:
        found = Recommender(model_with_catalogue).recommend_many(histories, top=5)
    assert gpu.operations > 1000
    assert found == recommender.recommend_many(histories, top=5)
