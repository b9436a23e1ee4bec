"""Log-probabilities of given candidates, with gradient, what they share computed once."""

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from rere.engine.masks import attention_mask
from rere.engine.packing import Packed, upcast


def token_log_probs(model: PreTrainedModel, packed: Packed, temperature: float = 1.0) -> Tensor:
    inner = extract_model_from_parallel(model)
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=attention_mask(
            inner.config, packed.visible, packed.position_ids, packed.position_ids, inner.dtype
        ),
        logits_to_keep=packed.num_kept,
        use_cache=False,
    ).logits.flatten(0, 1)  # (B P, V)
    logits = upcast(logits) / temperature
    chosen = logits.flatten()[packed.source * logits.shape[-1] + packed.target]
    if packed.allowed is None:
        norm = logits.logsumexp(-1)[packed.source]
    else:
        norm = logits.new_zeros(len(logits))
        a = packed.allowed
        x = logits.flatten()[a.source * logits.shape[-1] + a.token]
        m = torch.full_like(norm, -torch.inf).scatter_reduce(0, a.source, x.detach(), "amax")
        norm = norm.index_add(0, a.source, (x - m[a.source]).exp()).log() + m
        norm = norm[packed.source]
    log_prob = chosen - norm
    return pad(log_prob, (0, 1))[packed.prediction]


def sum_by_candidate(values: Tensor, packed: Packed) -> Tensor:
    """Token values (B, N) added up candidate by candidate, (B, G)."""
    sums = values.new_zeros(len(values), packed.num_candidates + 1)
    return sums.scatter_add(1, packed.candidate, values)[:, :-1]
