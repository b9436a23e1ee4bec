"""One step of RL, for every rollout, reward, advantage and objective, against a plain one.

The plain step scores every candidate in a sequence of its own, in lists and loops, with its own
gradient descent.
"""

import itertools
import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

import pytest
import torch
from forks import STAGE_FORKS
from tiny_models import CYCLE
from torch import Tensor
from training_runs import assert_weights_close, load_weights, read_steps

from rere.backbones import load_model, load_tokenizer
from rere.config.rl import RlOptions, RolloutStrategy, reward_weights
from rere.config.study import Method
from rere.data.dataset import read_split
from rere.data.factors import Factors
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out
from rere.errors import InputError
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder
from rere.training import groups as groups_module
from rere.training.advantages import ADVANTAGES
from rere.training.embeddings import tfidf_embeddings
from rere.training.groups import RewardedGroups, dynamic_sampling, num_decisions
from rere.training.objectives import KL, OBJECTIVES
from rere.training.rewards import Groups, make_reward
from rere.training.rl import rl

RATE = 0.5
OPTIONS = RlOptions(
    learning_rate=RATE,
    max_grad_norm=1e9,
    steps=1,
    prompts=8,
    rows_per_pass=8,
    group_size=4,
    beta=0.0,
    validations=1,
)
CATALOGUE = {"scoring": "catalogue"}


def options(**changes: Any) -> RlOptions:
    return RlOptions.model_validate(OPTIONS.model_dump() | changes)


# --------------------------------------------------------------------------------- the plain step


