"""Untrained networks of the sequential baselines, and a catalogue for them."""

import torch

from rere.baselines.caser import CaserModel
from rere.baselines.gru4rec import Gru4recModel
from rere.baselines.network import Network
from rere.baselines.sasrec import SasrecModel
from rere.config.baselines import Caser, Gru4rec, Sasrec

NUM_ITEMS = 12
PADDING = NUM_ITEMS
WIDTH = 8
NETWORKS = {
    "gru4rec": (Gru4recModel, Gru4rec(hidden_size=WIDTH, num_layers=2)),
    "caser": (
        CaserModel,
        Caser(hidden_size=WIDTH, window=3, horizontal_filters=2, vertical_filters=2),
    ),
    "sasrec": (SasrecModel, Sasrec(hidden_size=WIDTH)),
}


def untrained(name: str, max_history: int = 10) -> Network:
    """A network with large weights, so that any wrong dependence changes its states."""
    torch.manual_seed(0)
    make, options = NETWORKS[name]
    model = make(options, NUM_ITEMS, max_history).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    return model
