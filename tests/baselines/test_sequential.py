"""Training of the networks, and ranking, on patterns with one correct answer."""

import io
import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from untrained_networks import NUM_ITEMS, PADDING

from rere.baselines import sequential
from rere.baselines.network import Network, pad_left
from rere.baselines.ranking import rank_top
from rere.baselines.sasrec import SasrecModel
from rere.baselines.sequential import bce_loss, fit, next_items, softmax_loss, validate
from rere.config.baselines import Caser, Gru4rec, Sasrec, Sequential
from rere.errors import InputError

SETTINGS = {
    "hidden_size": 16,
    "dropout": 0.1,
    "learning_rate": 1e-2,
    "batch_size": 16,
    "epochs": 8,
    "patience": 8,
}
OPTIONS = Sasrec(**SETTINGS)
NETWORKS = [OPTIONS, Gru4rec(**SETTINGS), Caser(**SETTINGS)]
every_network = pytest.mark.parametrize(
    "options", NETWORKS, ids=[options.model for options in NETWORKS]
)


def cycle(length: int = 5) -> pl.DataFrame:
    """Histories of up to `length` items, in which each item is followed by the next id."""
    histories = [
        [(start + offset) % NUM_ITEMS for offset in range(size)]
        for start in range(NUM_ITEMS)
        for size in range(1, length + 1)
    ]
    targets = [(history[-1] + 1) % NUM_ITEMS for history in histories]
    return rows(histories, targets)


def rows(histories: list[list[int]], targets: list[int]) -> pl.DataFrame:
    schema = {"history": pl.List(pl.Int32), "target": pl.Int32}
    return pl.DataFrame({"history": histories, "target": targets}, schema=schema)


def trained(seed: int = 0, options: Sequential = OPTIONS) -> Network:
    return fit(options, NUM_ITEMS, cycle(), cycle(), seed, io.StringIO())


def test_padding_is_on_the_left_and_the_latest_items_are_kept():
    histories = pl.Series([[1, 2, 3, 4], [5], []], dtype=pl.List(pl.Int32))
    assert pad_left(histories, 3, PADDING).tolist() == [[2, 3, 4], [12, 12, 5], [12, 12, 12]]


def test_next_items_skip_padding():
    histories = torch.tensor([[12, 12, 5], [1, 2, 3]], dtype=torch.int32)
    positions, labels = next_items(histories, torch.tensor([6, 4], dtype=torch.int32), PADDING)
    assert positions.tolist() == [2, 3, 4, 5]
    assert labels.tolist() == [6, 2, 3, 4]


def test_an_empty_history_has_finite_scores(short_sasrec):
    items, scores = rank_top(short_sasrec, pl.Series([[]], dtype=pl.List(pl.Int32)), NUM_ITEMS)
    assert sorted(items[0]) == list(range(NUM_ITEMS))
    assert np.isfinite(scores).all()


def test_lists_have_at_most_the_catalogue_with_descending_scores(short_sasrec):
    items, scores = rank_top(short_sasrec, cycle()["history"], 50)
    assert items.shape == scores.shape == (len(cycle()), NUM_ITEMS)
    assert (np.diff(scores) <= 0).all()


def test_histories_longer_than_in_training_lose_their_oldest_items(short_sasrec):
    recent = [1, 2, 3, 4, 5, 6, 7, 8]
    histories = pl.Series([[9, 0, *recent], recent], dtype=pl.List(pl.Int32))
    items, scores = rank_top(short_sasrec, histories, 5)
    assert items[0].tolist() == items[1].tolist()
    np.testing.assert_array_equal(scores[0], scores[1])


def test_validation_is_the_mean_ndcg(short_sasrec):
    histories = [[1, 2], [3]]
    ranked, _ = rank_top(short_sasrec, rows(histories, [0, 0])["history"], NUM_ITEMS)
    # Ranks 2 and 11: (1 / log2(2 + 1) + 0) / 2.
    valid = rows(histories, [int(ranked[0, 1]), int(ranked[1, 10])])
    assert validate(short_sasrec, valid) == pytest.approx(0.5 / math.log2(3))


def toy(weights: list[list[float]]) -> Network:
    """A network with these item embeddings, whose scores can be computed by hand."""
    model = SasrecModel(Sasrec(hidden_size=2, num_heads=1), len(weights), max_history=1)
    with torch.no_grad():
        model.items.weight[: len(weights)] = torch.tensor(weights)
    return model


def test_softmax_loss_by_hand():
    # Scores (1, 2, 0) of target 1: log(e + e^2 + 1) - 2. Scores (0, 0, 0) of target 2: log 3.
    model = toy([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    states = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    expected = (math.log(math.e + math.e**2 + 1) - 2 + math.log(3)) / 2
    assert softmax_loss(model, states, torch.tensor([1, 2])).item() == pytest.approx(expected)


def test_bce_loss_by_hand():
    # With two items, the negative is the other one. Target 0 scores 1 and negative 1 scores 2; then
    # target 1 scores 6 and negative 0 scores 3. The terms are -log s(1) - log s(-2) and
    # -log s(6) - log s(-3), where -log s(x) = log(1 + e^-x).
    model = toy([[1.0, 0.0], [2.0, 0.0]])
    states = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    terms = [math.log1p(math.exp(-x)) for x in (1, -2, 6, -3)]
    loss = bce_loss(model, states, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(sum(terms) / 2)


def test_negatives_are_uniform_over_the_other_items():
    # The target, which scores 100, costs 100 as a negative. The others score 0, 0 and 3.
    model = toy([[0.0, 0.0], [100.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    torch.manual_seed(0)
    count = 20000
    loss = bce_loss(model, torch.tensor([[1.0, 0.0]]).expand(count, 2), torch.full((count,), 1))
    expected = (2 * math.log(2) + math.log1p(math.exp(3))) / 3
    assert loss.item() == pytest.approx(expected, abs=0.03)  # 1.09 / sqrt(20000) = 0.008


@every_network
@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_networks_learn_a_cycle(options, loss):
    changes = {"loss": loss, "dropout": 0.0, "learning_rate": 2e-2, "epochs": 80, "patience": 80}
    model = trained(options=options.model_copy(update=changes))
    items, _ = rank_top(model, cycle()["history"], 1)
    assert items[:, 0].tolist() == cycle()["target"].to_list()


@every_network
@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_equal_seeds_give_equal_models(options, loss):
    options = options.model_copy(update={"loss": loss, "epochs": 2})
    histories = cycle()["history"]
    first, again, other = (
        rank_top(trained(seed, options), histories, NUM_ITEMS)[1] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_the_best_epoch_is_kept_and_patience_counts_from_it(monkeypatch):
    two_epochs = trained(options=OPTIONS.model_copy(update={"epochs": 2}))
    scores = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    monkeypatch.setattr(sequential, "validate", lambda model, valid: next(scores))
    log = io.StringIO()
    options = OPTIONS.model_copy(update={"patience": 2})
    model = fit(options, NUM_ITEMS, cycle(), cycle(), 0, log)
    # Epoch 2 is best, 3 ties and 4 is worse: with a patience of 2, epoch 5 is not run.
    records = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["valid_NDCG@10"] for record in records] == [0.1, 0.3, 0.3, 0.2]
    assert all(record["loss"] > 0 for record in records)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, two_epochs.state_dict()[name]), name


def test_a_diverging_run_names_the_learning_rate():
    options = OPTIONS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(InputError, match="learning_rate: the loss of epoch 1 is nan"):
        trained(options=options)
