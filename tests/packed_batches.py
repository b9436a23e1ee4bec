"""Packed batches and the plain expanded batches that they must equal, in values and gradients."""

import copy

import peft
import torch
from tiny_models import VOCAB_SIZE, precise, tolerance
from torch.nn.utils.rnn import pad_sequence

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import pack
from rere.prefix_tree import PrefixTree

SCORINGS = ("vocabulary", "catalogue")
PROMPTS = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
CANDIDATES = [
    [[4, 5, 1], [4, 6, 7, 8, 1], [1]],  # three, with a shared prefix, one of a single token
    [[9, 1]],  # a single candidate
    [[4, 5, 1], [4, 5, 1], [10, 11, 12, 13, 14, 15, 1], [1], [2, 1]],  # five, two of them equal
]
SEQUENCES = [
    *([3, *s] for s in ([4, 1], [4, 6, 7, 8, 1], [4, 6, 7, 9, 10, 1], [4, 6, 7, 9, 11, 5, 5, 1])),
    *([3, *s] for s in ([12, 13, 14, 15, 16, 17, 1], [12, 13, 14, 15, 16, 18, 1], [19, 20, 1])),
]
TREE = PrefixTree.build(SEQUENCES)
ITEMS = [[0, 3, 2, 5], [6], [1, 1, 4, 3, 0]]  # all paths and lengths, two of them equal
LEAVES = pad_sequence([TREE.leaf_of_item[row] for row in ITEMS], True, padding_value=-1)
QWEN2 = precise("qwen2", seed=1)


def pack_for(scoring):
    """PROMPTS packed with CANDIDATES, or with the items ITEMS under `catalogue` scoring."""
    if scoring == "vocabulary":
        return pack(PROMPTS, CANDIDATES)
    return pack_leaves(PROMPTS, LEAVES, TREE, scoring)


def log_prob_of(log_probs, token):
    return log_probs[token]


def entropy_of(log_probs, token):
    return -(log_probs.exp() * log_probs).sum()


def score_expanded(model, prompts, candidates, allowed=None, temperature=1.0, value=log_prob_of):
    """One tensor of token values per candidate, by a right-padded row for each candidate.

    `value` maps the log-probabilities of the next token and the token to the value. `allowed` maps
    a path to the tokens that may follow it; then only tokens with alternatives have values.
    """
    pairs = [(p, c) for p, group in zip(prompts, candidates, strict=True) for c in group]
    longest = max(len(p) + len(c) for p, c in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    is_token = torch.zeros_like(ids)
    for row, (p, c) in enumerate(pairs):
        ids[row, : len(p) + len(c)] = torch.tensor([*p, *c])
        is_token[row, : len(p) + len(c)] = 1
    logits = model(input_ids=ids, attention_mask=is_token).logits / temperature
    found = []
    for row, (p, c) in enumerate(pairs):
        found.append([])
        for end, token in enumerate(c):
            among = range(VOCAB_SIZE) if allowed is None else sorted(allowed(c[:end]))
            if len(among) > 1:
                log_probs = logits[row, len(p) + end - 1, list(among)].log_softmax(-1)
                found[-1].append(value(log_probs, among.index(token)))
    return [torch.stack(values) for values in found]


def score_expanded_for(scoring, model, **options):
    """The values of the batch that `pack_for` packs."""
    if scoring == "vocabulary":
        return score_expanded(model, PROMPTS, CANDIDATES, **options)
    candidates = [[SEQUENCES[item] for item in row] for row in ITEMS]
    return score_expanded(model, PROMPTS, candidates, tokens_after, **options)


def tokens_after(path):
    """The tokens with which some item of SEQUENCES continues `path`."""
    return {s[len(path)] for s in SEQUENCES if s[: len(path)] == path}


def split_by_candidate(values, packed):
    """Token values (B, N) of a packed batch as one tensor per candidate."""
    split = []
    for row, candidate in zip(values, packed.candidate, strict=True):
        count = int(candidate[candidate < packed.num_candidates].max()) + 1
        split += [row[candidate == g] for g in range(count)]
    return split


def weighted_sum(values):
    """A sum with distinct weights of either sign, so that no token's gradient can cancel."""
    values = torch.cat(tuple(values))
    return (torch.linspace(-2, 3, len(values)).to(values) * values).sum()


def gradients_of(model, loss):
    """The gradient of each trainable weight, by name; None for an unused one."""
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return dict(zip(weights, found, strict=True))


def assert_gradients_equal(actual, expected, tolerance=1e-5):
    for name, gradient in expected.items():
        if gradient is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(
                actual[name],
                gradient,
                atol=tolerance,
                rtol=tolerance,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def gradient_tolerance(model):
    """How far gradients may differ. RMS norms compute in float32, whatever the model's type."""
    has_rms_norm = any("RMSNorm" in type(module).__name__ for module in model.modules())
    return 1e-5 if has_rms_norm else tolerance(model)


def with_adapters(model):
    """A copy of the model with nonzero adapters at all its linear layers."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2, generator=generator)
    return adapted.to(model.dtype)
