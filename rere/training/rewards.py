"""Rewards of a group of candidates: pure functions of ids, hits and log-probabilities.

B prompts, G candidates of each, I items. `hit` (B, G) bool says which candidate has the target's
title, `log_prob` (B, G) holds the candidates' sequence log-probabilities, -inf in places that hold
no item of the catalogue: a catalogue smaller than G left them empty, or an unconstrained search
wrote something else. Such a place has the reward 0, whatever the reward.

A study names rewards and their weights. A function of the user's own is named
`module:function`; it

    gets         one argument, `Groups`, whose tensors are on the policy's device;
    returns      a tensor (B, G) of finite floats on that device, the higher the better;
    is imported by Python, so its module is installed, or lies where the study is run.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rere.config.training import RlOptions, reward_weights
from rere.data.factors import Factors
from rere.data.splits import read_split
from rere.errors import InputError
from rere.training.embeddings import sentence_embeddings, tfidf_embeddings


class Groups(NamedTuple):
    """The candidates of B prompts, as a reward sees them."""

    row_id: Tensor  # (B,) i64, rows of the training split
    history: list[list[int]]  # B lists of items, oldest first
    target: Tensor  # (B,) i64, item
    item: Tensor  # (B, G) i64, the first item of the candidate's title; -1 where it is none
    hit: Tensor  # (B, G) bool, whether the candidate has the target's title
    log_prob: Tensor  # (B, G) f32, of the whole sequence; -inf where `item` is -1


Reward = Callable[[Groups], Tensor]


def rule(hit: Tensor, log_prob: Tensor) -> Tensor:
    """1 for the target, else 0; (B, G) f32."""
    return hit.float()


def ranking(hit: Tensor, log_prob: Tensor) -> Tensor:
    """The better a wrong candidate ranks, the more it costs; (B, G) f32.

    With rank k = 1 .. G by falling log-probability, whatever order the candidates came in, the
    reward is -(1 / log2(k + 1)) / sum_j (1 / log2(j + 1)), the sum over all G ranks; it is 0 for
    the target, for an empty place, and everywhere in a group without the target (ReRe, arXiv
    2510.12211, as released: with penalties in such groups training was seen to collapse).
    """
    discount = discounts(log_prob)
    penalty = -discount / discount.sum(-1, keepdim=True)
    return penalty.masked_fill(hit | ~hit.any(-1, keepdim=True) | log_prob.isneginf(), 0.0)


def ranking_literal(hit: Tensor, log_prob: Tensor) -> Tensor:
    """The ranking reward as the paper writes it: a group's penalties add up to -1; (B, G) f32.

    As `ranking`, but the sum is over the group's own wrong candidates, and a group without the
    target is penalised, too (ReRe, arXiv 2510.12211). A group of nothing but the target has 0.
    """
    wrong = ~hit & ~log_prob.isneginf()
    discount = discounts(log_prob) * wrong
    return -discount / discount.sum(-1, keepdim=True).where(wrong.any(-1, keepdim=True), 1.0)


def discounts(log_prob: Tensor) -> Tensor:
    """1 / log2(rank + 1), the rank from 1 by falling log-probability, ties as they come; (B, G)."""
    order = log_prob.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(1, log_prob.shape[-1] + 1, device=log_prob.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, ranks)
    return 1 / (rank + 1).float().log2()


def semantic(item: Tensor, target: Tensor, embeddings: Tensor) -> Tensor:
    """The cosine of the candidate's title embedding and the target's, in -1 .. 1; (B, G) f32.

    item (B, G) and target (B,) i64, embeddings (I, D) f32 (`rere.training.embeddings`). A title
    whose embedding is 0 is like nothing, itself included. ReRe, arXiv 2510.12211.
    """
    alike = cosine_similarity(embeddings[item.clamp(min=0)], embeddings[target][:, None], dim=-1)
    return alike.masked_fill(item < 0, 0.0)


def collaborative(item: Tensor, state: Tensor, factors: Tensor) -> Tensor:
    """A sequential model's logit of the candidate after the history, its state . factor; (B, G).

    item (B, G) i64, state (B, D) f32 of the histories, factors (I, D) f32 of the items, as a
    trained SASRec has them. On no scale of its own: give it a weight. ReRe, arXiv 2510.12211.
    """
    logit = (factors[item.clamp(min=0)] * state[:, None]).sum(-1)
    return logit.masked_fill(item < 0, 0.0)


REWARDS = {"rule": rule, "ranking": ranking, "ranking_literal": ranking_literal}
"""The rewards that know no more than hits and log-probabilities."""


def make_reward(
    name: str, embeddings: Tensor | None = None, factors: Factors | None = None
) -> Reward:
    """The reward of that name as a function of `Groups`, (B, G) f32.

    `semantic` needs the items' `embeddings` (I, D), `collaborative` the `factors` of a trained
    sequential model, both on the policy's device. Raises InputError for a function of the user's
    that cannot be imported.
    """
    match name:
        case "semantic":
            return lambda groups: semantic(groups.item, groups.target, embeddings)
        case "collaborative":
            return lambda groups: collaborative(
                groups.item, factors.states(groups.row_id), factors.item
            )
        case _ if name in REWARDS:
            return lambda groups: REWARDS[name](groups.hit, groups.log_prob)
    return users_own(name)


def make_rewards(
    options: RlOptions,
    titles: Sequence[str],
    data: Path,
    factors: Path | None,
    device: torch.device,
) -> dict[str, Reward]:
    """The rewards that the options name, on `device`.

    `titles` (I,) are the catalogue's, `data` is the data set's folder, `factors` the file of a
    sequential baseline that was trained on it. Raises InputError where that, the embedding model
    or a function of the user's is none.
    """
    names, embeddings, asked = reward_weights(options.reward), None, None
    if "collaborative" in names:
        row_ids = read_split(data, "train")["row_id"].to_numpy(writable=True)
        asked = Factors.load(factors, row_ids, len(titles)).to(device)
    if "semantic" in names:
        folder = options.embeddings
        embeddings = (
            tfidf_embeddings(titles).to(device)
            if folder is None
            else sentence_embeddings(titles, Path(folder), device)
        )
    return {name: make_reward(name, embeddings, asked) for name in names}


def users_sources(options: RlOptions) -> list[Path]:
    """The modules of the user's own rewards, as files: what a run is made of, too."""
    own = [name for name in reward_weights(options.reward) if ":" in name]
    for name in own:
        import_function(name)
    modules = [sys.modules[name.partition(":")[0]] for name in own]
    files = dict.fromkeys(getattr(module, "__file__", None) for module in modules)
    return [Path(file) for file in files if file is not None]


