"""SASRec trained as RecBole trains it, in our form and in RecBole's: what the two networks do.

Not a test: it made lines of recbole.json. Every window is a row of an epoch and teaches its target
alone; the rest of the loop is `rere.baselines.sequential`.

    python sasrec_forms.py DATA {ours,recbole} SEED
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rere.baselines import sequential
from rere.baselines.network import initialise
from rere.baselines.sasrec import SasrecModel, visible_keys
from rere.config.baselines import Sasrec
from rere.data.dataset import read_items, read_split

OPTIONS = Sasrec(learning_rate=1e-3, batch_size=512, epochs=20, patience=3)


class Block(nn.Module):
    """Self-attention and a feed-forward layer with GELU, normalised after each is added."""

    def __init__(self, options: Sasrec) -> None:
        super().__init__()
        width = options.hidden_size
        self.num_heads = options.num_heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        split = self.queries_keys_values(states).unflatten(-1, (3, self.num_heads, -1))
        attended = F.scaled_dot_product_attention(
            *split.permute(2, 0, 3, 1, 4),
            attn_mask=visible,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = self.attention_out(attended.transpose(1, 2).flatten(2))
        states = self.norms[0](states + self.dropout(attended))
        fed = self.narrow(F.gelu(self.wide(states)))
        return self.norms[1](states + self.dropout(fed))


class RecBolesForm(SasrecModel):
    """As RecBole has it: embeddings are normalised, too, and positions count from the oldest."""

    def __init__(self, options: Sasrec, num_items: int, max_history: int) -> None:
        super().__init__(options, num_items, max_history)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.num_layers))
        self.norm = nn.Identity()
        self.embedding_norm = nn.LayerNorm(options.hidden_size, eps=1e-12)
        self.apply(initialise)

    def forward(self, histories: Tensor) -> Tensor:
        place = ((histories != self.padding).cumsum(1) - 1).clamp(min=0)
        states = self.items(histories) + self.positions(place)
        states = self.dropout(self.embedding_norm(states))
        visible = visible_keys(histories == self.padding)
        for block in self.blocks:
            states = block(states, visible)
        return states


def last_items(histories: Tensor, targets: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """The last place of each window, and its target."""
    rows, width = histories.shape
    return torch.arange(rows) * width + width - 1, targets.long()


def main(data: Path, form: str, seed: int) -> None:
    torch.set_num_threads(1)
    sequential.next_items = last_items
    sequential.windows_per_epoch = lambda histories, padding: len(histories)
    if form == "recbole":
        sequential.NETWORKS["sasrec"] = RecBolesForm
    train, valid, test = (read_split(data, split) for split in ("train", "valid", "test"))
    model = sequential.fit(OPTIONS, len(read_items(data)), train, valid, seed, sys.stderr)
    scores = {name: sequential.validate(model, rows) for name, rows in
              (("valid_NDCG@10", valid), ("test_NDCG@10", test))}  # fmt: skip
    print(json.dumps({"form": form, "seed": seed, **scores}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
