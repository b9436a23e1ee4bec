"""Supervised fine-tuning end to end, on a cycle of items, where each has one successor."""

import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from tiny_models import (
    CYCLE,
    causal_lm,
    tokenizer,
    write_cycle,
    write_data,
    write_fixed_model,
)
from training_runs import (
    assert_has_catalogue,
    assert_weights_close,
    load_weights,
    read_log,
    read_steps,
    read_values,
)

from rere import tokenization
from rere.backbones import backbone, load_model, load_tokenizer
from rere.config.backbones import Tiny
from rere.config.training import SftOptions
from rere.data.dataset import read_split
from rere.engine.search.beam import beam_search
from rere.errors import InputError
from rere.prefix_tree import PrefixTree
from rere.tokenization import PromptEncoder
from rere.training.sft import sft

SHORT = SftOptions(learning_rate=5e-3, batch_size=8, rows_per_pass=8, epochs=0.5, validations=1)
"""Six steps of eight rows."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("cycle"))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("init") / "backbone"
    options = Tiny(vocab_size=512, hidden_size=64, num_layers=2, num_heads=4)
    backbone(options, data, folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, init: Path) -> Path:
    """A run long enough to learn the cycle."""
    output = tmp_path_factory.mktemp("trained")
    sft(SHORT.model_copy(update={"epochs": 12.0, "validations": 4}), init, data, 0, output)
    return output


def hit_rate(model: Path, data: Path, seed: int) -> float:
    """The share of validation rows whose best beam is the target."""
    encoder = PromptEncoder(load_tokenizer(model), CYCLE)
    tree = PrefixTree.build(encoder.encode_responses())
    rows = read_split(data, "valid")
    encoded = encoder.encode_prompts(rows["row_id"].to_list(), rows["history"].to_list(), seed)
    leaf, _ = beam_search(load_model(model), tree, encoded, 1)
    return (leaf[:, 0] == tree.leaf_of_item[rows["target"].to_list()]).float().mean().item()


# ------------------------------------------------------------------------------------- learning


def test_learns_the_cycle(trained, data, init):
    assert hit_rate(init, data, seed=0) < 0.4
    assert hit_rate(trained / "model", data, seed=0) == 1.0


def test_loss_falls(trained):
    losses = read_values(trained, "loss")
    assert len(losses) == 12 * 96 / 8
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])


def test_golden_losses(tmp_path, data):
    """They may change only with an intended change of prompts, row order or arithmetic."""
    options = SHORT.model_copy(update={"epochs": 10 / 12})
    sft(options, write_fixed_model(tmp_path / "init"), data, 0, tmp_path)
    for name, expected in GOLDEN.items():
        assert [line[name] for line in read_steps(tmp_path)] == pytest.approx(expected, rel=1e-4), (
            name
        )


GOLDEN = {
    "loss": [
        *[6.16729, 6.11192, 5.99969, 5.86558, 5.86618],
        *[5.84537, 5.77352, 5.74298, 5.77138, 5.80051],
    ],
    "grad_norm": [
        *[0.90626, 0.92026, 0.75087, 0.58914, 0.56270],
        *[0.58740, 0.59048, 0.64933, 0.59497, 0.57968],
    ],
}


def test_first_loss_is_that_of_uniform_guesses(trained):
    # A new model gives each of V = 512 tokens a probability of about 1 / V: log(512) = 6.24.
    assert read_steps(trained)[0]["loss"] == pytest.approx(6.24, abs=0.3)


def test_early_stopping_keeps_the_best_checkpoint(tmp_path, data, init):
    # The high learning rate soon makes every validation worse.
    options = SHORT.model_copy(
        update={"learning_rate": 10.0, "epochs": 4.0, "validations": 12, "patience": 2}
    )
    sft(options, init, data, 0, tmp_path)
    losses = read_values(tmp_path, "eval_loss")
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 12
    assert len(read_steps(tmp_path)) == 4 * len(losses)
    assert supervised_loss(tmp_path / "model", data) == pytest.approx(losses[best], rel=1e-4)
    assert losses[-1] > 1.01 * losses[best]


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
    assert [line["step"] for line in lines] == list(range(1, 145))
    assert all({"loss", "grad_norm", "learning_rate"} <= line.keys() for line in lines)
    assert all(line["grad_norm"] > 0 for line in lines)
    # Linear warm-up over round(.03 * 144) = 4 steps, then a cosine.
    rates = [line["learning_rate"] for line in lines]
    assert max(rates) == pytest.approx(5e-3)
    assert rates.index(max(rates)) == 4
    assert rates[-1] < 1e-4


def test_log_has_one_line_per_validation(trained):
    lines = [record for record in read_log(trained) if "eval_loss" in record]
    assert [line["step"] for line in lines] == [36, 72, 108, 144]


def test_validation_has_no_dropout(tmp_path, data):
    model = causal_lm("gpt2", len(tokenizer("gpt2")), resid_pdrop=0.5, embd_pdrop=0.5)
    model.save_pretrained(tmp_path / "init")
    tokenizer("gpt2").save_pretrained(tmp_path / "init")
    sft(SHORT, tmp_path / "init", data, 0, tmp_path / "run")
    (loss,) = read_values(tmp_path / "run", "eval_loss")
    assert supervised_loss(tmp_path / "run" / "model", data) == pytest.approx(loss, rel=1e-4)


def supervised_loss(folder: Path, data: Path) -> float:
    """The mean loss of the validation rows' response tokens, one row per plain forward pass."""
    model = load_model(folder).eval()
    encoder = PromptEncoder(load_tokenizer(folder), CYCLE)
    responses, rows = encoder.encode_responses(), read_split(data, "valid")
    encoded = encoder.encode_prompts(rows["row_id"].to_list(), rows["history"].to_list(), 0)
    total = count = 0
    for prompt, target in zip(encoded, rows["target"].to_list(), strict=True):
        labels = [-100] * len(prompt) + responses[target]
        with torch.no_grad():
            loss = model(
                input_ids=torch.tensor([prompt + responses[target]]), labels=torch.tensor([labels])
            ).loss
        total += loss.item() * len(responses[target])
        count += len(responses[target])
    return total / count


