"""ReRe end to end, on a cycle of items, from a briefly trained model."""

import math
from pathlib import Path

import pytest
import torch
from tiny_models import CYCLE, write_cycle, write_data, write_fixed_model
from training_runs import (
    assert_has_catalogue,
    assert_weights_close,
    read_steps,
    read_values,
    train_briefly,
)

from rere import tokenization
from rere.backbones import load_model, load_tokenizer
from rere.config.rl import RlOptions
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
    return train_briefly(tmp_path_factory.mktemp("init"), data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, init: Path) -> Path:
    """A run with all eight items in each group, long enough to improve the target's rank."""
    output = tmp_path_factory.mktemp("trained")
    options = SHORT.model_copy(
        update={"steps": 40, "group_size": 8, "beta": 1e-3, "validations": 4}
    )
    rl(options, init, data, 0, output)
    return output


def ndcg(folder: Path, data: Path, num_beams: int) -> float:
    """NDCG@10 of beam search on the validation rows, one row at a time."""
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


def test_ndcg_rises(trained, init, data):
    before, after = ndcg(init, data, 8), ndcg(trained / "model", data, 8)
    assert after > before + 0.2


def test_saved_model_is_the_best_validated_one(trained, data):
    logged = read_values(trained, "eval_ndcg@10")
    assert len(logged) == 4
    assert ndcg(trained / "model", data, 8) == pytest.approx(max(logged), abs=1e-6)


@pytest.mark.parametrize("rows_per_pass, dtype", [(4, torch.float32), (8, torch.float64)])
def test_golden_steps(rows_per_pass, dtype, tmp_path, data, monkeypatch):
    """They may change only with an intended change of prompts, row order or arithmetic.

    One pass per step runs in float64, since at this learning rate other rounding in the first step
    grows to 2e-4 of a norm in the sixth.
    """
    load = setup.load_trainable

    def load_as(*given):
        tokenizer, model = load(*given)
        return tokenizer, model.to(dtype)

    monkeypatch.setattr(setup, "load_trainable", load_as)
    changes = {"learning_rate": 1e-2, "beta": 1.0, "steps": 10, "rows_per_pass": rows_per_pass}
    options = SHORT.model_copy(update=changes)
    rl(options, write_fixed_model(tmp_path / "init"), data, 0, tmp_path)
    lines = read_steps(tmp_path)
    # The advantages of a group sum to 0, so the loss is almost beta * KL.
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


# ------------------------------------------------------------------------------- output files


def test_output_files(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["log.jsonl", "model", "run.json"]
    suffixes = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".jinja", ".txt"}
    assert (trained / "model" / "model.safetensors").is_file()


def test_model_folder_has_the_catalogue(trained):
    assert_has_catalogue(trained, CYCLE)


def test_log_has_one_line_per_step(trained):
    lines = read_steps(trained)
    assert [line["step"] for line in lines] == list(range(1, 41))
    names = {"loss", "grad_norm", "learning_rate", "reward", "hit_rate", "kl"}
    assert all(names <= line.keys() for line in lines)
    # All eight items are candidates, so the target always is.
    assert {line["hit_rate"] for line in lines} == {1.0}
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert lines[-1]["kl"] > 1e-3


def test_without_kl_there_is_no_reference(tmp_path, data, init):
    rl(SHORT.model_copy(update={"beta": 0.0}), init, data, 0, tmp_path)
    assert all("kl" not in line for line in read_steps(tmp_path))
    assert read_values(tmp_path, "loss") == pytest.approx([0.0] * 4, abs=1e-6)


# --------------------------------------------------------------------- seeds, passes and groups


def test_same_seed_same_weights(tmp_path, data, init):
    for name, seed in [("first", 3), ("again", 3), ("other", 4)]:
        torch.rand(seed)  # the initial state of the generator must not matter
        rl(SHORT, init, data, seed, tmp_path / name)
    assert_weights_close(tmp_path / "again", tmp_path / "first", 0.0)
    assert read_steps(tmp_path / "again") == read_steps(tmp_path / "first")
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "other", tmp_path / "first", 1e-3)


def test_seed_changes_the_row_order(tmp_path, data, init, monkeypatch):
    monkeypatch.setattr(tokenization, "choose_instruction", lambda seed, row_id: "Go on.")
    for seed in (3, 4):
        rl(SHORT, init, data, seed, tmp_path / str(seed))
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "4", tmp_path / "3", 1e-3)


@pytest.mark.parametrize("rows_per_pass", [1, 2])
def test_rows_per_pass_does_not_change_the_result(tmp_path, data, init, rows_per_pass):
    rl(SHORT, init, data, 0, tmp_path / "one")
    options = SHORT.model_copy(update={"rows_per_pass": rows_per_pass})
    rl(options, init, data, 0, tmp_path / "many")
    one, many = read_steps(tmp_path / "one"), read_steps(tmp_path / "many")
    for name in ("loss", "grad_norm", "learning_rate", "reward", "hit_rate"):
        values = [line[name] for line in one]
        assert [line[name] for line in many] == pytest.approx(values, abs=1e-4, rel=1e-4), name
    # Adam amplifies rounding where a gradient is almost 0; a step changes weights by 1e-3.
    assert_weights_close(tmp_path / "many", tmp_path / "one", 1e-4)


def test_prompts_of_similar_length_share_a_pass(tmp_path, data, init, monkeypatch):
    lengths = []

    def spy(policy, tree, prompts, *more):
        lengths.append([len(prompt) for prompt in prompts])
        return roll_out(policy, tree, prompts, *more)

    monkeypatch.setattr(tokenization, "choose_instruction", lambda seed, row_id: "Go on.")
    monkeypatch.setattr(groups, "roll_out", spy)
    rl(SHORT.model_copy(update={"rows_per_pass": 4}), init, data, 0, tmp_path)
    pairs = list(zip(lengths[::2], lengths[1::2], strict=True))
    assert len(pairs) == SHORT.steps
    assert all(max(first) <= min(second) for first, second in pairs)
    assert any(min(first) < max(second) for first, second in pairs)


def test_group_larger_than_the_catalogue(tmp_path, data, init):
    """Sixteen slots for eight items: all items are candidates."""
    options = SHORT.model_copy(update={"group_size": 16, "reward": ["ranking"]})
    rl(options, init, data, 0, tmp_path)
    assert {line["hit_rate"] for line in read_steps(tmp_path)} == {1.0}
    # The items have the first eight of sixteen ranks, whose discounts sum to 3.953 of 6.106. The
    # target's own discount, 1 / log2(9) to 1, is not charged.
    for line in read_steps(tmp_path):
        assert -(3.953 - 1 / math.log2(9)) / 6.106 - 1e-3 <= line["reward"]
        assert line["reward"] <= -(3.953 - 1) / 6.106 + 1e-3


def test_items_with_the_same_title_are_one_candidate(tmp_path, init):
    """A candidate with the target's title is a hit, whichever item it was."""
    titles = [*CYCLE[:3], CYCLE[0]]
    rows = [([1], 3), ([2], 0)] * 8
    data = write_data(tmp_path / "data", titles, train=rows, valid=rows)
    rl(SHORT.model_copy(update={"group_size": 3}), init, data, 0, tmp_path / "run")
    assert {line["hit_rate"] for line in read_steps(tmp_path / "run")} == {1.0}


def test_fewer_training_rows_than_prompts_is_refused(tmp_path, init):
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1)] * 7, valid=[([0], 1)])
    with pytest.raises(InputError, match="has 7 training rows in train_part, fewer than 8"):
        rl(SHORT, init, data, 0, tmp_path / "run")