class PlainTrainer:
    """A model with its catalogue, which takes steps on given rows."""

    def __init__(self, options: RlOptions, init: Path, data: Path, factors: Factors | None = None):
        self.options, self.model = options, load_model(init).eval()
        self.start = load_model(init).eval()
        self.encoder = PromptEncoder(load_tokenizer(init), CYCLE)
        self.responses = self.encoder.encode_responses()
        self.tree = PrefixTree.build(self.responses)
        frame = read_split(data, "train").select("row_id", "history", "target")
        self.rows = {row["row_id"]: row for row in frame.to_dicts()}
        embeddings = tfidf_embeddings(CYCLE)
        self.rewards = {
            name: (weight, make_reward(name, embeddings, factors))
            for name, weight in reward_weights(options.reward).items()
        }

    def update(self, row_ids: Sequence[int], step: int = 0) -> None:
        """One step, with gradient descent after each update."""
        groups = [self.group(row_id, step) for row_id in row_ids]
        candidates = [
            (prompt, ids, advantage)
            for (prompt, group, _), advantages in zip(
                groups, self.advantages([reward for _, _, reward in groups]), strict=True
            )
            for ids, advantage in zip(group, advantages, strict=True)
        ]
        with torch.no_grad():
            old = [self.scores(self.model, prompt, ids) for prompt, ids, _ in candidates]
            reference = [self.scores(self.start, prompt, ids) for prompt, ids, _ in candidates]
        for _ in range(self.options.updates):
            new = [self.scores(self.model, prompt, ids) for prompt, ids, _ in candidates]
            self.model.zero_grad()
            self.loss([each[2] for each in candidates], new, old, reference).backward()
            with torch.no_grad():
                for weight in self.model.parameters():
                    weight -= RATE * weight.grad

    def group(self, row_id: int, step: int) -> tuple[list[int], list[list[int]], list[float]]:
        """A row's prompt, the token ids of its candidates, and their rewards."""
        options, row = self.options, self.rows[row_id]
        target = self.responses[row["target"]]
        (prompt,) = self.encoder.encode_prompts([row_id], [row["history"]], 0)
        found = roll_out(
            self.model,
            self.tree,
            [prompt],
            options.rollout,
            options.group_size,
            row_seeds(0, step, [row_id]),
            options.scoring,
            options.temperature,
            self.tree.leaf_of_item[[row["target"]]],
        )
        group = [[token for token in ids if token >= 0] for ids in found.ids[0].tolist()]
        if options.ground_truth and target not in group:
            group[-1] = target
        group = [ids for ids in group if ids]
        with torch.no_grad():
            log_prob = [self.scores(self.model, prompt, ids).sum().item() for ids in group]
        item = [self.responses.index(ids) if ids in self.responses else -1 for ids in group]
        seen = Groups(
            row_id=torch.tensor([row_id]),
            history=[row["history"]],
            target=torch.tensor([row["target"]]),
            item=torch.tensor([item]),
            hit=torch.tensor([[ids == target for ids in group]]),
            log_prob=torch.tensor([log_prob]).masked_fill(torch.tensor([item]) < 0, -torch.inf),
        )
        rewards = [weight * reward(seen)[0] for weight, reward in self.rewards.values()]
        return prompt, group, sum(rewards).tolist()

    def scores(self, model: Any, prompt: list[int], ids: list[int]) -> Tensor:
        """Log-probabilities of the candidate's tokens; under `catalogue` of its decisions only."""
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logits = logits / self.options.temperature
        if self.options.scoring == "vocabulary":
            return logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        scores = []
        for position, token in enumerate(ids):
            same = [other for other in self.responses if other[:position] == ids[:position]]
            allowed = sorted({other[position] for other in same})
            if len(allowed) > 1:
                log_prob = logits[position, allowed].log_softmax(-1)
                scores.append(log_prob[allowed.index(token)])
        return torch.stack(scores)

    def advantages(self, rewards: list[list[float]]) -> list[list[float]]:
        every = list(itertools.chain(*rewards))

        def one(group: list[float], position: int) -> float:
            others = group[:position] + group[position + 1 :]
            match self.options.advantage:
                case "grpo":
                    return (group[position] - fmean(group)) / (stdev(group) + 1e-4)
                case "dr_grpo":
                    return group[position] - fmean(group)
                case "rloo":
                    return group[position] - fmean(others)
                case "global":
                    return (group[position] - fmean(every)) / (stdev(every) + 1e-4)

        return [[one(group, position) for position in range(len(group))] for group in rewards]

    def loss(
        self, advantages: list[float], new: list[Tensor], old: list[Tensor], reference: list[Tensor]
    ) -> Tensor:
        name, clip = self.options.objective, self.options.clip
        low, high = clip or {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}.get(name, (0.2, 0.2))
        sequences = []
        for advantage, now, then, start in zip(advantages, new, old, reference, strict=True):
            ratio = (now - then).exp()
            if name in ("gspo", "released_sequence_mean"):
                ratio = (now - then).mean().exp().expand(len(now))
            surrogate = ratio * advantage
            if not name.startswith("released"):
                surrogate = surrogate.minimum(ratio.clamp(1 - low, 1 + high) * advantage)
            kl = (start - now).square() / 2
            if self.options.kl == "k3":
                kl = (start - now).exp() - (start - now) - 1
            sequences.append(-surrogate + self.options.beta * kl)
        if name in ("grpo", "gspo", "released_sequence_mean"):
            return sum(each.mean() for each in sequences) / len(sequences)
        total = sum(each.sum() for each in sequences)
        if name == "dr_grpo":
            longest = max(len(self.scores(self.model, [1], ids)) for ids in self.responses)
            return total / len(sequences) / longest
        return total / sum(map(len, sequences))


def assert_same_step(plain: PlainTrainer, output: Path) -> None:
    """The run has changed the weights as the plain trainer has."""
    actual = load_weights(output)
    change = difference = 0.0
    for (name, expected), before in zip(
        plain.model.named_parameters(), plain.start.parameters(), strict=True
    ):
        if name in actual:  # a tied weight is saved once
            change += (expected - before).detach().square().sum().item()
            difference += (expected.detach() - actual[name]).square().sum().item()
    assert math.sqrt(change) > 1e-2
    assert math.sqrt(difference / change) < 2e-3


# ------------------------------------------------------------------------------------- one step

