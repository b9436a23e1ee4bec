"""The model that the policy's KL is held to."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from rere.backbones import load_model
from rere.config.training import RlOptions
from rere.engine.packing import Packed
from rere.engine.scoring import token_log_probs
from rere.training.models import Model

FOLDER = "reference"
"""Where it lies in a checkpoint."""


class Reference:
    """The model that training started from: a copy of it, or with adapters it without these."""

    def __init__(self, model: Model, options: RlOptions) -> None:
        self.options, self.model = options, None
        if options.lora_rank is None:
            self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def log_probs(self, policy: Model, packed: Packed) -> Tensor:
        """Its log-probabilities of the candidates' tokens, (B, N)."""
        if self.model is not None:
            return token_log_probs(self.model, packed, self.options.temperature)
        with policy.disable_adapter():
            return token_log_probs(policy, packed, self.options.temperature)

    @torch.no_grad()
    def move(self, policy: Model, step: int) -> None:
        """Every `sync_interval` steps: reference = mix * policy + (1 - mix) * reference.

        TR-DPO, Gorbatovski et al. 2024 (arXiv 2404.09656), the soft update.
        """
        interval = self.options.sync_interval
        if interval is None or step == 0 or step % interval:
            return
        for ours, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            ours.lerp_(theirs, self.options.sync_mix)

    def save(self, checkpoint: Path) -> None:
        """Keep it in a checkpoint, unless it never moves."""
        if self.options.sync_interval is not None:
            self.model.save_pretrained(checkpoint / FOLDER)

    def load(self, checkpoint: Path) -> None:
        """Go on from where it was."""
        if self.options.sync_interval is not None:
            self.model.load_state_dict(load_model(checkpoint / FOLDER).state_dict())
