"""A prompt shared by a tree of tokens, against a whole sequence for every token."""

import pytest
import torch
from tiny_models import FAMILIES, MASK_IGNORING, VOCAB_SIZE, causal_lm, precise, tolerance
from transformers import Gemma3TextConfig, GPT2Config, MistralConfig, Qwen2Config

from rere.engine.model.attention import NAME, own_attention
from rere.engine.model.decoder import (
    FullSequenceDecoder,
    GrowingLayer,
    SharedPromptDecoder,
    follows_attention_mask,
)
from rere.engine.model.masks import attention_mask, causal, layer_windows
from rere.engine.model.unpadding import UnpaddedTokens

PROMPTS = [[5, 9, 3, 4, 7, 11, 2], [8], [2, 3, 22]]
OPENING = torch.tensor([6, 10])


def paths(num_rows, num_tokens, seed):
    """A random tree a row: each token's parent, its depth, and which tokens are on its path."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.zeros(num_rows, num_tokens, num_tokens, dtype=torch.bool)
    for row in visible:
        for token in range(num_tokens):
            parent = int(torch.randint(-1, token, (), generator=generator)) if token else -1
            if parent >= 0:
                row[token] = row[parent]
            row[token, token] = True
    return visible, visible.sum(-1) - 1 + len(OPENING)


def all_of(num_columns, keep):
    """UnpaddedTokens of the prompts' rows, none of them padding."""
    real = torch.ones(len(PROMPTS), num_columns, dtype=torch.bool)
    return UnpaddedTokens(real, real.numel(), keep, len(PROMPTS) * keep)


