"""The sizes of passes and searches follow the device, and are chosen once."""

import pytest
import torch
from search_oracles import random_catalogue
from tiny_models import causal_lm

from rere.engine.search import batch_size, beam, sizes
from rere.engine.search.batch_size import estimate_bytes, max_batch_size
from rere.engine.search.beam import beam_search
from rere.engine.search.layout import full_pass_tokens
from rere.engine.search.sizes import SearchSizes, choose_sizes, largest_full_pass
from rere.prefix_tree import PrefixTree

TREE = PrefixTree.build(random_catalogue(50, seed=1))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([4, 4, 4, 4.9, 5, 5.1, 9], 1024),
        ([4, 5.1, 4, 4, 4, 4, 4], 64),  # ends at the first slow pass
        ([4, 4, 4, 4, 4, 4, 4], 4096),
        ([4, 8, 16, 32, 64, 128, 256], 64),
    ],
)
def test_largest_full_pass_by_hand(seconds, expected):
    timed = []

    def time_pass(tokens):
        timed.append(tokens)
        return seconds[sizes.TIMED_TOKENS.index(tokens)]

    assert largest_full_pass(time_pass) == expected
    assert timed == [*sizes.TIMED_TOKENS[: len(timed)]]
    assert timed[-1] == min(2 * expected, 4096)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_device_that_is_not_timed_has_constants(device):
    model = causal_lm("qwen2", 100).to(device)
    host = sizes.available_memory(torch.device("cpu"))
    expected = SearchSizes(full_pass_tokens(model), host // 2)
    assert choose_sizes(model) == expected
    # The host's memory is not divided among its uses.
    reserved = choose_sizes(model, reserved=host).search_memory
    assert reserved == (host // 2 if device == "cpu" else 0)


def test_a_gpu_is_timed(timed_device, monkeypatch):
    model = causal_lm("qwen2", 100)
    assert choose_sizes(model).full_pass_tokens in sizes.TIMED_TOKENS
    assert choose_sizes(model, is_timed=False).full_pass_tokens == full_pass_tokens(model)
    monkeypatch.setattr(sizes, "time_pass", lambda model, tokens: float(tokens > 512))
    assert choose_sizes(model) == SearchSizes(512, 40 << 30)


def test_a_timed_pass_has_the_tokens_it_says(timed_device, monkeypatch):
    model, shapes = causal_lm("qwen2", 100), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **x: shapes.append(x["input_ids"].numel()) or forward(**x)
    )
    assert sizes.time_pass(model, 256) > 0
    assert shapes == [256] * (sizes.WARM_UPS + sizes.REPEATS)


@pytest.mark.parametrize("memory", [1 << 17, 1 << 20, 1 << 23])
def test_rows_of_a_search_follow_the_sizes_not_the_free_memory(memory, monkeypatch):
    model, search = causal_lm("qwen2", 100), (50, 5, "catalogue")
    chosen = SearchSizes(768, memory)
    rows = max_batch_size(model, TREE, *search, chosen)
    assert rows == 1 or estimate_bytes(model, TREE, rows, *search, 768) <= memory
    assert rows == 32 or estimate_bytes(model, TREE, 2 * rows, *search, 768) > memory
    monkeypatch.setattr(batch_size, "available_memory", lambda device: 0)
    assert max_batch_size(model, TREE, *search, chosen) == rows
    # A run that continues on a smaller device takes no more than this one has.
    monkeypatch.setattr(batch_size, "total_memory", lambda device: memory)
    assert max_batch_size(model, TREE, *search, chosen) <= rows


@pytest.mark.parametrize("tokens", [0, 10**6])
def test_a_search_feeds_as_many_tokens_as_its_sizes_say(tokens, monkeypatch):
    """Long chains take fewer passes, and find the same."""
    model, passes = causal_lm("qwen2", 24), []
    feed = beam.PathScorer.feed
    monkeypatch.setattr(beam.PathScorer, "feed", lambda *x: passes.append(1) or feed(*x))
    tree = PrefixTree.build([[token, *range(5, 15), 1] for token in (2, 3)])
    found = beam_search(model, tree, [[8], [9]], 2, sizes=SearchSizes(tokens, 1 << 30))
    assert len(passes) == (1 if tokens else 11)
    expected = beam_search(model, tree, [[8], [9]], 2)
    assert torch.equal(found.leaf, expected.leaf)
    torch.testing.assert_close(found.score, expected.score)
