"""Prompts that are too long are refused before the first step, in any split."""

import re
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from data_frames import items_frame
from tiny_models import CYCLE, TOKENIZERS, causal_lm, tokenizer, write_data, write_fixed_model

from rere import token_lengths, tokenization
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.data.dataset import SPLIT_SCHEMA, read_split
from rere.errors import InputError
from rere.token_lengths import check_prompts, count_title_tokens
from rere.tokenization import PromptEncoder
from rere.training.preference import preference
from rere.training.rl import rl
from rere.training.sft import sft

LONG = "x#" * 450
"""A title of 900 characters and one word."""
TITLES = [*CYCLE, LONG]
SIZES = {"rows_per_pass": 8, "validations": 1, "valid_rows": 1}
STAGES = {
    "sft": (sft, SftOptions(batch_size=8, epochs=0.1, **SIZES)),
    "preference": (preference, PreferenceOptions(batch_size=8, steps=1, num_beams=2, **SIZES)),
    "rl": (rl, RlOptions(prompts=8, steps=1, group_size=2, **SIZES)),
}
ROWS = [([item, item + 1], item + 2) for item in range(6)] * 2


def write_rows(folder: Path, **splits: list[tuple[list[int], int]]) -> Path:
    return write_data(folder, TITLES, **({"train": ROWS, "valid": ROWS} | splits))


def write_model(folder: Path, positions: int) -> Path:
    """A model that takes so many tokens."""
    vocabulary = tokenizer("qwen2")
    model = causal_lm("gpt2", len(vocabulary), max_position_embeddings=positions)
    model.save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_prompt_too_long_is_refused_before_training(stage, split, tmp_path):
    data = write_rows(tmp_path / "data", **{split: [*ROWS, ([1, 8], 2)]})
    run, options = STAGES[stage]
    with pytest.raises(InputError) as refused:
        run(options, write_model(tmp_path / "init", 2048), data, 0, tmp_path / "run")
    row_id = read_split(data, split)["row_id"][-1]
    message = str(refused.value)
    assert message.startswith(
        f"{data / split}.parquet: row_id {row_id}: its last item alone gives a "
    )
    assert "tokens, over 512; shorten the title 'x#x#x#" in message
    assert message.endswith("or filter it out (max_title_words)")
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


def test_rows_outside_of_train_part_are_checked(tmp_path):
    data = write_rows(tmp_path / "data", train=[([8], 1), *ROWS, *ROWS])
    run, options = STAGES["sft"]
    options = options.model_copy(update={"train_part": [0.5, 1.0]})
    with pytest.raises(InputError, match="row_id 0: its last item alone"):
        run(options, write_fixed_model(tmp_path / "init"), data, 0, tmp_path / "run")


@pytest.mark.parametrize("rows", [[([8, 1], 2)], [([1], 8)]])
def test_a_long_title_may_be_earlier_in_the_history_or_the_target(rows, tmp_path):
    data = write_rows(tmp_path / "data", train=[*ROWS, *rows])
    run, options = STAGES["sft"]
    run(options, write_model(tmp_path / "init", 2048), data, 0, tmp_path / "run")
    assert (tmp_path / "run" / "model").is_dir()


# -------------------------------------------------------------------------- the model's context


def test_a_prompt_beyond_the_models_positions_is_refused(tmp_path):
    data = write_data(tmp_path / "data", CYCLE, train=ROWS, valid=ROWS)
    encoder = PromptEncoder(tokenizer("qwen2"), CYCLE)
    prompts = encoder.encode_prompts(range(24), [history for history, _ in ROWS * 2], 0)
    longest = max(map(len, encoder.encode_responses()))
    needed = max(map(len, prompts)) + longest - 1  # the end of sequence is not fed
    run, options = STAGES["sft"]
    run(options, write_model(tmp_path / "enough", needed), data, 0, tmp_path / "run")
    with pytest.raises(InputError) as refused:
        run(options, write_model(tmp_path / "few", needed - 1), data, 0, tmp_path / "other")
    message = str(refused.value)
    assert re.match(rf"{data}/(train|valid).parquet: row_id \d+: its prompt of \d+ tokens", message)
    assert f"exceed the {needed - 1} positions of the model; lower max_history or " in message
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------- lengths of titles tell the rows


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_estimate_misses_no_row(kind, tmp_path, monkeypatch):
    """With any limit, the check refuses a data set if and only if encoding all rows does."""
    rng = np.random.default_rng(0)
    words = ['"', "a", "Toy", " ", "é", "東", "##", "\t", "1995)", "\u200d", "..."]
    titles = [f"{n}" + "".join(rng.choice(words, rng.integers(1, 40))) for n in range(40)]
    rows = [(rng.integers(0, 40, rng.integers(1, 5)).tolist(), 0) for _ in range(60)]
    data = write_data(tmp_path / "data", titles, train=rows[:20], valid=rows[20:40], test=rows[40:])
    encoder = PromptEncoder(tokenizer(kind), titles)
    responses = encoder.encode_responses()
    alone = encoder.encode_prompts(range(60), [history[-1:] for history, _ in rows], 0)
    lengths = sorted({len(prompt) for prompt in alone})
    for limit in [lengths[0] - 1, *lengths[-3:]]:
        for module in (token_lengths, tokenization):
            monkeypatch.setattr(module, "MAX_PROMPT_TOKENS", limit)
        if limit >= lengths[-1]:
            check_prompts(encoder, responses, data, 0, None)
        else:
            with pytest.raises(InputError, match="its last item alone gives a prompt"):
                check_prompts(encoder, responses, data, 0, None)


def test_tokens_of_histories_by_hand():
    tokens = np.array([5, 7, 11])
    histories = pl.Series([[0, 1], [2], [1, 1, 0]], dtype=pl.List(pl.Int32))
    last, total = count_title_tokens(histories, tokens)
    assert last.tolist() == [7, 11, 5]
    assert total.tolist() == [12, 11, 19]


def test_millions_of_rows_take_seconds(tmp_path):
    """Half a million rows of ten items, whose encoding would take minutes."""
    rows = 500_000
    items_frame(CYCLE).write_parquet(tmp_path / "items.parquet")
    history = pl.Series("history", [[*range(8), 0, 1]], dtype=pl.List(pl.Int32))
    frame = pl.select(
        row_id=pl.int_range(rows, dtype=pl.Int64),
        user_id=pl.int_range(rows, dtype=pl.Int64),
        history=history.new_from_index(0, rows),
        target=pl.repeat(1, rows, dtype=pl.Int32),
        timestamp=pl.int_range(rows, dtype=pl.Int64),
    )
    assert dict(frame.schema) == SPLIT_SCHEMA
    frame.write_parquet(tmp_path / "train.parquet")
    encoder = PromptEncoder(tokenizer("qwen2"), CYCLE)
    start = time.perf_counter()
    check_prompts(encoder, encoder.encode_responses(), tmp_path, 0, 4096)
    assert time.perf_counter() - start < 5
