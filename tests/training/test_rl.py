"""ReRe end to end, from a model that half knows a pattern with one right answer."""

import math
from pathlib import Path

import pytest
import torch
from tiny_models import CYCLE, write_cycle, write_data, write_fixed_model
from training_runs import (
    assert_carries_catalogue,
    assert_weights_close,
    half_trained,
    records,
    steps,
)

from rere import tokenization
from rere.backbones import load_model, load_tokenizer
from rere.config.training import RlOptions
from rere.data.dataset import read_split
from rere.engine.search.beam import beam_search
from rere.engine.search.rollout import roll_out
from rere.errors import InputError
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder
from rere.training import groups, setup
from rere.training.rl import rl

SHORT = RlOptions(
    learning_rate=1e-3,
    steps=4,
    prompts=8,
    rows_per_pass=8,
    group_size=4,
    beta=0.1,
    validations=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("cycle"))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return half_trained(tmp_path_factory.mktemp("init"), data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, init: Path) -> Path:
    """A run that sees all eight items each time, long enough to rank the target up."""
    output = tmp_path_factory.mktemp("trained")
    options = SHORT.model_copy(
        update={"steps": 40, "group_size": 8, "beta": 1e-3, "validations": 4}
    )
    rl(options, init, data, 0, output)
    return output


def ndcg(folder: Path, data: Path, num_beams: int) -> float:
    """NDCG@10 of the beams of the validation rows, one row at a time."""
    model, encoder = load_model(folder), PromptEncoder(load_tokenizer(folder), CYCLE)
    tree = PrefixTree.build(encoder.encode_responses())
    rows = read_split(data, "valid")
    total = 0.0
    for row_id, history, target in rows.select("row_id", "history", "target").iter_rows():
        encoded = encoder.encode_prompts([row_id], [history], 0)
        leaves = beam_search(model, tree, encoded, num_beams).leaf[0].tolist()
        leaf = int(tree.leaf_of_item[target])
        if leaf in leaves[:10]:
            total += 1 / math.log2(leaves.index(leaf) + 2)
    return total / len(rows)


# ------------------------------------------------------------------------------------- learning


def test_the_target_is_ranked_up(trained, init, data):
    before, after = ndcg(init, data, 8), ndcg(trained / "model", data, 8)
    assert after > before + 0.2


def test_the_validation_of_the_log_is_that_of_the_model_left(trained, data):
    logged = [line["eval_ndcg@10"] for line in records(trained) if "eval_ndcg@10" in line]
    assert len(logged) == 4
    assert ndcg(trained / "model", data, 8) == pytest.approx(max(logged), abs=1e-6)


@pytest.mark.parametrize("rows_per_pass, dtype", [(4, torch.float32), (8, torch.float64)])
def test_the_first_steps(rows_per_pass, dtype, tmp_path, data, monkeypatch):
    """Golden: they may change only where prompts, order of rows or arithmetic are meant to.

    A step in one pass recalls what its search computed. Finely rounded, since at this rate of
    learning what is rounded otherwise in the first step is 2e-4 of a norm in the sixth.
    """
    load = setup.load_trainable

    def load_as(*given):
        tokenizer, model = load(*given)
        return tokenizer, model.to(dtype)

    monkeypatch.setattr(setup, "load_trainable", load_as)
    changes = {"learning_rate": 1e-2, "beta": 1.0, "steps": 10, "rows_per_pass": rows_per_pass}
    options = SHORT.model_copy(update=changes)
    rl(options, write_fixed_model(tmp_path / "init"), data, 0, tmp_path)
    lines = steps(tmp_path)
    # The advantages of a group add up to 0, so that a loss is next to beta * KL.
    for name, expected in GOLDEN.items():
        assert [line[name] for line in lines] == pytest.approx(expected, rel=1e-4, abs=1e-5), name


GOLDEN = {
    "loss": [
        *[0.0, 0.01804, 0.02265, 0.0097, 0.01143],
        *[0.01152, 0.0072, 0.00539, 0.00466, 0.00444],
    ],
    "grad_norm": [
        *[0.1289, 0.18527, 0.24722, 0.08924, 0.12381],
        *[0.15617, 0.12918, 0.1374, 0.10103, 0.07536],
    ],
    "reward": [
        *[0.11861, 0.12838, 0.06981, 0.14602, 0.20797],
        *[0.1738, 0.20797, 0.10361, 0.11037, 0.0762],
    ],
    "hit_rate": [0.625, 0.375, 0.375, 0.625, 0.75, 0.625, 0.625, 0.5, 0.5, 0.375],
}


# ---------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_a_model_and_a_log_and_nothing_else(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["log.jsonl", "model", "run.json"]
    suffixes = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".jinja", ".txt"}
    assert (trained / "model" / "model.safetensors").is_file()


def test_the_model_carries_its_catalogue(trained):
    assert_carries_catalogue(trained, CYCLE)


def test_the_log_has_a_line_a_step(trained):
    lines = steps(trained)
    assert [line["step"] for line in lines] == list(range(1, 41))
    names = {"loss", "grad_norm", "learning_rate", "reward", "hit_rate", "kl"}
    assert all(names <= line.keys() for line in lines)
    # All eight items are candidates: the target is among them always.
    assert {line["hit_rate"] for line in lines} == {1.0}
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert lines[-1]["kl"] > 1e-3


