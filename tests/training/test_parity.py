"""ReRe's update as released, against a plain implementation of its formulas.

The plain one copies the prompt for every candidate, searches with transformers' `generate`, and
has its own optimiser and schedule. It shares only model, prompts and titles with `rere`.
"""

import copy
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import CYCLE, write_data, write_fixed_model
from torch import Tensor
from training_runs import read_steps
from transformers import GenerationConfig, PreTrainedModel

from rere.backbones import load_model, load_tokenizer
from rere.config.rl import RlOptions
from rere.tokenization import PromptEncoder
from rere.training import models
from rere.training.advantages import ADVANTAGES
from rere.training.rl import RlTrainer, rl
from rere.training.trainer import StepLog

# The released trainer's options, except for a learning rate and beta large enough for four steps, a
# smaller group, and a max_grad_norm that only the last step exceeds.
FAITHFUL = RlOptions(
    learning_rate=1e-2,
    warmup=0.25,
    weight_decay=0.01,
    max_grad_norm=0.03,
    steps=4,
    prompts=8,
    rows_per_pass=2,
    group_size=5,
    scoring="vocabulary",
    reward=["rule", "ranking"],
    beta=0.5,
    sync_interval=2,
    sync_mix=0.9,
    validations=1,
)
ROWS = [([start], (start + step) % 8) for start, step in zip(range(8), [1, 3] * 4, strict=True)]


class Step(NamedTuple):
    """The results of one step of either implementation."""

    rewards: dict[tuple[int, ...], list[float]]  # by prompt, in the order of the candidates
    loss: float
    grad_norm: float
    weights: dict[str, Tensor]


# --------------------------------------------------------------------------------- plain


def plain_steps(
    model: PreTrainedModel, prompts: list[list[int]], titles: list[list[int]], targets: list[int]
) -> list[Step]:
    """Four steps over the same eight prompts, float64."""
    options, reference, done = FAITHFUL, copy.deepcopy(model), []
    names, parameters = zip(*model.named_parameters(), strict=True)
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(options.steps):
        rewards, sequence_losses = {}, []
        for prompt, target in zip(prompts, targets, strict=True):
            candidates = search(model, prompt, titles)
            reward = released_reward(candidates, titles[target])
            rewards[tuple(prompt)] = reward
            values = torch.tensor(reward, dtype=torch.float64)
            advantages = (values - values.mean()) / (values.std() + 1e-4)
            log_probs = expanded_log_probs(model, prompt, candidates)
            with torch.no_grad():
                references = expanded_log_probs(reference, prompt, candidates)
            for advantage, lp, ref in zip(advantages, log_probs, references, strict=True):
                kl = (ref - lp).exp() - (ref - lp) - 1
                per_token = -((lp - lp.detach()).exp() * advantage - options.beta * kl)
                sequence_losses.append(per_token.mean())
        loss = torch.stack(sequence_losses).mean()
        gradients = torch.autograd.grad(loss, parameters)

        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = min(1.0, options.max_grad_norm / (norm + 1e-6))
        # One step of warm-up from 0, then half a cosine.
        rate = options.learning_rate
        rate *= 0.0 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 3))
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g * scale)
                v.mul_(0.999).add_(0.001 * (g * scale) ** 2)
                mean, square = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                decay = options.weight_decay if p.ndim > 1 else 0.0
                p -= rate * (mean / (square.sqrt() + 1e-8) + decay * p)
            if (step + 1) % options.sync_interval == 0:
                for ours, theirs in zip(reference.parameters(), parameters, strict=True):
                    ours.copy_(options.sync_mix * theirs + (1 - options.sync_mix) * ours)
        weights = {n: p.detach().clone() for n, p in zip(names, parameters, strict=True)}
        done.append(Step(rewards, loss.item(), norm, weights))
    return done


def search(model: PreTrainedModel, prompt: list[int], titles: list[list[int]]) -> list[list[int]]:
    """The beams of `generate` under a constraint to the titles, best first."""
    eos = titles[0][-1]
    allowed = defaultdict(lambda: {eos})  # after a title's end, in finished beams
    for title in titles:
        for position, token in enumerate(title):
            allowed.setdefault(tuple(title[:position]), set()).add(token)
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        prefix_allowed_tokens_fn=lambda _, ids: list(allowed[tuple(ids[len(prompt) :].tolist())]),
        generation_config=GenerationConfig(
            num_beams=FAITHFUL.group_size,
            num_return_sequences=FAITHFUL.group_size,
            length_penalty=0.0,
            early_stopping="never",
            do_sample=False,
            max_new_tokens=max(map(len, titles)),
            eos_token_id=eos,
            pad_token_id=0,
        ),
    )
    rows = output[:, len(prompt) :].tolist()
    return [row[: row.index(eos) + 1] for row in rows]


