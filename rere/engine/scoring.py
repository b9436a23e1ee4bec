"""Log-probabilities of given candidates, with gradient, the prompt computed once."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.engine.masks import attention_mask
from rere.engine.packing import Packed, upcast


def token_log_probs(model: PreTrainedModel, packed: Packed) -> Tensor:
    """log p(token | prompt, earlier tokens) over the whole vocabulary, (B, N) f32.

    Places that `packed.candidate` marks as padding hold 0. Logits are computed only where a
    candidate token is predicted.
    """
    output = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=attention_mask(
            model.config, packed.visible, packed.position_ids, packed.position_ids, model.dtype
        ),
        logits_to_keep=packed.num_kept,
        use_cache=False,
    )
    logits = upcast(output.logits)  # (B, P, V)
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    log_probs = logits[rows, packed.source, packed.target]
    log_probs = log_probs - logits.logsumexp(-1).gather(1, packed.source)
    return log_probs.masked_fill(packed.candidate == packed.num_candidates, 0.0)


def sum_by_candidate(values: Tensor, packed: Packed) -> Tensor:
    """Token values (B, N) added up candidate by candidate, (B, G)."""
    sums = values.new_zeros(len(values), packed.num_candidates + 1)
    return sums.scatter_add(1, packed.candidate, values)[:, :-1]
