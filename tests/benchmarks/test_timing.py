"""Seconds in turn, the choice of sizes, and peak memory."""

import itertools

import pytest
import torch

from rere.benchmarks import timing
from rere.benchmarks.timing import Timings, measure_peak_memory

CPU = torch.device("cpu")
needs_peak_memory = pytest.mark.skipif(
    measure_peak_memory(int, CPU) is None, reason="this system does not report peak memory"
)


@pytest.mark.parametrize("warm_up_each", [False, True])
def test_calls_take_turns_after_a_warm_up(warm_up_each):
    calls = []
    sides = {name: lambda batch, name=name: calls.append((name, batch)) or name for name in "ab"}
    timed = timing.time_in_turn(sides, [[[1]], [[2], [3]]], "label", warm_up_each)
    first, second = ([(name, batch) for name in "ab"] for batch in ([[1]], [[2], [3]]))
    twice = [call for call in first + second for _ in range(2)]
    assert calls == (twice if warm_up_each else twice[:4] + second)
    for name in "ab":
        assert timed[name].results == [name, name]
        assert 0 < timed[name].median < 1


@pytest.mark.parametrize(
    ("seconds", "best", "tried"),
    [((3, 2, 1), 8, [2, 3, 8]), ((2, 1, 3), 3, [2, 3, 8]), ((1, 1, 0), 2, [2, 3])],
)
def test_batch_sizes_are_tried_until_one_is_slower(monkeypatch, seconds, best, tried):
    def time_in_turn(calls, batches, label):
        assert list(itertools.chain.from_iterable(batches)) == rows[6:14]
        sizes.append(len(batches[0]))
        return {name: Timings([seconds[len(sizes) - 1]], []) for name in calls}

    monkeypatch.setattr(timing, "time_in_turn", time_in_turn)
    rows, sizes = [[n] for n in range(20)], []
    assert timing.find_fastest_batch_size(len, rows, [2, 3, 8], "label") == best
    assert sizes == tried


def test_the_fastest_choice_is_that_of_the_median(monkeypatch):
    seconds = {1: [1.0, 9.0, 9.0], 2: [3.0, 2.0, 9.0]}
    monkeypatch.setattr(
        timing,
        "time_in_turn",
        lambda calls, batches, label: {name: Timings(seconds[name], []) for name in calls},
    )
    assert timing.find_fastest(max, [1, 2], [5], "label") == 2


def test_calls_in_batches_give_the_results_of_all_rows():
    calls = []
    found = timing.call_in_batches(
        lambda batch: calls.append(batch) or [2 * row for row in batch], 2, [1, 2, 3, 4, 5]
    )
    assert found == [2, 4, 6, 8, 10]
    assert calls == [[1, 2], [3, 4], [5]]


def test_few_items_represent_equal_parts():
    assert timing.pick_evenly(range(48), 2) == [12, 36]
    assert timing.pick_evenly(range(10), 3) == [1, 5, 8]
    assert timing.pick_evenly(range(2), 5) == [0, 1]


@needs_peak_memory
def test_peak_memory_is_what_a_call_adds():
    held = torch.ones(30_000_000)  # 120 MB
    torch.ones(50_000_000)  # 200 MB, freed
    assert measure_peak_memory(lambda: torch.ones(20_000_000), CPU) == pytest.approx(80, abs=8)
    assert measure_peak_memory(int, CPU) < 8
    assert len(held)
