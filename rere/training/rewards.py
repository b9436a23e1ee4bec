"""Rewards of candidates: pure functions of item ids, hits and log-probabilities.

B prompts, G candidates per prompt, I items. `hit` (B, G) bool tells which candidates have the
target's title. `log_prob` (B, G) holds sequence log-probabilities. `item` is -1 and `log_prob` is
-inf for a non-item (generated text that is no title) and for an empty slot (the catalogue has fewer
than G titles). Both have reward 0.

A study lists rewards, with weights. `module:function` names your own. The function

    takes        one argument, `Groups`, whose tensors are on the policy's device;
    returns      a tensor (B, G) of floats on that device, finite for items, higher is better;
    is imported  by Python: install its module, or run the study in the module's folder.
"""

import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rere.config.rl import RlOptions, reward_weights
from rere.data.dataset import read_split
from rere.data.factors import Factors
from rere.errors import InputError, first_line, is_out_of_memory
from rere.training.embeddings import sentence_embeddings, tfidf_embeddings


class Groups(NamedTuple):
    """The candidates of B prompts: the argument of a reward."""

    row_id: Tensor  # (B,) i64, ids of training rows
    history: list[list[int]]  # B lists of item ids, oldest first
    target: Tensor  # (B,) i64, item ids
    item: Tensor  # (B, G) i64, the first item with the candidate's title, or -1
    hit: Tensor  # (B, G) bool, whether the candidate has the target's title
    log_prob: Tensor  # (B, G) f32, of the whole sequence, or -inf


Reward = Callable[[Groups], Tensor]


def rule(hit: Tensor, log_prob: Tensor) -> Tensor:
    """1 for the target, else 0; (B, G) f32."""
    return hit.float()


def ranking(hit: Tensor, log_prob: Tensor) -> Tensor:
    """A penalty on wrong candidates, larger at better ranks; (B, G) f32.

    A candidate of rank k by descending log-probability gets
    -(1 / log2(k + 1)) / sum_j (1 / log2(j + 1)), the sum over all G ranks. The reward is 0 for the
    target, where `log_prob` is -inf, and in groups without the target. ReRe, arXiv 2510.12211, as
    released: penalties in groups without the target made training collapse.
    """
    discount = discounts(log_prob)
    penalty = -discount / discount.sum(-1, keepdim=True)
    return penalty.masked_fill(hit | ~hit.any(-1, keepdim=True) | log_prob.isneginf(), 0.0)


def ranking_literal(hit: Tensor, log_prob: Tensor) -> Tensor:
    """The ranking reward as the paper writes it: a group's penalties sum to -1; (B, G) f32.

    Unlike `ranking`, it sums over the group's wrong candidates only, and groups without the target
    are penalised, too (ReRe, arXiv 2510.12211). The target alone gets 0.
    """
    wrong = ~hit & ~log_prob.isneginf()
    discount = discounts(log_prob) * wrong
    return -discount / discount.sum(-1, keepdim=True).where(wrong.any(-1, keepdim=True), 1.0)


def discounts(log_prob: Tensor) -> Tensor:
    """1 / log2(rank + 1), ranks from 1 by descending log-probability, ties in order; (B, G)."""
    order = log_prob.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(1, log_prob.shape[-1] + 1, device=log_prob.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, ranks)
    return 1 / (rank + 1).float().log2()


def semantic(item: Tensor, target: Tensor, embeddings: Tensor) -> Tensor:
    """Cosine similarity of the candidate's and the target's title embeddings; (B, G) f32.

    item (B, G) and target (B,) i64, embeddings (I, D) f32 (`rere.training.embeddings`). The
    similarity to a zero embedding is 0. ReRe, arXiv 2510.12211.
    """
    similarity = cosine_similarity(
        embeddings[item.clamp(min=0)], embeddings[target][:, None], dim=-1
    )
    return similarity.masked_fill(item < 0, 0.0)


def collaborative(item: Tensor, state: Tensor, factors: Tensor) -> Tensor:
    """A sequential baseline's logit of the candidate, dot(state, factor); (B, G) f32.

    item (B, G) i64. state (B, D) f32 of the histories and factors (I, D) f32 of the items are a
    trained baseline's. The scale of logits is arbitrary: give this reward a weight. ReRe, arXiv
    2510.12211.
    """
    logit = (factors[item.clamp(min=0)] * state[:, None]).sum(-1)
    return logit.masked_fill(item < 0, 0.0)


HIT_REWARDS = {"rule": rule, "ranking": ranking, "ranking_literal": ranking_literal}
"""The rewards that need only hits and log-probabilities."""


