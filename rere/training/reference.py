"""The reference model, which the policy is regularised towards."""

import copy
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from rere.backbones import halve_linear_layers, load_model
from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import token_log_probs
from rere.training.models import Model
from rere.training.sharding import load_weights, part_of

FOLDER = "reference"
"""Its folder in a checkpoint."""


class Reference:
    """The model that training started from: a frozen copy, or the policy without its adapters.

    Only a copy can be synced. A reference that `is_synced` is saved in checkpoints. One that never
    changes has linear layers in `dtype`, the arithmetic it runs under.
    """

    def __init__(self, model: Model, is_synced: bool, dtype: str, temperature: float = 1.0) -> None:
        self.is_synced, self.temperature = is_synced, temperature
        self.model = model
        if not isinstance(model, PeftModel):
            self.model = copy.deepcopy(model).eval().requires_grad_(False)
            if not is_synced and dtype == "bfloat16":
                halve_linear_layers(self.model)

    @torch.no_grad()
    def log_probs(self, packed: PackedBatch) -> Tensor:
        """Log-probabilities of the candidates' tokens under the reference, (B, N)."""
        is_policy = isinstance(self.model, PeftModel)
        with self.model.disable_adapter() if is_policy else nullcontext():
            return token_log_probs(self.model, packed, self.temperature)

    @torch.no_grad()
    def sync(self, policy: Model, mix: float = 1.0) -> None:
        """reference = mix * policy + (1 - mix) * reference.

        The soft update of TR-DPO, Gorbatovski et al. 2024 (arXiv 2404.09656).
        """
        for ours, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            part_of(ours).lerp_(part_of(theirs), mix)

    def save(self, checkpoint: Path, weights: dict[str, Tensor] | None) -> None:
        """Save it in a checkpoint, unless it still is the initial model.

        `weights` are those of a sharded model, whole.
        """
        if self.is_synced:
            self.model.save_pretrained(checkpoint / FOLDER, state_dict=weights)

    def load(self, checkpoint: Path) -> None:
        """Restore it from a checkpoint."""
        if self.is_synced:
            load_weights(self.model, load_model(checkpoint / FOLDER).state_dict())
