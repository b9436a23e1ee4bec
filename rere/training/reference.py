"""The model that a policy is held to."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from rere.backbones import load_model
from rere.engine.packing import Packed
from rere.engine.scoring import token_log_probs
from rere.training.models import Model

FOLDER = "reference"
"""Where it lies in a checkpoint."""


class Reference:
    """The model that training started from: a copy of it, or with adapters it without these.

    The latter cannot move. One that `moves` is part of a checkpoint.
    """

    def __init__(self, model: Model, moves: bool, temperature: float = 1.0) -> None:
        self.model, self.moves, self.temperature = None, moves, temperature
        if not isinstance(model, PeftModel):
            self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def log_probs(self, policy: Model, packed: Packed) -> Tensor:
        """Its log-probabilities of the candidates' tokens, (B, N)."""
        if self.model is not None:
            return token_log_probs(self.model, packed, self.temperature)
        with policy.disable_adapter():
            return token_log_probs(policy, packed, self.temperature)

    @torch.no_grad()
    def move(self, policy: Model, mix: float = 1.0) -> None:
        """reference = mix * policy + (1 - mix) * reference.

        TR-DPO, Gorbatovski et al. 2024 (arXiv 2404.09656), the soft update.
        """
        for ours, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            ours.lerp_(theirs, mix)

    def save(self, checkpoint: Path) -> None:
        """Keep it in a checkpoint, unless it never moves."""
        if self.moves:
            self.model.save_pretrained(checkpoint / FOLDER)

    def load(self, checkpoint: Path) -> None:
        """Go on from where it was."""
        if self.moves:
            self.model.load_state_dict(load_model(checkpoint / FOLDER).state_dict())
