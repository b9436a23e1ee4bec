"""transformers' own `generate`, with no settings from the checkpoint.

It generates unconstrained candidates (`rere.engine.search.unconstrained`), and benchmarks compare
the constrained search with it (`rere.benchmarks.plain.generate`).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rere.engine.model.padding import left_pad

FILLER = -1e8
"""Lower scores mark missing hypotheses: `generate` gives these -1e9."""


def generate_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    eos: int,
    max_new_tokens: int,
    processors: Sequence[LogitsProcessor] = (),
    num_beams: int = 1,
    scored: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Tokens (B num_beams, T) i64 of a greedy or beam search, and their scores.

    T is at most `max_new_tokens`; shorter sequences are filled up with `eos`. Beams have length
    penalty 0. The scores (B num_beams,) are sums of log-probabilities. They are None for one beam
    and without `scored`, which makes `generate` keep the logits of every step.
    """
    ids, is_token = (tensor.to(model.device) for tensor in left_pad(prompts))
    # `generate` fills in unset options from the checkpoint's generation config; hide that.
    original, model.generation_config = model.generation_config, GenerationConfig()
    try:
        output = model.generate(
            input_ids=ids,
            attention_mask=is_token.long(),
            logits_processor=LogitsProcessorList(processors),
            generation_config=GenerationConfig(
                num_beams=num_beams,
                num_return_sequences=num_beams,
                # `generate` warns about these options with one beam.
                **({"length_penalty": 0.0, "early_stopping": False} if num_beams > 1 else {}),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=eos,
                pad_token_id=eos,
                return_dict_in_generate=True,
                output_scores=scored,
                **options,
            ),
        )
    finally:
        model.generation_config = original
    return output.sequences[:, ids.shape[1] :], output.get("sequences_scores")
