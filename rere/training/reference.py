"""The reference model, which the policy is regularised towards."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from rere.backbones import load_model
from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import token_log_probs
from rere.engine.model.caches import PromptCache
from rere.engine.model.decoder import recompute_prompts
from rere.training.models import Model

FOLDER = "reference"
"""Its folder in a checkpoint."""


class Reference:
    """The model that training started from: a frozen copy, or the policy without its adapters.

    Only a copy can be synced. A reference that `is_synced` is saved in checkpoints.
    """

    def __init__(self, model: Model, is_synced: bool, temperature: float = 1.0) -> None:
        self.model, self.is_synced, self.temperature = None, is_synced, temperature
        if not isinstance(model, PeftModel):
            self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def log_probs(
        self, policy: Model, packed: PackedBatch, prompt_cache: PromptCache | None = None
    ) -> Tensor:
        """Log-probabilities of the candidates' tokens under the reference, (B, N).

        In half precision the reference computes the prompts of the policy's `prompt_cache` in a
        separate pass, as the policy did: else rounding would give equal models a KL.
        """
        if self.model is not None:
            return self._log_probs(self.model, packed, prompt_cache)
        with policy.disable_adapter():
            return self._log_probs(policy, packed, prompt_cache)

    @torch.no_grad()
    def _log_probs(
        self, model: Model, packed: PackedBatch, prompt_cache: PromptCache | None
    ) -> Tensor:
        is_separate = prompt_cache is not None and uses_half_precision(model)
        own = recompute_prompts(model, prompt_cache) if is_separate else None
        return token_log_probs(model, packed, self.temperature, own)

    @torch.no_grad()
    def sync(self, policy: Model, mix: float = 1.0) -> None:
        """reference = mix * policy + (1 - mix) * reference.

        The soft update of TR-DPO, Gorbatovski et al. 2024 (arXiv 2404.09656).
        """
        for ours, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            ours.lerp_(theirs, mix)

    def save(self, checkpoint: Path) -> None:
        """Save it in a checkpoint, unless it still is the initial model."""
        if self.is_synced:
            self.model.save_pretrained(checkpoint / FOLDER)

    def load(self, checkpoint: Path) -> None:
        """Restore it from a checkpoint."""
        if self.is_synced:
            self.model.load_state_dict(load_model(checkpoint / FOLDER).state_dict())


def uses_half_precision(model: Model) -> bool:
    """Whether rounding differs visibly between passes, so that equal models need equal passes."""
    is_half = torch.finfo(model.dtype).bits < 32
    return is_half or torch.is_autocast_enabled(model.device.type)
