"""The operations of a model, against torch's own counter of them."""

import pytest
import torch
from tiny_models import VOCAB_SIZE, causal_lm
from torch.utils.flop_counter import FlopCounterMode

from rere.planning.operations import Counts, Operations, Shape

FAMILIES = ["qwen2", "llama", "gemma2", "gpt2"]
TOKENS = 7
COUNTS = Counts(tokens=TOKENS, pairs=TOKENS**2, logits=TOKENS * VOCAB_SIZE, passes=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_takes_the_operations_that_torch_counts(family):
    model = causal_lm(family, VOCAB_SIZE, attn_implementation="eager")
    operations = Shape.of(model.config).forward(COUNTS)
    assert operations.head == 2 * model.config.hidden_size * COUNTS.logits
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.arange(TOKENS)[None]).logits
    assert operations.total == pytest.approx(counter.get_total_flops(), rel=0.02)  # and RoPE's
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert 2 * operations.total == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_operations_of_a_layer_by_hand():
    """Width 16, 4 heads of 4, 2 for keys, 32 in the middle: three matrices there, four before."""
    shape = Shape.of(causal_lm("llama", VOCAB_SIZE).config)
    attention, middle = 16 * 16 + 2 * 16 * 8 + 16 * 16, 3 * 16 * 32
    assert shape == Shape(2, 2 * (attention + middle), 2 * 16, 16)
    assert shape.forward(Counts(tokens=3, pairs=5, logits=11)) == Operations(
        layers=2 * 3 * 2 * (attention + middle) + 4 * 5 * 32, head=2 * 16 * 11
    )


def test_counts_add_up():
    assert Counts(1, 2, 3, 4).plus(Counts(1, 1, 1, 1), 0.5) == Counts(1.5, 2.5, 3.5, 4.5)
