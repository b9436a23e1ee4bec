"""A small random model of the same family as a large one, to try what depends on the family."""

import copy

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rere.backbones import random_model

HIDDEN_SIZE = 128
HEADS = 4
MAX_KINDS = 4
"""Different values of a list by layer; one with more holds layers' numbers."""
INNER_WIDTHS = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("ffn_dim", "n_inner"),
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def small_model(config: PreTrainedConfig) -> tuple[PreTrainedModel, str]:
    """A random float32 model with few layers and narrow widths, and what it is in words.

    The widths stay as they are where a narrow model cannot be built or run. Vocabulary, positions
    and the sizes of heads stay in any case. Draws no random numbers of the process.
    """
    shallow = few_layers(config)
    try:
        return build(narrow(shallow))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return build(shallow)


def few_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy with one layer of each kind, two at least."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    num_layers = text.num_hidden_layers
    by_layer = {
        name: values
        for name, values in vars(text).items()
        if isinstance(values, list | tuple)
        and len(values) == num_layers
        and len(set(map(repr, values))) <= MAX_KINDS
    }
    kinds = [repr(kind) for kind in zip(*by_layer.values(), strict=True)] or [""] * num_layers
    first = {kinds.index(kind) for kind in kinds}
    kept = sorted(first if len(first) > 1 else range(min(2, num_layers)))
    for name, values in by_layer.items():
        setattr(text, name, [values[layer] for layer in kept])
    text.num_hidden_layers = len(kept)
    return changed


def narrow(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy with few heads, of the same size, and narrow layers."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    width, heads = text.hidden_size, text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    text.num_attention_heads = min(heads, HEADS)
    if hasattr(text, "num_key_value_heads"):
        text.num_key_value_heads = {1: 1, heads: min(heads, HEADS)}.get(groups, HEADS // 2)
    has_own_size = getattr(text, "head_dim", None) is not None
    text.hidden_size = HIDDEN_SIZE if has_own_size else width // heads * text.num_attention_heads
    if getattr(text, "word_embed_proj_dim", None) == width:
        text.word_embed_proj_dim = text.hidden_size
    for name in INNER_WIDTHS:
        if getattr(text, name, None) is not None:
            setattr(text, name, 2 * text.hidden_size)
    for name in EXPERTS:
        if getattr(text, name, None) is not None:
            setattr(text, name, min(getattr(text, name), 4))
            text.num_experts_per_tok = min(text.num_experts_per_tok, 2)
    return changed


@torch.no_grad()
def build(config: PreTrainedConfig) -> tuple[PreTrainedModel, str]:
    """A random model of a config that has computed something, and what it is in words."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = random_model(config).eval()
    model(input_ids=torch.tensor([[0, 1, 2]]))
    text = config.get_text_config()
    name = f"a random {type(model).__name__} of {text.num_hidden_layers} layers, width"
    return model, f"{name} {text.hidden_size}"