ROLLOUTS = {
    "beam": {},
    **dict.fromkeys(("iid", "oversample", "oversample_with_target", "stochastic_beam"), CATALOGUE),
    "unconstrained": {"temperature": 0.5, "reward": ["rule", "semantic"]},
    "unconstrained_beam": {},
}
TWICE = {"updates": 2}
CASES = {
    **{f"rollout={name}": {"rollout": name, **more} for name, more in ROLLOUTS.items()},
    "catalogue": CATALOGUE,
    "temperature": {"temperature": 3.0},
    "temperature, iid": {"temperature": 3.0, "rollout": "iid", **CATALOGUE},
    "ground_truth": {"ground_truth": True},
    "ground_truth, no group without it": {"ground_truth": True, "group_size": len(CYCLE)},
    "ground_truth, iid": {"ground_truth": True, "rollout": "iid", **CATALOGUE},
    "ground_truth, unconstrained": {"ground_truth": True, "rollout": "unconstrained"},
    **{f"advantage={name}": {"advantage": name} for name in ADVANTAGES},
    **{f"objective={name}": {"objective": name} for name in OBJECTIVES},
    "dr_grpo, catalogue": {"objective": "dr_grpo", **CATALOGUE},
    **{f"{name} twice": {"objective": name, **TWICE} for name in ("grpo", "dapo", "gspo")},
    "dr_grpo twice": {"objective": "dr_grpo", "advantage": "dr_grpo", **TWICE},
    "clip": {"clip": [0.01, 0.02], **TWICE},
    "three updates": {"objective": "dapo", "updates": 3},
    "k2": {"kl": "k2", "beta": 2.0, **TWICE},
    "k3": {"kl": "k3", "beta": 2.0, **TWICE},
    "KL at a temperature": {"beta": 2.0, "temperature": 3.0, **TWICE},
    "ranking_literal": {"reward": ["rule", "ranking_literal"]},
    "weights": {"reward": ["rule=0.5", "ranking=-2"]},
    "semantic": {"reward": ["rule", "semantic=0.7"]},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_step_equals_the_plain_one(changes, tmp_path, early_model, one_step, plain_descent):
    chosen = options(**changes)
    rl(chosen, early_model, one_step, 0, tmp_path)
    plain = PlainTrainer(chosen, early_model, one_step)
    plain.update(plain.rows)
    assert_same_step(plain, tmp_path)


def test_collaborative_reward(tmp_path, early_model, one_step, plain_descent):
    row_ids = torch.from_numpy(read_split(one_step, "train")["row_id"].to_numpy(writable=True))
    states, items = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    factors = Factors(row_ids, states, items)
    factors.save(tmp_path / "factors.safetensors")
    chosen = options(reward=["rule", "collaborative=0.3"])
    rl(chosen, early_model, one_step, 0, tmp_path / "run", tmp_path / "factors.safetensors")
    plain = PlainTrainer(chosen, early_model, one_step, factors)
    plain.update(plain.rows)
    assert_same_step(plain, tmp_path / "run")
    provenance = json.loads((tmp_path / "run" / "run.json").read_text())
    assert str(tmp_path / "factors.safetensors") in provenance["inputs_sha256"]


def test_objectives_differ_with_two_updates(tmp_path, early_model, one_step):
    """With one update per rollout the released objective equals GRPO."""
    runs = {
        "grpo": {"objective": "grpo", "updates": 2},
        "gspo": {"objective": "gspo", "updates": 2},
        "dapo": {"objective": "dapo", "updates": 2},
        "once": {"objective": "grpo"},
        "released": {"objective": "released_sequence_mean"},
    }
    for name, changes in runs.items():
        rl(options(learning_rate=0.05, **changes), early_model, one_step, 0, tmp_path / name)
    for one, other in itertools.combinations(["grpo", "gspo", "dapo", "once"], 2):
        with pytest.raises(AssertionError):
            assert_weights_close(tmp_path / one, tmp_path / other, 1e-2)
    assert_weights_close(tmp_path / "released", tmp_path / "once", 1e-3)


# ------------------------------------------------------------------------------------------- log


def test_non_items_are_logged_and_have_reward_zero(tmp_path, early_model, one_step):
    chosen = options(rollout="unconstrained", temperature=0.3, reward=["semantic"])
    rl(chosen, early_model, one_step, 0, tmp_path)
    (line,) = read_steps(tmp_path)
    plain = PlainTrainer(chosen, early_model, one_step)
    groups = [plain.group(row_id, 0) for row_id in plain.rows]
    candidates = list(itertools.chain(*(group for _, group, _ in groups)))
    invalid = fmean(ids not in plain.responses for ids in candidates)
    assert 0 < invalid <= 1
    assert line["invalid"] == pytest.approx(invalid)
    assert line["reward_semantic"] == pytest.approx(fmean(sum(reward) for *_, reward in groups))


def test_reward_components_are_logged_without_weights(tmp_path, early_model, one_step):
    rl(
        options(reward=["rule=3", "ranking=0.5"], ground_truth=True),
        early_model,
        one_step,
        0,
        tmp_path,
    )
    (line,) = read_steps(tmp_path)
    assert line["reward_rule"] == line["hit_rate"] == 1.0
    assert line["reward"] == pytest.approx(3 + 0.5 * line["reward_ranking"])
    assert line["invalid"] == 0.0


def test_seconds_are_logged(tmp_path, early_model, one_step):
    rl(options(steps=3), early_model, one_step, 0, tmp_path)
    lines = list(map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()))
    seconds = [line["seconds"] for line in lines]
    assert len(seconds) == 5  # with two validations
    assert 0 < seconds[0] < seconds[-1] < json.loads((tmp_path / "run.json").read_text())["seconds"]
    assert seconds == sorted(seconds)