# --------------------------------------------------------------------- seeds, passes and batches


def test_same_seed_same_weights(tmp_path, data, init):
    for name, seed in [("first", 3), ("again", 3), ("other", 4)]:
        torch.rand(seed)  # the initial state of the generator must not matter
        sft(SHORT, init, data, seed, tmp_path / name)
    assert_weights_close(tmp_path / "again", tmp_path / "first", 0.0)
    assert read_log(tmp_path / "again")[:6] == read_log(tmp_path / "first")[:6]
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "other", tmp_path / "first", 1e-3)


def test_seed_changes_the_row_order(tmp_path, data, init, monkeypatch):
    monkeypatch.setattr(tokenization, "choose_instruction", lambda seed, row_id: "Go on.")
    for seed in (3, 4):
        sft(SHORT, init, data, seed, tmp_path / str(seed))
    with pytest.raises(AssertionError):
        assert_weights_close(tmp_path / "4", tmp_path / "3", 1e-3)


@pytest.mark.parametrize("rows_per_pass", [1, 2])
def test_rows_per_pass_does_not_change_the_result(tmp_path, data, init, rows_per_pass):
    sft(SHORT, init, data, 0, tmp_path / "one")
    options = SHORT.model_copy(update={"rows_per_pass": rows_per_pass})
    sft(options, init, data, 0, tmp_path / "many")
    one, many = read_steps(tmp_path / "one"), read_steps(tmp_path / "many")
    for name in ("loss", "grad_norm", "learning_rate"):
        values = [line[name] for line in one]
        assert [line[name] for line in many] == pytest.approx(values, abs=1e-4, rel=1e-4)
    # Adam amplifies rounding where a gradient is almost 0; a step changes weights by 5e-3.
    assert_weights_close(tmp_path / "many", tmp_path / "one", 1e-4)


def test_incomplete_last_step(tmp_path, data, init):
    """21 rows are two steps of 8 and one of 5, whatever the rows per pass."""
    few = tmp_path / "few"
    shutil.copytree(data, few)
    read_split(few, "train").head(21).write_parquet(few / "train.parquet")
    for name, rows_per_pass in [("one", 8), ("many", 2)]:
        options = SHORT.model_copy(update={"rows_per_pass": rows_per_pass, "epochs": 2.0})
        sft(options, init, few, 0, tmp_path / name)
    assert len(read_steps(tmp_path / "one")) == 6
    # Adam amplifies rounding where a gradient is almost 0; a step changes weights by 5e-3.
    assert_weights_close(tmp_path / "many", tmp_path / "one", 1e-4)


def test_fewer_rows_than_one_step(tmp_path, init):
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1), ([1], 2)], valid=[([2], 3)])
    sft(SHORT.model_copy(update={"epochs": 3.0}), init, data, 0, tmp_path / "run")
    assert len(read_steps(tmp_path / "run")) >= 1


def test_bfloat16_keeps_float32_weights(tmp_path, data):
    options = SHORT.model_copy(update={"epochs": 10 / 12, "dtype": "bfloat16"})
    sft(options, write_fixed_model(tmp_path / "init"), data, 0, tmp_path)
    assert {weight.dtype for weight in load_weights(tmp_path).values()} == {torch.float32}
    losses = read_values(tmp_path, "loss")
    assert losses == pytest.approx(GOLDEN["loss"], rel=0.02)


def test_only_the_validation_sample_matters(tmp_path, data, init):
    """Changing rows outside the seeded sample changes nothing."""
    sft(SHORT.model_copy(update={"valid_rows": 5}), init, data, 0, tmp_path / "all")
    cut = tmp_path / "cut"
    shutil.copytree(data, cut)
    chosen = read_split(data, "valid", 5)["row_id"]
    valid = read_split(data, "valid")
    valid.with_columns(
        pl.when(pl.col("row_id").is_in(chosen.to_list()))
        .then("target")
        .otherwise(0)
        .cast(pl.Int32)
        .alias("target")
    ).write_parquet(cut / "valid.parquet")
    sft(SHORT.model_copy(update={"valid_rows": 5}), init, cut, 0, tmp_path / "part")
    assert_weights_close(tmp_path / "part", tmp_path / "all", 0.0)


def test_architecture_without_shared_prompts_is_refused(tmp_path, data):
    folder = tmp_path / "init"
    causal_lm("bloom", len(tokenizer("qwen2"))).save_pretrained(folder)
    tokenizer("qwen2").save_pretrained(folder)
    with pytest.raises(InputError, match="init: BloomForCausalLM cannot be trained"):
        sft(SHORT, folder, data, 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()
