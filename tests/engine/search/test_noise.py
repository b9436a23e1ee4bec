"""Random numbers as a function of seeds and counters."""

import pytest
import torch
from scipy.stats import gumbel_r, kstest

from rere.engine.search.noise import gumbel, mix, row_seeds, uniform

COUNTER = torch.arange(20_000)[None]


def test_the_published_sequence_of_splitmix64():
    bits = mix(torch.zeros(1, dtype=torch.long), torch.arange(3)[None])[0].tolist()
    assert [b % 2**64 for b in bits] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize("step", [0, 1])
def test_numbers_have_their_distributions(step):
    seeds = row_seeds(0, step, [7])
    assert kstest(uniform(seeds, COUNTER)[0], "uniform").pvalue > 1e-3
    assert kstest(gumbel(seeds, COUNTER)[0], gumbel_r.cdf).pvalue > 1e-3


def test_rows_steps_and_runs_have_independent_numbers():
    seeds = {
        row_seeds(*of)[0].item() for of in [(0, 0, [1]), (0, 1, [0]), (1, 0, [0]), (0, 0, [0])]
    }
    assert len(seeds) == 4
    a, b = uniform(row_seeds(0, 0, [0, 1]), COUNTER.expand(2, -1))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03


def test_a_number_depends_only_on_row_and_counter():
    alone = uniform(row_seeds(3, 5, [9]), COUNTER[:, 100:110])
    assert torch.equal(uniform(row_seeds(3, 5, [4, 9]), COUNTER.expand(2, -1))[1:, 100:110], alone)


def test_extreme_bits_give_finite_numbers(monkeypatch):
    for bits in (0, -1):
        monkeypatch.setattr(
            "rere.engine.search.noise.mix", lambda *_, bits=bits: torch.tensor([[bits]])
        )
        assert 0 < uniform(torch.zeros(1), torch.zeros(1, 1)) < 1
        assert gumbel(torch.zeros(1), torch.zeros(1, 1)).isfinite()
