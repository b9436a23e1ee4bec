"""The model that a policy is held to."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from rere.backbones import load_model
from rere.engine.candidates.packing import Packed
from rere.engine.candidates.scoring import token_log_probs
from rere.engine.model.activation_reuse import uses_half_precision
from rere.engine.model.decoder import recompute_prompts
from rere.engine.model.prompt_cache import KeptPrompts
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

    def log_probs(
        self, policy: Model, packed: Packed, prompts: KeptPrompts | None = None
    ) -> Tensor:
        """Its log-probabilities of the candidates' tokens, (B, N).

        `prompts` are those that the policy has kept. Where rounding is coarse, the reference
        computes them apart as well, so that the two do not differ by it where they are the same.
        """
        if self.model is not None:
            return self._log_probs(self.model, packed, prompts)
        with policy.disable_adapter():
            return self._log_probs(policy, packed, prompts)

    @torch.no_grad()
    def _log_probs(self, model: Model, packed: Packed, prompts: KeptPrompts | None) -> Tensor:
        apart = prompts is not None and uses_half_precision(model)
        own = recompute_prompts(model, prompts) if apart else None
        return token_log_probs(model, packed, self.temperature, own)

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