def test_without_kl_no_reference_is_kept(tmp_path, data, init):
    rl(SHORT.model_copy(update={"beta": 0.0}), init, data, 0, tmp_path)
    assert all("kl" not in line for line in steps(tmp_path))
    assert [line["loss"] for line in steps(tmp_path)] == pytest.approx([0.0] * 4, abs=1e-6)


# --------------------------------------------------------------------- seeds, passes and groups


def test_the_seed_alone_decides(tmp_path, data, init):
    for name, seed in [("first", 3), ("again", 3), ("other", 4)]:
        torch.rand(seed)  # whatever state the generator was left in
        rl(SHORT, init, data, seed, tmp_path / name)
    assert_weights_close(tmp_path / "again", tmp_path / "first", 0.0)
    assert steps(tmp_path / "again") == steps(tmp_path / "first")
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "other", tmp_path / "first", 1e-3)


def test_the_seed_reaches_the_order_of_rows(tmp_path, data, init, monkeypatch):
    monkeypatch.setattr(tokenization, "choose_instruction", lambda seed, row_id: "Go on.")
    for seed in (3, 4):
        rl(SHORT, init, data, seed, tmp_path / str(seed))
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "4", tmp_path / "3", 1e-3)


@pytest.mark.parametrize("rows_per_pass", [1, 2])
def test_passes_do_not_change_the_result(tmp_path, data, init, rows_per_pass):
    rl(SHORT, init, data, 0, tmp_path / "one")
    options = SHORT.model_copy(update={"rows_per_pass": rows_per_pass})
    rl(options, init, data, 0, tmp_path / "many")
    one, many = steps(tmp_path / "one"), steps(tmp_path / "many")
    for name in ("loss", "grad_norm", "learning_rate", "reward", "hit_rate"):
        values = [line[name] for line in one]
        assert [line[name] for line in many] == pytest.approx(values, abs=1e-4, rel=1e-4), name
    # (Adam blows a rounding error up where a gradient is next to 0; a step is 1e-3 long.)
    assert_weights_close(tmp_path / "many", tmp_path / "one", 1e-4)


def test_rows_of_like_length_share_a_pass(tmp_path, data, init, monkeypatch):
    lengths = []

    def counted(policy, tree, some, *more):
        lengths.append([len(prompt) for prompt in some])
        return roll_out(policy, tree, some, *more)

    monkeypatch.setattr(tokenization, "choose_instruction", lambda seed, row_id: "Go on.")
    monkeypatch.setattr(groups, "roll_out", counted)
    rl(SHORT.model_copy(update={"rows_per_pass": 4}), init, data, 0, tmp_path)
    pairs = list(zip(lengths[::2], lengths[1::2], strict=True))
    assert len(pairs) == SHORT.steps
    assert all(max(first) <= min(second) for first, second in pairs)
    assert any(min(first) < max(second) for first, second in pairs)


def test_a_group_larger_than_the_catalogue(tmp_path, data, init):
    """Sixteen places for eight items; all of them are candidates."""
    options = SHORT.model_copy(update={"group_size": 16, "reward": ["ranking"]})
    rl(options, init, data, 0, tmp_path)
    assert {line["hit_rate"] for line in steps(tmp_path)} == {1.0}
    # The items have the first eight of sixteen ranks, the target, which pays nothing, one of them:
    # it saves the group 1 / log2(9) to 1 of the 3.953 that eight ranks cost, over the 6.106 of all.
    for line in steps(tmp_path):
        assert -(3.953 - 1 / math.log2(9)) / 6.106 - 1e-3 <= line["reward"]
        assert line["reward"] <= -(3.953 - 1) / 6.106 + 1e-3


def test_titles_that_items_share_are_one_candidate(tmp_path, init):
    """A hit is the target's title, whichever item of that title was meant."""
    titles = [*CYCLE[:3], CYCLE[0]]
    rows = [([1], 3), ([2], 0)] * 8
    data = write_data(tmp_path / "data", titles, train=rows, valid=rows)
    rl(SHORT.model_copy(update={"group_size": 3}), init, data, 0, tmp_path / "run")
    assert {line["hit_rate"] for line in steps(tmp_path / "run")} == {1.0}


@pytest.mark.parametrize("reward", [["rule"], ["ranking"]])
def test_the_reward_is_that_of_the_options(tmp_path, data, init, reward):
    options = SHORT.model_copy(update={"reward": reward, "group_size": 8, "steps": 1})
    rl(options, init, data, 0, tmp_path)
    (line,) = steps(tmp_path)
    if reward == ["rule"]:
        assert line["reward"] == 1.0  # one of the eight candidates is the target
    else:
        # All eight penalties add up to -1; the target's, 1 to 1 / log2(9) over their total, is 0.
        total = sum(1 / math.log2(rank + 1) for rank in range(1, 9))
        assert -(1 - 1 / math.log2(9) / total) <= line["reward"] <= -(1 - 1 / total)


def test_fewer_training_rows_than_prompts_are_refused(tmp_path, init):
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1)] * 7, valid=[([0], 1)])
    with pytest.raises(InputError, match="has 7 training rows in train_part, fewer than 8"):
        rl(SHORT, init, data, 0, tmp_path / "run")