def test_samples_do_not_depend_on_rows_per_pass(tmp_path, early_model, one_step, plain_descent):
    chosen = {"rollout": "iid", **CATALOGUE, "steps": 3}
    for rows in (8, 1):
        rl(options(rows_per_pass=rows, **chosen), early_model, one_step, 0, tmp_path / str(rows))
    one, eight = read_steps(tmp_path / "1"), read_steps(tmp_path / "8")
    for name in ("hit_rate", "distinct", "reward"):
        assert [line[name] for line in one] == pytest.approx([line[name] for line in eight])
    assert_weights_close(tmp_path / "1", tmp_path / "8", 1e-4)


@pytest.mark.parametrize(
    ("memory", "rollout", "searched"),
    [
        (None, "beam", [8]),
        (4, "oversample", [4, 4]),
        (None, "unconstrained", [2, 2, 2, 2]),
    ],
)
def test_memory_says_how_many_prompts_are_searched_at_a_time(
    memory, rollout, searched, tmp_path, early_model, one_step, monkeypatch
):
    sizes = []

    def record(model: Any, tree: Any, prompts: list[list[int]], *more: Any) -> Any:
        sizes.append(len(prompts))
        return roll_out(model, tree, prompts, *more)

    monkeypatch.setattr(groups_module, "roll_out", record)
    if memory is not None:
        monkeypatch.setattr(groups_module, "max_batch_size", lambda *_: memory)
    scoring = "catalogue" if rollout == "oversample" else "vocabulary"
    chosen = options(rows_per_pass=2, rollout=rollout, scoring=scoring, steps=1)
    rl(chosen, early_model, one_step, 0, tmp_path / "run")
    assert sizes == searched


# ----------------------------------------------------------------------------- dynamic sampling


