"""The k3 estimator is exact up to a log-ratio of 20 and linear beyond."""

import math
from pathlib import Path

import pytest
import torch
from tiny_models import write_cycle, write_fixed_model
from torch import Tensor
from training_runs import read_steps, read_values

from rere.config.rl import RlOptions
from rere.training.objectives import k3
from rere.training.rl import rl

RATIOS = [-1e30, -1e4, -100.0, -20.5, -20.0, -19.5, -1.0, 0.0, 1e-3, 5.0, 19.5, 20.0]
BEYOND = [20.5, 40.0, 87.0, 89.0, 1000.0, 1e25]


def value_and_gradient(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """k3 at log-ratios of reference to policy, and its derivative by the ratio."""
    log_prob = torch.zeros_like(ratio).requires_grad_()
    value = k3(log_prob, ratio)
    value.sum().backward()
    return value.detach(), -log_prob.grad


def closed_form(ratio: float) -> tuple[float, float]:
    """e^d - d - 1 and e^d - 1; beyond 20, the tangent of the nearer end."""
    end = min(max(ratio, -20.0), 20.0)
    slope = math.exp(end) - 1
    return math.exp(end) - end - 1 + slope * (ratio - end), slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", RATIOS + BEYOND)
def test_value_and_gradient_are_the_closed_form(ratio, dtype):
    found = value_and_gradient(torch.tensor([ratio], dtype=dtype))
    # exp(d) - d - 1 cancels near 0, as it always did.
    tolerance = {"rel": 1e-5 if dtype == torch.float32 else 1e-12, "abs": 1e-6}
    assert [each.item() for each in found] == [
        pytest.approx(expected, **tolerance) for expected in closed_form(ratio)
    ]


def test_below_the_bound_no_bit_changes():
    generator = torch.Generator().manual_seed(0)
    inside = 40 * torch.rand(10_000, generator=generator) - 20
    ratio = torch.cat([inside, torch.tensor([-20.0, 20.0])])
    log_prob = torch.zeros_like(ratio).requires_grad_()
    plain = (ratio - log_prob).exp() - (ratio - log_prob) - 1
    plain.sum().backward()
    value, gradient = value_and_gradient(ratio)
    assert torch.equal(value, plain)
    assert torch.equal(gradient, -log_prob.grad)


def test_no_token_weighs_more_than_one_at_the_bound():
    gradient = value_and_gradient(torch.tensor(BEYOND))[1]
    assert set(gradient.tolist()) == {value_and_gradient(torch.tensor([20.0]))[1].item()}


def test_finite_under_autocast_and_in_bfloat16():
    ratio = torch.tensor(RATIOS + BEYOND)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = value_and_gradient(ratio)
    assert all(map(torch.equal, rounded, value_and_gradient(ratio)))
    low = value_and_gradient(ratio.bfloat16())
    assert all(each.isfinite().all() for each in low)


# ------------------------------------------------------------------------------------ in the log


def train(folder: Path, **changes) -> Path:
    """The folder of a run on the cycle, below `folder`."""
    options = RlOptions(
        **{
            **{"learning_rate": 1e-3, "steps": 3, "prompts": 8, "rows_per_pass": 4},
            **{"group_size": 4, "validations": 1, "beta": 0.1, "warmup": 0.0},
            **changes,
        }
    )
    data, init = write_cycle(folder / "data"), write_fixed_model(folder / "init")
    rl(options, init, data, 0, folder / "run")
    return folder / "run"


def test_the_log_counts_linear_tokens(tmp_path):
    folder = train(tmp_path, learning_rate=1.0, weight_decay=0.0)
    counts = read_values(folder, "kl_linear")
    assert counts[0] == 0
    assert max(counts) > 0
    assert all(count == int(count) for count in counts)
    assert all(math.isfinite(line["kl"] + line["grad_norm"]) for line in read_steps(folder))


def test_close_policies_have_none(tmp_path):
    assert read_values(train(tmp_path, dtype="bfloat16"), "kl_linear") == [0.0] * 3


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"kl": "k2"}])
def test_without_k3_nothing_is_counted(changes, tmp_path):
    assert read_values(train(tmp_path, **changes), "kl_linear") == []
