"""The gradients of a linear layer, for those that get their results in another way."""

from typing import Any

from torch import Tensor


def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of the states (..., D), the weight (V, D) and the bias (V,), by that of the result (..., V).

    An autograd function takes these first and has saved states and weight.
    """
    states, weight = ctx.saved_tensors
    of_states, of_weight, of_bias = ctx.needs_input_grad[:3]
    flat = gradient.flatten(0, -2)
    return (
        gradient @ weight if of_states else None,
        flat.T @ states.flatten(0, -2) if of_weight else None,
        flat.sum(0) if of_bias else None,
    )
