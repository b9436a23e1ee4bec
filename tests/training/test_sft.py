"""Supervised fine-tuning end to end, on a cycle of items, where each has one successor."""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from tiny_models import CYCLE, causal_lm, tokenizer, write_data
from training_runs import (
    SHORT,
    has_same_weights,
    load_weights,
    read_log,
    read_steps,
    read_values,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from rere.backbones import load_model, load_tokenizer
from rere.config.run import CARD
from rere.data.dataset import read_split
from rere.engine.search.beam import beam_search
from rere.errors import InputError
from rere.model_card import REPO
from rere.prefix_tree import PrefixTree
from rere.tokenization import INSTRUCTIONS, PromptEncoder, prompt_text, response_text
from rere.training.sft import sft


def hit_rate(model: Path, data: Path) -> float:
    """The share of validation rows whose best beam is the target."""
    encoder = PromptEncoder(load_tokenizer(model), CYCLE)
    tree = PrefixTree.build(encoder.encode_responses())
    rows = read_split(data, "valid")
    encoded = encoder.encode_prompts(rows["row_id"].to_list(), rows["history"].to_list(), 0)
    leaf, _ = beam_search(load_model(model), tree, encoded, 1)
    return (leaf[:, 0] == tree.leaf_of_item[rows["target"].to_list()]).float().mean().item()


# ------------------------------------------------------------------------------------- learning


def test_learns_the_cycle(learned_cycle, untrained_model, cycle):
    assert hit_rate(untrained_model, cycle) < 0.4
    assert hit_rate(learned_cycle / "model", cycle) == 1.0


def test_loss_falls(learned_cycle):
    losses = read_values(learned_cycle, "loss")
    assert len(losses) == 12 * 96 / 8
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])


def test_golden_losses(trained):
    """They may change only with an intended change of prompts, row order or arithmetic."""
    lines = read_steps(trained("sft", epochs=10 / 12))
    for name, expected in GOLDEN.items():
        assert [line[name] for line in lines] == pytest.approx(expected, rel=1e-4), name


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


def test_transformers_generates_a_title_that_ends(learned_cycle):
    folder = learned_cycle / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)
    inputs = tokens(prompt_text(INSTRUCTIONS[0], CYCLE[:2]), return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=50)[0, inputs.input_ids.shape[1] :]
    assert output[-1] == tokens.eos_token_id
    assert tokens.decode(output[:-1]) == response_text(CYCLE[2])
    assert model.config.use_cache


def test_the_code_of_the_card_recommends(learned_cycle, monkeypatch, capsys):
    folder = learned_cycle / "model"
    monkeypatch.setattr("huggingface_hub.snapshot_download", str)
    blocks = re.findall("```python\n(.*?)```", (folder / CARD).read_text(), re.S)
    for code in blocks:
        exec(code.replace(REPO, str(folder)), {})
    first, *others, title, end = capsys.readouterr().out.splitlines()
    assert first.split()[1:-1] == CYCLE[2].split()
    assert len(others) == len(CYCLE) - 1
    assert (title, end) == (f'"{CYCLE[2]}"', "")


def test_first_loss_is_that_of_uniform_guesses(learned_cycle):
    # A new model gives each of V = 512 tokens a probability of about 1 / V: log(512) = 6.24.
    assert read_steps(learned_cycle)[0]["loss"] == pytest.approx(6.24, abs=0.3)


def test_early_stopping_keeps_the_best_checkpoint(trained, cycle):
    # The high learning rate soon makes every validation worse.
    folder = trained("sft", learning_rate=10.0, epochs=4.0, validations=12, patience=2)
    losses = read_values(folder, "eval_loss")[1:]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 12
    assert len(read_steps(folder)) == 4 * len(losses)
    assert supervised_loss(folder / "model", cycle) == pytest.approx(losses[best], rel=1e-4)
    assert losses[-1] > 1.01 * losses[best]


# ----------------------------------------------------------------------- the log and validation


def test_log_has_one_line_per_step(learned_cycle):
    lines = read_steps(learned_cycle)
    assert [line["step"] for line in lines] == list(range(1, 145))
    assert all({"loss", "grad_norm", "learning_rate"} <= line.keys() for line in lines)
    assert all(line["grad_norm"] > 0 for line in lines)
    # Linear warm-up over round(.03 * 144) = 4 steps, then a cosine.
    rates = [line["learning_rate"] for line in lines]
    assert max(rates) == pytest.approx(5e-3)
    assert rates.index(max(rates)) == 4
    assert rates[-1] < 1e-4