@pytest.mark.parametrize("limit", [1, 9])
def test_zero_advantage_groups_are_replaced(
    limit, tmp_path, early_model, cycle, plain_descent, rolled_out
):
    chosen = options(objective="dapo", dynamic_sampling=limit, group_size=2, reward=["rule"])
    rl(chosen, early_model, cycle, 0, tmp_path / "run")
    plain = PlainTrainer(chosen, early_model, cycle)
    own, *extra = rolled_out
    assert 1 <= len(extra) <= limit
    assert len(set(own).union(*extra)) == 8 * len(rolled_out)  # no prompt twice

    rewards = {row_id: plain.group(row_id, 0)[2] for row_id in itertools.chain(*rolled_out)}

    def has_advantage(row_id: int) -> bool:
        return min(rewards[row_id]) < max(rewards[row_id])

    replacements = filter(has_advantage, itertools.chain(*extra))
    rows = [row_id if has_advantage(row_id) else next(replacements, row_id) for row_id in own]
    assert rows != own
    plain.update(rows)
    assert_same_step(plain, tmp_path / "run")

    (line,) = read_steps(tmp_path / "run")
    assert line["extra_prompts"] == 8 * len(extra)
    assert line["skipped"] == pytest.approx(1 - sum(map(has_advantage, rows)) / 8)
    assert line["hit_rate"] == pytest.approx(
        sum(map(has_advantage, own)) / 8
    )  # of the step's prompts
    if limit == 9:
        assert line["skipped"] == 0.0


def test_dynamic_sampling_stops_at_the_end_of_the_data(tmp_path, early_model, one_step, rolled_out):
    """The step has all eight rows, so there are no extra prompts."""
    rl(
        options(dynamic_sampling=3, group_size=2, reward=["rule"]),
        early_model,
        one_step,
        0,
        tmp_path,
    )
    assert len(rolled_out) == 1
    (line,) = read_steps(tmp_path)
    assert (line["extra_prompts"], line["skipped"]) == (0.0, pytest.approx(1 - line["hit_rate"]))


def test_dynamic_sampling_without_zero_advantage_groups(
    tmp_path, early_model, one_step, rolled_out
):
    rl(options(dynamic_sampling=3, ground_truth=True), early_model, one_step, 0, tmp_path)
    assert len(rolled_out) == 1


def make_groups(*rewards: float, start: int = 0) -> RewardedGroups:
    """Groups of one candidate each, numbered from `start`."""
    number = torch.arange(start, start + len(rewards))
    reward = torch.tensor(rewards)[:, None]
    leaf = number[:, None]
    return RewardedGroups(
        [[each] for each in number.tolist()], leaf, leaf[..., None], leaf > 0, reward[..., None],
        reward,
    )  # fmt: skip


def test_dynamic_sampling_by_hand():
    extra = iter(
        [make_groups(0, 5, start=10), make_groups(6, 7, 8, start=20), make_groups(9, start=30)]
    )
    groups, extra_prompts = dynamic_sampling(
        make_groups(0, 1, 0, 0), extra, lambda groups: (groups.reward[:, 0] == 0).tolist()
    )
    # 11, 20 and 21 replace the groups of reward 0; 22 and the last batch are not needed.
    assert [prompt for (prompt,) in groups.prompts] == [11, 1, 20, 21]
    assert groups.leaf.flatten().tolist() == [11, 1, 20, 21]
    assert groups.reward.flatten().tolist() == [5, 1, 6, 7]
    assert extra_prompts == 5
    assert next(extra).prompts == [[30]]


def test_num_decisions_by_hand():
    # 1 1 9, 1 2 9, 2 9: the root branches into 1 and 2, its first child again.
    tree = PrefixTree.build([[1, 1, 9], [1, 2, 9], [2, 9]])
    assert num_decisions(tree)[tree.leaf_of_item].tolist() == [2, 2, 1]
    assert tree.num_levels - 1 == 2


# ------------------------------------------------------------------------------------ own rewards

OWN = """
def same_parity(groups):
    return (groups.item % 2 == groups.target[:, None] % 2).float()

def wrong(groups):
    return groups.target.float()
"""


def run_own(
    folder: Path, init: Path, data: Path, *rewards: str
) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(OWN)
    arguments = ["--init", init, "--data", data, "--output", "run", "--reward", *rewards]
    sizes = ["--steps", 2, "--prompts", 8, "--group-size", 8, "--validations", 1]
    return STAGE_FORKS.run("-m", "rere", "rl", *map(str, [*arguments, *sizes]), folder=folder)


