"""The softmax over a few rows at a time, against torch's over all of them."""

import math

import pytest
import torch

from rere.engine.model import softmax


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_a_few_rows_at_a_time(monkeypatch, rows_at_once, temperature):
    monkeypatch.setitem(softmax.LOGITS_IN_CACHE, "cpu", 7 * rows_at_once)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    source, target = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([1, 2, 0, 4, 6, 5])
    log_prob = softmax.LogSoftmaxAt.apply(logits.clone(), source, target, temperature)
    expected = (logits / temperature).log_softmax(-1)
    torch.testing.assert_close(log_prob, expected[source, target])
    torch.testing.assert_close(
        softmax.entropy(logits, temperature), -(expected.exp() * expected).sum(-1)
    )
    torch.testing.assert_close(
        softmax.logsumexp_of_rows(logits, temperature), (logits / temperature).exp().sum(-1).log()
    )
    # One gradient per graph, since it overwrites the logits.
    for number, theirs in enumerate(expected[source, target]):
        log_prob = softmax.LogSoftmaxAt.apply(logits.clone(), source, target, temperature)
        (actual,) = torch.autograd.grad(log_prob[number], logits, retain_graph=True)
        (gradient,) = torch.autograd.grad(theirs, logits, retain_graph=True)
        torch.testing.assert_close(actual, gradient)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_prob.sum().backward()


def test_a_token_of_probability_zero_adds_nothing():
    logits = torch.tensor([[1.0, -torch.inf, 1.0]], requires_grad=True)
    assert softmax.entropy(logits, 1.0).item() == pytest.approx(math.log(2))
    log_prob = softmax.LogSoftmaxAt.apply(logits.clone(), torch.tensor([0]), torch.tensor([2]), 1.0)
    assert log_prob.item() == pytest.approx(-math.log(2))
    log_prob.sum().backward()
    assert logits.grad.tolist() == [[-0.5, 0.0, 0.5]]


def test_the_gradient_at_an_almost_certain_token_is_not_rounded_away():
    # p = 1 / (1 + e^-8): in bfloat16 1 - p = 3.4e-4 would be 1 - 1 = 0.
    logits = torch.tensor([[0.0, 8.0]], dtype=torch.bfloat16, requires_grad=True)
    softmax.LogSoftmaxAt.apply(logits, torch.tensor([0]), torch.tensor([1]), 1.0).sum().backward()
    rest = 1 / (1 + math.exp(8))
    assert logits.grad[0].tolist() == pytest.approx([-rest, rest], rel=2**-8)