def make_reward(
    name: str, embeddings: Tensor | None = None, factors: Factors | None = None
) -> Reward:
    """The reward of that name: a function from `Groups` to (B, G) f32.

    `semantic` needs the items' `embeddings` (I, D), `collaborative` a trained sequential model's
    `factors`, both on the policy's device. Raises InputError if `module:function` cannot be
    imported.
    """
    match name:
        case "semantic":
            assert embeddings is not None
            return lambda groups: semantic(groups.item, groups.target, embeddings)
        case "collaborative":
            assert factors is not None
            return lambda groups: collaborative(
                groups.item, factors.states(groups.row_id), factors.item
            )
        case _ if name in HIT_REWARDS:
            return lambda groups: HIT_REWARDS[name](groups.hit, groups.log_prob)
    return load_own_reward(name)


def make_rewards(
    options: RlOptions,
    titles: Sequence[str],
    data: Path,
    factors: Path | None,
    device: torch.device,
) -> dict[str, Reward]:
    """The rewards that the options name, on `device`.

    `titles` (I,) are the catalogue's, `data` is the dataset's folder, `factors` the file of a
    sequential baseline trained on it. Raises InputError if the factors, the embedding model or
    your own function cannot be loaded.
    """
    names, embeddings, loaded = reward_weights(options.reward), None, None
    if "collaborative" in names:
        assert factors is not None
        row_ids = read_split(data, "train")["row_id"].to_numpy(writable=True)
        loaded = Factors.load(factors, row_ids, len(titles)).to(device)
    if "semantic" in names:
        folder = options.embeddings
        embeddings = (
            tfidf_embeddings(titles).to(device)
            if folder is None
            else sentence_embeddings(titles, Path(folder), device)
        )
    return {name: make_reward(name, embeddings, loaded) for name in names}


def own_reward_files(options: RlOptions) -> list[Path]:
    """The files of the modules of `module:function` rewards, which are inputs of the run."""
    own = [name for name in reward_weights(options.reward) if ":" in name]
    for name in own:
        import_function(name)
    modules = [sys.modules[name.partition(":")[0]] for name in own]
    files = dict.fromkeys(getattr(module, "__file__", None) for module in modules)
    return [Path(file) for file in files if file is not None]


def import_function(name: str) -> Callable[[Groups], Any]:
    """The function `module:function`.

    Raises InputError if it cannot be imported, is not written in Python, as `sys:exit`, or does not
    take one argument.
    """
    module, _, attribute = name.partition(":")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # last, so that nothing in it replaces an installed module
    try:
        function: Callable[[Groups], Any] = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise InputError(f"reward {name}: cannot be imported ({describe(error)})") from error
    if not is_python(function):
        raise InputError(f"reward {name}: is no function written in Python; name one")
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"reward {name}: must take one argument, the groups ({first_line(error)})"
        ) from None
    return function


def is_python(function: Any) -> bool:
    """Whether a value is a function, method or callable object written in Python, not a class."""
    if isinstance(function, partial):
        function = function.func
    if inspect.isfunction(function) or inspect.ismethod(function):
        return True
    return not isinstance(function, type) and inspect.isfunction(type(function).__call__)


def describe(error: BaseException) -> str:
    """File and line of the user's code that led to an error, its type and message."""
    ours, standard = ("<", f"{Path(__file__).parents[1]}/"), sysconfig.get_paths()["stdlib"]
    frames = [
        (path, line)
        for path, line, *_ in traceback.extract_tb(error.__traceback__)
        if not path.startswith(ours)
    ]
    packages = [frame for frame in frames if "site-packages" in frame[0]]
    own = [each for each in frames if each not in packages and not each[0].startswith(standard)]
    for path, line in own[-1:] or packages[:1]:
        return f"{path}, line {line}: {type(error).__name__}: {first_line(error)}"
    return first_line(error)


def load_own_reward(name: str) -> Reward:
    """The function `module:function`, wrapped in a check of its results.

    Raises InputError as `import_function` does; the reward raises it if the function raises, and
    for a result that is not a (B, G) tensor of floats on its input's device, finite for items. The
    check synchronises with the device once per rollout.
    """
    function = import_function(name)

    def checked(groups: Groups) -> Tensor:
        try:
            reward, shape = function(groups), tuple(groups.item.shape)
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"reward {name}: {describe(error)}; correct it") from error
        if not isinstance(reward, Tensor) or not reward.is_floating_point():
            raise InputError(
                f"reward {name}: returned {type_name(reward)}; return a tensor of floats"
            )
        if reward.shape != shape:
            raise InputError(
                f"reward {name}: returned shape {tuple(reward.shape)}; return one reward per "
                f"candidate, {shape}"
            )
        if reward.device != groups.item.device:
            raise InputError(
                f"reward {name}: returned a tensor on {reward.device}; return one on the device of "
                f"its input, {groups.item.device}"
            )
        reward = reward.float().masked_fill(groups.item < 0, 0.0)
        if not reward.isfinite().all():
            raise InputError(
                f"reward {name}: returned an infinite or NaN reward; return finite numbers"
            )
        return reward

    return checked


def type_name(value: Any) -> str:
    """The dtype of a tensor, else the name of the value's type."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def weighted_sum(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of named rewards (B, G) times their weights; (B, G) f32."""
    return torch.stack([weights[name] * reward for name, reward in rewards.items()]).sum(0)
