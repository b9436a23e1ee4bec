"""Choose the number of rows that a search takes at a time, by memory and speed."""

from transformers import PreTrainedModel

from rere.engine import SearchScoring
from rere.engine.search.layout import full_pass_tokens
from rere.engine.search.sizes import MEMORY_SHARE, SearchSizes, available_memory, total_memory
from rere.prefix_tree import PrefixTree

MAX_ROWS = {"cpu": 32}
"""Rows beyond which a larger batch is no faster, by device."""
MAX_ROWS_ELSEWHERE = 256


def max_batch_size(
    model: PreTrainedModel,
    tree: PrefixTree,
    prompt_length: int,
    num_beams: int,
    scoring: SearchScoring,
    sizes: SearchSizes | None = None,
) -> int:
    """Rows per search for prompts of up to `prompt_length` tokens; at least one.

    By the memory of `sizes`, or else by what is available now. Always a power of two, so that small
    differences in memory seldom change the batches: other batches round differently.
    """
    rows = MAX_ROWS.get(model.device.type, MAX_ROWS_ELSEWHERE)
    budget = MEMORY_SHARE * available_memory(model.device)
    if sizes is not None:  # perhaps those of a run that began on a larger device
        budget = min(sizes.search_memory, MEMORY_SHARE * total_memory(model.device))
    search = prompt_length, num_beams, scoring
    while rows > 1 and estimate_bytes(model, tree, rows, *search) > budget:
        rows //= 2
    return rows


def estimate_bytes(
    model: PreTrainedModel,
    tree: PrefixTree,
    rows: int,
    prompt_length: int,
    num_beams: int,
    scoring: SearchScoring,
) -> int:
    """Upper estimate of the bytes that a search of `rows` rows needs besides the weights.

    Counts the cache of all tokens and, for the largest forward pass, the attention mask, a layer's
    states and the logits: at every position under `vocabulary` scores, else one per beam.
    """
    config, item = model.config.get_text_config(), model.dtype.itemsize
    all_heads = getattr(config, "num_attention_heads", 1)  # recurrent models have none
    num_heads = getattr(config, "num_key_value_heads", None) or all_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    most = max(num_beams, full_pass_tokens(model) // rows)
    fed, in_one_pass = count_fed_tokens(tree, num_beams, scoring, most)
    total, widest = prompt_length + fed, max(prompt_length, in_one_pass)
    positions = in_one_pass if scoring == "vocabulary" else num_beams
    cache = 3 * config.num_hidden_layers * num_heads * head * item * total  # with spare capacity
    mask = (item + 1) * widest * total + num_beams * fed
    states = 16 * config.hidden_size * item * widest
    logits = (item + 8) * config.vocab_size * positions  # also in float32, with exponentials
    return int(rows * (cache + mask + states + logits))


def count_fed_tokens(
    tree: PrefixTree, num_beams: int, scoring: SearchScoring, most: int
) -> tuple[int, int]:
    """The most tokens that a row feeds behind its prompt, in all passes and in one.

    Under `vocabulary` scores a pass feeds at most `most`. Otherwise it feeds whole edges, except
    those into leaves.
    """
    length, depth = tree.edge_length, tree.depth
    if scoring != "vocabulary":
        inner = tree.fanout > 0
        length, depth = length * inner, depth * inner
    fed = min(num_beams * int(depth.max()), int(length.sum()))
    in_one_pass = min(num_beams * int(length.max()), fed)
    return fed, min(in_one_pass, most) if scoring == "vocabulary" else in_one_pass
