"""Sequential baselines on an imitated GPU learn what they learn on the CPU.

Not gru4rec: torch transposes a GRU's result in place, which is not imitated.
"""

import io
import json

import pytest
from fake_gpu import fake_gpu
from tiny_models import CYCLE

from rere.baselines.sequential import fit
from rere.config.baselines import Caser, Sasrec
from rere.data.dataset import read_split


@pytest.mark.parametrize("options", [Caser(epochs=2), Sasrec(epochs=2, loss="bce")])
def test_training(options, cycle):
    def run():
        log, rows = io.StringIO(), (read_split(cycle, name) for name in ("train", "valid"))
        fit(options, len(CYCLE), *rows, 0, log)
        return [json.loads(line) for line in log.getvalue().splitlines()]

    expected = run()
    with fake_gpu() as gpu:
        found = run()
    assert gpu.by_name["aten.embedding"] > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
