"""Training of the sequential networks, with one training loop and two losses.

`softmax` is the cross-entropy over the whole catalogue. It makes stronger baselines than `bce`,
SASRec's own loss, the binary cross-entropy with one sampled negative per target (Klenitskiy &
Vasilev, "Turning Dross Into Gold Loss", RecSys 2023). SASRec samples negatives from the items that
a user never interacted with. Here they are any items but the target, since a training row does not
say what its user chose later. A network learns to predict every item of a training row, not only
its target, from the items before it.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from typing import TextIO

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from rere.baselines.caser import CaserModel
from rere.baselines.gru4rec import Gru4recModel
from rere.baselines.network import Network, pad_left
from rere.baselines.ranking import rank_top
from rere.baselines.sasrec import SasrecModel
from rere.config.baselines import Sequential
from rere.config.evaluation import METRICS
from rere.data.factors import Factors
from rere.devices import choose_device
from rere.errors import InputError
from rere.evaluation.metrics import metrics_from_ranks, target_ranks
from rere.progress import progress

SELECTION = "NDCG@10"
NETWORKS = {"gru4rec": Gru4recModel, "caser": CaserModel, "sasrec": SasrecModel}


def fit(
    options: Sequential,
    num_items: int,
    train: pl.DataFrame,
    valid: pl.DataFrame,
    seed: int,
    log: TextIO,
) -> Network:
    """A model trained on the rows of `train`, with the weights of its best epoch on `valid`.

    Both have the columns `history` and `target` of `rere.data.dataset`. `log` gets one JSON line
    per epoch. `seed` determines initial weights, the order of rows and dropout: on a CPU the same
    seed and number of threads give the same model, bit for bit. Raises InputError if the loss
    becomes infinite or NaN.
    """
    torch.manual_seed(seed)
    max_history = train["history"].list.len().max()
    model = NETWORKS[options.model](options, num_items, max_history)
    model.to(choose_device())
    optimizer = torch.optim.Adam(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    histories = pad_left(train["history"], max_history, model.padding)  # (rows, T)
    targets = torch.from_numpy(train["target"].to_numpy(writable=True))  # (rows,)
    windows = windows_per_epoch(histories, model.padding)
    loss_of = LOSSES[options.loss]
    best, best_epoch, best_weights = -1.0, 0, {}
    with progress(options.epochs * windows, options.model) as bar:
        for epoch in range(1, options.epochs + 1):
            model.train()
            losses = []
            for rows in torch.randperm(len(train))[:windows].split(options.batch_size):
                losses.append(step(model, loss_of, optimizer, histories[rows], targets[rows]))
                bar.update(len(rows))
            loss = torch.stack(losses).mean().item()
            if not math.isfinite(loss):
                raise InputError(
                    f"learning_rate: the loss of epoch {epoch} is {loss}; "
                    f"choose one below {options.learning_rate}"
                )
            score = validate(model, valid)
            bar.set_postfix({"loss": loss, SELECTION: score})
            record = {"epoch": epoch, "loss": loss, f"valid_{SELECTION}": score}
            print(json.dumps(record), file=log, flush=True)
            if score > best:
                best, best_epoch = score, epoch
                best_weights = copy.deepcopy(model.state_dict())
            if epoch - best_epoch >= options.patience:
                break
    model.load_state_dict(best_weights)
    return model


def load(
    options: Sequential,
    num_items: int,
    max_history: int,
    arrays: Mapping[str, np.ndarray],
    device: torch.device | str,
) -> Network:
    """A model with the weights in `arrays`; raises ValueError or TypeError if they are of none."""
    with torch.device("meta"):  # shapes without memory, and no random numbers
        model = NETWORKS[options.model](options, num_items, max_history)
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if {name: weight.shape for name, weight in weights.items()} != expected or not all(
        weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values()
    ):
        raise ValueError("not the weights of such a model")
    model.to_empty(device=device).load_state_dict(weights)
    return model


def windows_per_epoch(histories: torch.Tensor, padding: int) -> int:
    """Number of histories, out of (rows, T), that hold as many items as there are rows.

    The windows of a user overlap: an event is in up to T of them, and a window trains all its
    positions. An epoch of this many windows predicts each event about once. Training the last
    position of every window would too, but needs T times the attention and learns less in the same
    time.
    """
    return math.ceil(len(histories) ** 2 / int((histories != padding).sum()))


def step(
    model: Network,
    loss_of: Callable[..., torch.Tensor],
    optimizer: torch.optim.Optimizer,
    histories: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Make one update on histories (B, T) and targets (B,) on the CPU; returns the loss, ()."""
    device = next(model.parameters()).device
    # Found on the CPU, which needs no synchronisation with a GPU.
    positions, labels = next_items(histories, targets, model.padding)
    states = model(histories.to(device)).flatten(0, 1)[positions.to(device)]  # (positions, D)
    loss = loss_of(model, states, labels.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def next_items(
    histories: torch.Tensor, targets: torch.Tensor, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the items of histories (B, T) in the flattened batch, and the next items.

    The next item after the last one of a history is its target (B,). Returns two int64 tensors
    (positions,).
    """
    positions = (histories != padding).flatten().nonzero().squeeze(1)
    labels = torch.cat([histories[:, 1:], targets[:, None]], dim=1)  # (B, T)
    return positions, labels.flatten()[positions].long()


def softmax_loss(model: Network, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of -log softmax(scores)[label] over states (positions, D), labels (positions,); ()."""
    return F.cross_entropy(model.scores(states), labels)


def bce_loss(model: Network, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid(label's score) - log(1 - sigmoid(negative's score)); ().

    States (positions, D), labels (positions,). A negative is sampled uniformly from the other
    items.
    """
    offsets = torch.randint_like(labels, 1, model.padding)
    negatives = (labels + offsets) % model.padding
    positive, negative = (
        (states * model.items(items)).sum(dim=-1) for items in (labels, negatives)
    )
    return -(F.logsigmoid(positive) + F.logsigmoid(-negative)).mean()


LOSSES = {"softmax": softmax_loss, "bce": bce_loss}


def validate(model: Network, valid: pl.DataFrame) -> float:
    """Mean NDCG@10 of the rows' targets, at item level, over the whole catalogue."""
    ranked, _ = rank_top(model, valid["history"], 10)
    ranks = target_ranks(ranked, valid["target"].to_numpy())
    return float(metrics_from_ranks(ranks)[:, METRICS.index(SELECTION)].mean())


def make_factors(model: Network, rows: pl.DataFrame) -> Factors:
    """The factors of `model.scores` for the histories of `rows`, in the order of row_id."""
    rows = rows.sort("row_id")
    return Factors(
        row_id=torch.from_numpy(rows["row_id"].to_numpy(writable=True)),
        state=model.last_states(rows["history"]),
        item=model.items.weight[: model.padding].detach(),
    ).to("cpu")