@torch.no_grad()
def logits(decoder, seed=0):
    """After prompt and opening, and after 30 random tokens fed 20 and 10 at a time."""
    visible, depth = paths(len(PROMPTS), 30, seed)
    ids = torch.randint(VOCAB_SIZE, depth.shape, generator=torch.Generator().manual_seed(seed))
    parts = [
        decoder.prefill(OPENING, logits_to_keep=3),
        decoder.feed(ids[:, :20], depth[:, :20], visible[:, :20, :20], all_of(20, 20)),
        decoder.feed(ids[:, 20:], depth[:, 20:], visible[:, 20:], all_of(10, 4)),
    ]
    return torch.cat([part.unflatten(0, (len(PROMPTS), -1)) for part in parts], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("make", [SharedPromptDecoder, FullSequenceDecoder])
@pytest.mark.parametrize("family", ["qwen2", "gemma3", "gpt2"])
def test_forgetting_what_nothing_follows_changes_no_logit(family, make):
    decoder = make(precise(family), PROMPTS)
    visible, depth = paths(len(PROMPTS), 30, seed=0)
    ids = torch.randint(VOCAB_SIZE, depth.shape, generator=torch.Generator().manual_seed(0))
    decoder.prefill(OPENING, logits_to_keep=3)
    decoder.feed(ids[:, :20], depth[:, :20], visible[:, :20, :20], all_of(20, 20))
    before, new = visible[:, 20:, :20], visible[:, 20:, 20:]
    followed = before.any(1)
    num_logits = int(followed.sum(-1).max())
    assert num_logits < 20
    kept = followed.int().argsort(dim=-1, descending=True, stable=True)[:, :num_logits]
    decoder.keep(kept)
    before = before.gather(2, kept[:, None, :].expand(-1, 10, -1))
    visible = torch.cat([before, new], dim=-1)
    actual = decoder.feed(ids[:, 20:], depth[:, 20:], visible, all_of(10, 4))
    expected = logits(make(precise(family), PROMPTS))[:, -4:].flatten(0, 1)
    torch.testing.assert_close(actual, expected, atol=100 * tolerance(precise(family)), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prompt_changes_no_logit(family):
    model = precise(family)
    shared, plain = (
        logits(SharedPromptDecoder(model, PROMPTS)),
        logits(FullSequenceDecoder(model, PROMPTS)),
    )
    assert shared.shape == (3, 27, VOCAB_SIZE)
    torch.testing.assert_close(shared, plain, atol=100 * tolerance(model), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_heads_that_share_keys_need_no_copies_of_them(family):
    model = precise(family)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    expected = (
        logits(SharedPromptDecoder(model, PROMPTS)),
        logits(FullSequenceDecoder(model, PROMPTS)),
    )
    with own_attention(model):
        assert model.config._attn_implementation == NAME
        actual = (
            logits(SharedPromptDecoder(model, PROMPTS)),
            logits(FullSequenceDecoder(model, PROMPTS)),
        )
    assert model.config._attn_implementation == "sdpa"
    for some, same in zip(actual, expected, strict=True):
        torch.testing.assert_close(some, same, rtol=0, atol=tolerance(model))


def test_attention_that_was_chosen_stays():
    model = precise("qwen2")
    model.set_attn_implementation("eager")
    with own_attention(model):
        assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", FAMILIES | MASK_IGNORING)
def test_plain_is_the_models_own_forward(family):
    model = precise(family)
    ids = torch.tensor([[2, 3, 22, 6, 10]])
    expected = model(input_ids=ids).logits[0, -3:]
    actual = FullSequenceDecoder(model, PROMPTS).prefill(OPENING, logits_to_keep=3)[-3:]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_plain_passes_hold_as_many_logits_as_allowed(monkeypatch):
    model = precise("qwen2")
    expected = logits(FullSequenceDecoder(model, PROMPTS))
    monkeypatch.setattr(FullSequenceDecoder, "MAX_LOGITS", 5 * 20 * VOCAB_SIZE)
    torch.testing.assert_close(logits(FullSequenceDecoder(model, PROMPTS)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_who_follows_a_mask_by_position(dtype):
    for family in FAMILIES:
        assert follows_attention_mask(causal_lm(family, VOCAB_SIZE).to(dtype)), family
    for family in MASK_IGNORING:
        assert not follows_attention_mask(causal_lm(family, VOCAB_SIZE).to(dtype)), family


@pytest.mark.parametrize("seed", range(4))
def test_who_follows_a_mask_under_autocast(seed):
    """Weights are float32 there, and products as coarse as bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        for family in FAMILIES:
            assert follows_attention_mask(causal_lm(family, VOCAB_SIZE, seed)), family
        for family in MASK_IGNORING:
            assert not follows_attention_mask(causal_lm(family, VOCAB_SIZE, seed)), family


def test_a_probe_without_memory_says_so(monkeypatch):
    def feed(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SharedPromptDecoder, "feed", feed)
    with pytest.raises(torch.OutOfMemoryError):
        follows_attention_mask(causal_lm("qwen2", VOCAB_SIZE))


def test_windows_of_layer_types():
    assert layer_windows(GPT2Config()) == {"full_attention": None}
    assert layer_windows(Qwen2Config()) == {"full_attention": None}
    assert layer_windows(MistralConfig(sliding_window=9)) == {"sliding_attention": 9}
    assert layer_windows(MistralConfig(sliding_window=None)) == {"full_attention": None}
    expected = {"full_attention": None, "sliding_attention": 7}
    assert layer_windows(Gemma3TextConfig(sliding_window=7)) == expected


def test_masks_by_hand():
    real = torch.tensor([[False, True, True, True]])
    assert causal(real)[0].int().tolist() == [
        [1, 0, 0, 0],  # padding sees itself
        [0, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 1],
    ]
    position = torch.tensor([[0, 0, 1, 2]])
    config = MistralConfig(sliding_window=2)
    mask = attention_mask(config, causal(real), position, position, torch.float32)
    assert mask.shape == (1, 1, 4, 4)
    assert (mask[0, 0] == 0).int().tolist()[3] == [0, 0, 1, 1]


def test_a_growing_layer_holds_what_was_written():
    layer, written = GrowingLayer(), torch.randn(2, 3, 40, 4)
    for start, end in [(0, 5), (5, 6), (6, 20), (20, 40)]:
        keys, values = layer.update(written[:, :, start:end], -written[:, :, start:end])
        assert layer.get_seq_length() == end
        torch.testing.assert_close(keys, written[:, :, :end])
        torch.testing.assert_close(values, -written[:, :, :end])
