"""transformers' own `generate`, asked for nothing but what is said here.

The search is measured against it, held to the catalogue (`rere.benchmarks.plain.generate`), and it makes
the candidates that no catalogue holds (`rere.engine.search.unconstrained`).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rere.engine.model.padding import left_pad

FILLER = -1e8
"""`generate` scores what stands for missing hypotheses -1e9."""


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
    """What a greedy or a beam search finds: tokens (B num_beams, T) i64 and scores.

    T is at most `max_new_tokens`; what ends before is filled up with `eos`. Beams have length
    penalty 0. The scores (B num_beams,), sums of log-probabilities, are kept for beams and where
    `scored` asks for them, since they cost the logits of every step.
    """
    ids, real = (tensor.to(model.device) for tensor in left_pad(prompts))
    # What a config leaves open `generate` takes from the checkpoint's: that has no say here.
    checkpoints, model.generation_config = model.generation_config, GenerationConfig()
    try:
        output = model.generate(
            input_ids=ids,
            attention_mask=real.long(),
            logits_processor=LogitsProcessorList(processors),
            generation_config=GenerationConfig(
                num_beams=num_beams,
                num_return_sequences=num_beams,
                # What one beam would warn about.
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
        model.generation_config = checkpoints
    return output.sequences[:, ids.shape[1] :], output.get("sequences_scores")
