"""Training and ranking of the sequential networks, with one training loop and two losses.

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
from collections.abc import Callable
from typing import TextIO

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from rere.baselines.caser import CaserModel
from rere.baselines.gru4rec import Gru4recModel
from rere.baselines.network import Network
from rere.baselines.sasrec import SasrecModel
from rere.config.baselines import Sequential
from rere.config.evaluation import METRICS
from rere.data.factors import Factors
from rere.errors import InputError
from rere.evaluation.metrics import metrics_from_ranks, target_ranks
from rere.progress import progress

SELECTION = "NDCG@10"
ROWS_PER_BATCH = 512
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
    model.to("cuda" if torch.cuda.is_available() else "cpu")
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


@torch.inference_mode()
def rank_top(model: Network, histories: pl.Series, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The `length` best items after each history, best first, and their logits.

    The model reads the latest `max_history` items. Returns arrays (rows, min(length, items)) of
    int64 and float32.
    """
    best = []
    for states in last_states(model, histories).split(ROWS_PER_BATCH):
        scores = model.scores(states)  # (B, N)
        best.append(scores.topk(min(length, scores.shape[1])))
    items = torch.cat([batch.indices for batch in best])
    scores = torch.cat([batch.values for batch in best])
    return items.cpu().numpy(), scores.cpu().numpy()


@torch.inference_mode()
def last_states(model: Network, histories: pl.Series) -> torch.Tensor:
    """The state after each history, (rows, D) on the model's device."""
    model.eval()
    device = next(model.parameters()).device
    batches = pad_left(histories, model.max_history, model.padding).split(ROWS_PER_BATCH)
    return torch.cat([model(batch.to(device))[:, -1] for batch in batches])


def make_factors(model: Network, rows: pl.DataFrame) -> Factors:
    """The factors of `model.scores` for the histories of `rows`, in the order of row_id."""
    rows = rows.sort("row_id")
    return Factors(
        row_id=torch.from_numpy(rows["row_id"].to_numpy(writable=True)),
        state=last_states(model, rows["history"]),
        item=model.items.weight[: model.padding].detach(),
    ).to("cpu")


def pad_left(histories: pl.Series, width: int, padding: int) -> torch.Tensor:
    """The latest `width` items of each history, padded on the left: (rows, width) int32."""
    latest = histories.list.tail(width)
    lengths = latest.list.len().to_numpy()
    array = np.full((len(latest), width), padding, dtype=np.int32)
    array[np.arange(width) >= width - lengths[:, None]] = latest.explode().drop_nulls().to_numpy()
    return torch.from_numpy(array)