def test_log_has_one_line_per_validation(learned_cycle):
    lines = [record for record in read_log(learned_cycle) if "eval_loss" in record]
    assert [line["step"] for line in lines] == [0, 36, 72, 108, 144]


def test_validation_has_no_dropout(tmp_path, cycle):
    model = causal_lm("gpt2", len(tokenizer("gpt2")), resid_pdrop=0.5, embd_pdrop=0.5)
    model.save_pretrained(tmp_path / "init")
    tokenizer("gpt2").save_pretrained(tmp_path / "init")
    sft(SHORT["sft"], tmp_path / "init", cycle, 0, tmp_path / "run")
    loss = read_values(tmp_path / "run", "eval_loss")[-1]
    assert supervised_loss(tmp_path / "run" / "model", cycle) == pytest.approx(loss, rel=1e-4)


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


@pytest.mark.parametrize("rows_per_pass", [2, 8])
def test_catalogue_scoring_by_hand(one_step, fixed_model, tmp_path, rows_per_pass):
    """The only step has all rows, and its loss is that of the initial model, as in validation."""
    changes = {"scoring": "catalogue", "rows_per_pass": rows_per_pass, "epochs": 1.0}
    sft(SHORT["sft"].model_copy(update=changes), fixed_model, one_step, 0, tmp_path)
    (loss,) = read_values(tmp_path, "loss")
    assert loss == pytest.approx(catalogue_loss(fixed_model, one_step, "train"), rel=1e-4)
    before, after = read_values(tmp_path, "eval_loss")
    for model, found in ((fixed_model, before), (tmp_path / "model", after)):
        assert found == pytest.approx(catalogue_loss(model, one_step, "valid"), rel=1e-4)


def catalogue_loss(folder: Path, data: Path, split: str) -> float:
    """The mean loss of a split over the tokens that continue a title, where there are several."""
    model = load_model(folder).eval()
    encoder = PromptEncoder(load_tokenizer(folder), CYCLE)
    responses, rows = encoder.encode_responses(), read_split(data, split)
    encoded = encoder.encode_prompts(rows["row_id"].to_list(), rows["history"].to_list(), 0)
    total, count = 0.0, 0
    for prompt, target in zip(encoded, rows["target"].to_list(), strict=True):
        response = responses[target]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 :]
        for place, token in enumerate(response):
            before = response[:place]
            allowed = sorted({ids[place] for ids in responses if ids[:place] == before})
            if len(allowed) > 1:
                log_prob = logits[place][allowed].log_softmax(-1)
                total, count = total - log_prob[allowed.index(token)].item(), count + 1
    return total / count


# --------------------------------------------------------------------------- precision and rows


def test_fewer_training_rows_than_a_step_are_a_smaller_one(tmp_path, fixed_model):
    data = write_data(tmp_path / "data", CYCLE, train=[([0], 1), ([1], 2)], valid=[([2], 3)])
    options = SHORT["sft"].model_copy(update={"epochs": 3.0})
    sft(options, fixed_model, data, 0, tmp_path / "run")
    assert len(read_steps(tmp_path / "run")) >= 1


def test_bfloat16_keeps_float32_weights(trained):
    folder = trained("sft", epochs=10 / 12, dtype="bfloat16")
    assert {weight.dtype for weight in load_weights(folder).values()} == {torch.float32}
    assert read_values(folder, "loss") == pytest.approx(GOLDEN["loss"], rel=0.02)


def test_only_the_validation_sample_matters(trained, tmp_path, cycle, fixed_model):
    """Changing rows outside the fixed sample changes nothing."""
    changed = tmp_path / "changed"
    shutil.copytree(cycle, changed)
    chosen = read_split(cycle, "valid", 5)["row_id"].to_list()
    target = pl.when(pl.col("row_id").is_in(chosen)).then("target").otherwise(0)
    valid = read_split(cycle, "valid").with_columns(target.cast(pl.Int32).alias("target"))
    valid.write_parquet(changed / "valid.parquet")
    options = SHORT["sft"].model_copy(update={"valid_rows": 5})
    sft(options, fixed_model, changed, 0, tmp_path / "run")
    assert has_same_weights(tmp_path / "run", trained("sft", valid_rows=5))


def test_architecture_without_shared_prompts_is_refused(tmp_path, cycle):
    folder = tmp_path / "init"
    causal_lm("bloom", len(tokenizer("qwen2"))).save_pretrained(folder)
    tokenizer("qwen2").save_pretrained(folder)
    with pytest.raises(InputError, match="init: BloomForCausalLM cannot be trained"):
        sft(SHORT["sft"], folder, cycle, 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()
