"""Training and ranking of sequential networks: one loop, two losses.

`softmax` is the cross-entropy over the whole catalogue. It makes stronger baselines than SASRec's
own loss, `bce`, the binary cross-entropy with one sampled negative a target (Klenitskiy &
Vasilev, "Turning Dross Into Gold Loss", RecSys 2023). Where SASRec draws negatives among the items
that the user never took, here they are any items but the target: the training rows do not tell
what a user took later. Every network learns from all items of a training row, each predicted from
those before it, and not from the row's target alone.
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
from rere.data.factors import Factors
from rere.errors import InputError
from rere.evaluation.metrics import METRICS, metrics_from_ranks, target_ranks
from rere.progress import progress

SELECTION = "NDCG@10"
ROWS_A_PASS = 512
NETWORKS = {"gru4rec": Gru4recModel, "caser": CaserModel, "sasrec": SasrecModel}


def fit(
    options: Sequential,
    num_items: int,
    train: pl.DataFrame,
    valid: pl.DataFrame,
    seed: int,
    log: TextIO,
) -> Network:
    """A model trained on the rows of `train`, as it was after its best epoch on those of `valid`.

    Both have the columns `history` and `target` of `rere.data.splits`; `log` gets a JSON line an
    epoch. `seed` reaches the initial weights, the order of the rows and dropout: on a CPU the
    same seed and number of threads give the same model, bit for bit. Raises InputError if the
    loss becomes infinite or NaN.
    """
    torch.manual_seed(seed)
    max_history = train["history"].list.len().max()
    model = NETWORKS[options.model](options, num_items, max_history)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.Adam(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    histories = padded(train["history"], max_history, model.padding)  # (rows, T)
    targets = torch.from_numpy(train["target"].to_numpy(writable=True))  # (rows,)
    windows = windows_an_epoch(histories, model.padding)
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


def windows_an_epoch(histories: torch.Tensor, padding: int) -> int:
    """How many of the histories (rows, T) hold as many items as there are rows.

    The windows of a user overlap, and each trains all of its positions: an event is in up to T of
    them. So an epoch of so many predicts each event about once. The last position of every window
    alone would do that too, but costs T times the attention and gets less far in the same time.
    """
    return math.ceil(len(histories) ** 2 / int((histories != padding).sum()))


def step(
    model: Network,
    loss_of: Callable[..., torch.Tensor],
    optimizer: torch.optim.Optimizer,
    histories: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """One update on a batch, histories (B, T) and targets (B,) on the CPU; returns its loss, ()."""
    device = next(model.parameters()).device
    # Found on the CPU, where it costs no synchronisation; padding is most of a short history.
    places, following = next_items(histories, targets, model.padding)
    states = model(histories.to(device)).flatten(0, 1)[places.to(device)]  # (places, D)
    loss = loss_of(model, states, following.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def next_items(
    histories: torch.Tensor, targets: torch.Tensor, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where histories (B, T) have items, in the flattened batch, and the items that come next.

    What comes next is the next item of the history and, after its last, the target (B,). Returns
    two int64 tensors (places,).
    """
    places = (histories != padding).flatten().nonzero().squeeze(1)
    following = torch.cat([histories[:, 1:], targets[:, None]], dim=1)  # (B, T)
    return places, following.flatten()[places].long()


def softmax_loss(model: Network, states: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Mean of -log softmax(scores)[target] for states (places, D), targets (places,); ()."""
    return F.cross_entropy(model.scores(states), following)


def bce_loss(model: Network, states: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid(target's score) - log(1 - sigmoid(negative's score)); ().

    States (places, D), targets (places,); a negative is drawn uniformly from the other items.
    """
    offsets = torch.randint_like(following, 1, model.padding)
    negatives = (following + offsets) % model.padding
    positive, negative = (
        (states * model.items(items)).sum(dim=-1) for items in (following, negatives)
    )
    return -(F.logsigmoid(positive) + F.logsigmoid(-negative)).mean()


LOSSES = {"softmax": softmax_loss, "bce": bce_loss}


def validate(model: Network, valid: pl.DataFrame) -> float:
    """Mean NDCG@10 of the rows' targets, items told apart by id, over the whole catalogue."""
    ranked, _ = top_items(model, valid["history"], 10)
    ranks = target_ranks(ranked, valid["target"].to_numpy())
    return float(metrics_from_ranks(ranks)[:, METRICS.index(SELECTION)].mean())


@torch.inference_mode()
def top_items(model: Network, histories: pl.Series, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The `length` best items after each history, best first, and their logits.

    Of a history the model reads its latest items, as many as it was trained with. Returns arrays
    (rows, min(length, items)) of int64 and float32.
    """
    best = []
    for states in last_states(model, histories).split(ROWS_A_PASS):
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
    batches = padded(histories, model.max_history, model.padding).split(ROWS_A_PASS)
    return torch.cat([model(batch.to(device))[:, -1] for batch in batches])


def factors(model: Network, rows: pl.DataFrame) -> Factors:
    """What `model.scores` multiplies, for the histories of `rows`, in the order of row_id."""
    rows = rows.sort("row_id")
    return Factors(
        row_id=torch.from_numpy(rows["row_id"].to_numpy(writable=True)),
        state=last_states(model, rows["history"]),
        item=model.items.weight[: model.padding].detach(),
    ).to("cpu")


def padded(histories: pl.Series, width: int, padding: int) -> torch.Tensor:
    """The latest `width` items of each history, padded on the left: (rows, width) int32."""
    latest = histories.list.tail(width)
    lengths = latest.list.len().to_numpy()
    array = np.full((len(latest), width), padding, dtype=np.int32)
    array[np.arange(width) >= width - lengths[:, None]] = latest.explode().drop_nulls().to_numpy()
    return torch.from_numpy(array)