def test_own_reward_on_the_command_line(tmp_path, early_model, one_step):
    done = run_own(tmp_path, early_model, one_step, "rule", "mine:same_parity=0.25")
    assert done.returncode == 0, done.stdout
    for line in read_steps(tmp_path / "run"):
        # All eight items are candidates, four of them of the target's parity.
        assert line["reward_mine:same_parity"] == 4.0
        assert line["reward"] == 1 + 0.25 * 4
    inputs = json.loads((tmp_path / "run" / "run.json").read_text())["inputs_sha256"]
    assert str(tmp_path / "mine.py") in inputs


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            "mine:missing",
            "rere rl: reward mine:missing: cannot be imported (module 'mine' has no attribute "
            "'missing')",
        ),
        (
            "yours:reward",
            "rere rl: reward yours:reward: cannot be imported (No module named 'yours')",
        ),
        (
            "mine:wrong",
            "rere rl: reward mine:wrong: returned shape (8,); return one reward per candidate, "
            "(8, 8)",
        ),
    ],
)
def test_wrong_own_reward_is_a_one_line_error(reward, message, tmp_path, early_model, one_step):
    done = run_own(tmp_path, early_model, one_step, reward)
    assert done.returncode == 1
    assert message in done.stdout.splitlines()
    assert "Traceback" not in done.stdout


# ------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": "iid"}, "rollout: iid needs scoring: catalogue"),
        ({"rollout": "stochastic_beam"}, "rollout: stochastic_beam needs scoring: catalogue"),
        (
            {"rollout": "unconstrained", "scoring": "catalogue"},
            "rollout: unconstrained needs scoring: vocabulary",
        ),
        ({"kl": "k1"}, "kl\n  Input should be 'k2' or 'k3'"),
        (
            {"objective": "released_token_mean", "clip": [0.2, 0.2]},
            "objective: released_token_mean does not clip; leave clip out",
        ),
        (
            {"objective": "released_sequence_mean", "updates": 2},
            "objective: released_sequence_mean takes one update per rollout; write updates: 1",
        ),
        ({"clip": [0.0, 0.2]}, "clip takes two numbers above 0"),
        ({"clip": [1.5, 0.2]}, "the first at most 1"),
        ({"clip": [0.2]}, "clip takes two numbers"),
        (
            {"dynamic_sampling": 1, "advantage": "global"},
            "dynamic_sampling would replace groups that a global advantage",
        ),
        ({"embeddings": "folder"}, "embeddings are for the semantic reward; add it"),
        ({"reward": ["rule", "rule=2"]}, "rule comes twice"),
        ({"reward": ["rulle"]}, "there is no rulle; did you mean rule?"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_contradictory_options_are_refused(changes, message):
    with pytest.raises(ValueError) as refused:
        options(**changes)
    assert message in str(refused.value)


def test_options_name_the_functions():
    names = {
        name: get_args(RlOptions.model_fields[name].annotation)
        for name in ("rollout", "advantage", "objective", "kl")
    }
    assert names == {
        "rollout": get_args(RolloutStrategy),
        "advantage": tuple(ADVANTAGES),
        "objective": tuple(OBJECTIVES),
        "kl": tuple(KL),
    }


def test_factors_of_another_dataset_are_refused(tmp_path, early_model, one_step):
    row_ids, (states, items) = torch.arange(5), torch.randn(2, 5, 3)
    Factors(row_ids, states, items).save(tmp_path / "factors.safetensors")
    with pytest.raises(InputError, match="made from another data set or split"):
        rl(options(reward=["collaborative"]), early_model, one_step, 0, tmp_path / "run",
           tmp_path / "factors.safetensors")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_collaborative_reward_needs_a_baseline():
    assert Method(rl=RlOptions(reward=["collaborative"])).needs_baseline
    assert not Method(rl=RlOptions()).needs_baseline