def import_function(name: str) -> Callable[[Groups], Any]:
    """What `module:function` names; raises InputError where there is nothing."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"reward {name}: cannot be imported ({error})") from error


def users_own(name: str) -> Reward:
    """The function that `module:function` names, its results checked.

    Raises InputError where there is none, and, of the reward, for a result that is no finite
    (B, G) tensor of floats. The check waits for the device, once a rollout.
    """
    function = import_function(name)

    def checked(groups: Groups) -> Tensor:
        reward, shape = function(groups), tuple(groups.item.shape)
        if not isinstance(reward, Tensor) or not reward.is_floating_point():
            raise InputError(f"reward {name}: returned {kind(reward)}; return a tensor of floats")
        if reward.shape != shape:
            raise InputError(
                f"reward {name}: returned shape {tuple(reward.shape)}; a candidate has one "
                f"reward, {shape}"
            )
        if not reward.isfinite().all():
            raise InputError(f"reward {name}: returned an infinite or NaN reward; return numbers")
        return reward.float().masked_fill(groups.item < 0, 0.0)

    return checked


def kind(value: Any) -> str:
    """What a value is, in a word or two."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def weighted_sum(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Rewards by name, each (B, G), times their weights, added up; (B, G) f32."""
    return torch.stack([weights[name] * reward for name, reward in rewards.items()]).sum(0)