def released_reward(candidates: list[list[int]], target: list[int]) -> list[float]:
    """1 for the target, else -1 / log2(position + 1) over the sum of all positions.

    0 in a group without the target.
    """
    if target not in candidates:
        return [0.0] * len(candidates)
    discounts = [1 / math.log2(position + 1) for position in range(1, len(candidates) + 1)]
    return [
        1.0 if candidate == target else -discount / sum(discounts)
        for candidate, discount in zip(candidates, discounts, strict=True)
    ]


def expanded_log_probs(
    model: PreTrainedModel, prompt: list[int], candidates: list[list[int]]
) -> list[Tensor]:
    """Each candidate's token log-probabilities over the vocabulary, in a sequence of its own."""
    found = []
    for candidate in candidates:
        logits = model(input_ids=torch.tensor([prompt + candidate])).logits[0]
        log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(log_probs.gather(1, torch.tensor(candidate)[:, None])[:, 0])
    return found


# ---------------------------------------------------------------------------------- rere


def rere_steps(init: Path, data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The same steps by `rl`, in float64, recorded by patching its methods."""
    rewards, weights = [], []
    training_step, on_step_end = RlTrainer.training_step, StepLog.on_step_end

    def watched_step(self: RlTrainer, model: Any, inputs: Any, *more: Any) -> Tensor:
        rewards.append({"prompts": inputs["prompts"]})
        return training_step(self, model, inputs, *more)

    def watched_advantage(reward: Tensor, exists: Tensor) -> Tensor:
        rewards[-1]["reward"] = reward.tolist()
        return grpo(reward, exists)

    def watched_end(self: StepLog, args: Any, state: Any, control: Any, model: Any, **more: Any):
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        on_step_end(self, args, state, control, **more)

    grpo = ADVANTAGES["grpo"]
    monkeypatch.setattr(models, "load_model", lambda folder: load_model(folder).double())
    monkeypatch.setattr(RlTrainer, "training_step", watched_step)
    monkeypatch.setitem(ADVANTAGES, "grpo", watched_advantage)
    monkeypatch.setattr(StepLog, "on_step_end", watched_end)
    rl(FAITHFUL, init, data, 0, output)
    return [
        Step(
            dict(zip(map(tuple, seen["prompts"]), seen["reward"], strict=True)),
            line["loss"],
            line["grad_norm"],
            after,
        )
        for seen, line, after in zip(rewards, read_steps(output), weights, strict=True)
    ]


def test_four_steps_equal_the_released_update(tmp_path, monkeypatch):
    init = write_fixed_model(tmp_path / "init")
    data = write_data(tmp_path / "data", CYCLE, train=ROWS, valid=ROWS[:1])
    encoder = PromptEncoder(load_tokenizer(init), CYCLE)
    histories, targets = zip(*ROWS, strict=True)
    prompts = encoder.encode_prompts(list(range(8)), list(histories), 0)
    model = load_model(init).double()

    expected = plain_steps(model, prompts, encoder.encode_responses(), list(targets))
    actual = rere_steps(init, data, tmp_path / "run", monkeypatch)
    missed = [not any(reward) for step in expected for reward in step.rewards.values()]
    assert 0 < sum(missed) < len(missed)
    assert len(actual) == len(expected) == 4
    for ours, plain in zip(actual, expected, strict=True):
        assert ours.rewards.keys() == plain.rewards.keys()
        for prompt, reward in plain.rewards.items():
            assert ours.rewards[prompt] == pytest.approx(reward, abs=1e-6)
        # The loss is summed in float32.
        assert ours.loss == pytest.approx(plain.loss, rel=1e-4, abs=1e-7)
        assert ours.grad_norm == pytest.approx(plain.grad_norm, rel=1e-5)
        for name, weight in plain.weights.items():
            torch.testing.assert_close(ours.weights[name], weight, atol=1e-5, rtol=0)
    # Gradients are clipped in some steps only, and weights change by more than the tolerance.
    norms = [step.grad_norm for step in expected]
    assert min(norms) < FAITHFUL.max_grad_norm < max(norms), norms
    start = dict(load_model(init).double().named_parameters())
    assert max((expected[-1].weights[n] - start[n]).abs().max() for n in start) > 1e-2
