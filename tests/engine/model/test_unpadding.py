"""Passes without padding give the same logits and gradients as with it, for fewer tokens."""

import pytest
import torch
from tiny_models import FAMILIES, VOCAB_SIZE, precise, tolerance

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import pack
from rere.engine.candidates.scoring import token_log_probs
from rere.engine.model import attention
from rere.engine.model.decoder import (
    FullSequenceDecoder,
    SharedPromptDecoder,
    eval_mode,
    supports_shared_prompt,
)
from rere.engine.model.unpadding import UnpaddedTokens
from rere.engine.search.beam import beam_search
from rere.prefix_tree import PrefixTree

PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
CANDIDATES = [[[4, 5, 1], [4, 6, 7, 8, 1], [1]], [[9, 1]], [[10, 11, 12, 13, 14, 15, 1], [2, 1]]]
TREE = PrefixTree.build(
    [[3, 4, 1], [3, 4, 6, 7, 1], [3, 12, 13, 14, 15, 1], [3, 12, 13, 14, 16, 1], [3, 9, 1], [10, 1]]
)
IS_TOKEN = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 0, 1, 0], [1, 0, 0, 1, 1]], dtype=torch.bool)
TOKENS = UnpaddedTokens(IS_TOKEN, num_tokens=8, logits_to_keep=2, num_logits=4)


def test_indices_by_hand():
    # The rows hold columns 0 to 4, 5 to 9 and 10 to 14; tokens of the last two columns come last.
    assert TOKENS.token_index.tolist() == [0, 1, 2, 10, 3, 8, 13, 14]
    assert TOKENS.logits_index[0, 0] == 0
    assert TOKENS.logits_index[1, 0] == 1
    assert TOKENS.logits_index[2].tolist() == [2, 3]
    logits = torch.arange(6.0).view(3, 2, 1)
    assert TOKENS.drop_padding(logits)[:, 0].tolist() == [0, 2, 4, 5]
    whole = UnpaddedTokens(torch.ones_like(IS_TOKEN), 15, 2, 6)
    assert whole.drop_padding(logits)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_without_padding_changes_no_logit(family, rows_or_blocks):
    model = precise(family)
    ids = torch.randint(VOCAB_SIZE, IS_TOKEN.shape, generator=torch.Generator().manual_seed(0))
    # Each row feeds a path behind its prompt, then one more token behind that path.
    visible = IS_TOKEN[:, None, :] & torch.ones(5, 5).tril().bool() | torch.eye(5).bool()
    depth = IS_TOKEN.cumsum(-1)  # the first is behind the opening token
    behind = torch.cat([IS_TOKEN[:, None, :], torch.ones(3, 1, 1).bool()], dim=-1)
    one = UnpaddedTokens(torch.tensor([[True], [False], [True]]), 2, 1, 2)

    def logits(decoder):
        passes = [
            decoder.prefill(torch.tensor([6]), logits_to_keep=1),
            decoder.feed(ids, depth, visible, TOKENS),
            decoder.feed(ids[:, :1], 1 + IS_TOKEN.sum(-1, keepdim=True), behind, one),
        ]
        assert [len(logits) for logits in passes] == [3, 4, 2]
        return torch.cat(passes)

    with eval_mode(model):
        actual = logits(SharedPromptDecoder(model, PROMPTS))
    expected = logits(FullSequenceDecoder(model, PROMPTS))
    torch.testing.assert_close(actual, expected, atol=100 * tolerance(model), rtol=0)


@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_without_padding_changes_no_gradient(
    family, scoring, rows_or_blocks, compute_padding
):
    model = precise(family)
    packed = pack(PROMPTS, CANDIDATES)
    if scoring == "catalogue":
        leaves = torch.tensor([[1, 2, 3], [0, -1, -1], [3, 4, -1]])
        packed = pack_leaves(
            PROMPTS, TREE.leaf_of_item[leaves].where(leaves >= 0, -1), TREE, scoring
        )
    assert packed.num_tokens < packed.input_ids.numel()

    def scored():
        log_prob = token_log_probs(model, packed)
        weights = [w for w in model.parameters() if w.requires_grad]
        factor = torch.linspace(-1, 1, log_prob.numel()).view_as(log_prob)
        gradients = torch.autograd.grad((log_prob * factor).sum(), weights, allow_unused=True)
        return [log_prob, *(g for g in gradients if g is not None)]

    actual = scored()
    compute_padding()
    for ours, theirs in zip(actual, scored(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma3"])
def test_a_search_without_padding_finds_the_same(family, scoring, rows_or_blocks, compute_padding):
    model = precise(family)
    actual = beam_search(model, TREE, PROMPTS, 3, scoring)
    compute_padding()
    expected = beam_search(model, TREE, PROMPTS, 3, scoring)
    assert torch.equal(actual.leaf, expected.leaf)
    torch.testing.assert_close(actual.score, expected.score)


@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
def test_layers_get_no_padding(scoring, rows_or_blocks, compute_padding):
    model, fed = precise("qwen2"), []
    assert supports_shared_prompt(model)
    layer = model.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[:2]))
    beam_search(model, TREE, PROMPTS, 3, scoring)
    assert fed[0] == (1, 10)  # prompts of 6, 1 and 3 tokens
    compute_padding()
    wanted, fed[:] = sum(a * b for a, b in fed), []
    beam_search(model, TREE, PROMPTS, 3, scoring)
    assert fed[0] == (3, 6)
    assert wanted < sum(a * b for a, b in fed)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_chosen_attention_is_restored(implementation):
    model = precise("qwen2")
    model.set_attn_implementation(implementation)
    actual = token_log_probs(model, pack(PROMPTS, CANDIDATES))
    assert model.config._attn_implementation == implementation
    assert attention.current.get() is None
    expected = token_log_probs(precise("qwen2"), pack(PROMPTS, CANDIDATES))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
