"""What a row takes, counted by hand and against passes of one candidate each."""

import pytest
import torch
from tiny_models import CYCLE, causal_lm

from rere.config.rl import RlOptions
from rere.config.training import SftOptions
from rere.engine.candidates.leaves import pack_leaves
from rere.planning import sample as sample_module
from rere.planning.operations import Counts
from rere.planning.plan import Texts, load_config
from rere.planning.sample import BATCHES, REPEATS, Sample, Search, count_apart, count_packed

RL = RlOptions(prompts=4, rows_per_pass=2, group_size=3, scoring="catalogue")


def test_rows_are_counted_and_ordered(sample):
    assert {split: sample.num_rows(split) for split in ("train", "valid", "test")} == {
        "train": 32,
        "valid": 8,
        "test": 8,
    }
    batches = sample.batches("train", 2)
    assert [len(rows) for rows in batches] == [2] * BATCHES
    lengths = [len(prompt) for rows in batches for prompt in sample.prompts(rows)]
    assert lengths[0] <= lengths[-1]
    assert [len(rows) for rows in sample.batches("test", 100)] == [8 // BATCHES] * BATCHES


@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
def test_a_pass_of_several_candidates_is_counted(sample, scoring):
    """Apart, each candidate takes what a pass takes in which it is alone."""
    rows, tree, width = sample.rows("train")[:3], sample.texts.tree, 24
    prompts, leaves = sample.prompts(rows), sample.leaves(rows, 4)
    packed = pack_leaves(prompts, leaves, tree, scoring)
    counts = count_packed(packed, width)
    assert counts.tokens == packed.is_token.sum()
    assert counts.logits == packed.num_logits * width
    alone = [pack_leaves(prompts, leaves[:, [n]], tree, "vocabulary") for n in range(4)]
    apart = count_apart(prompts, leaves, packed, width, sample.texts)
    assert apart.tokens == sum(each.num_tokens for each in alone)
    assert apart.pairs == sum(int(each.visible[each.is_token].sum()) for each in alone)
    assert counts.tokens < apart.tokens
    assert counts.pairs < apart.pairs
    if scoring == "vocabulary":
        assert apart.logits == sum(each.num_logits for each in alone) * width


def test_a_scored_row_is_the_mean_of_the_sample(sample):
    unit = sample.score(RL, 3, "catalogue", is_update=True)
    counts = Counts()
    for rows in sample.batches("train", 2):
        leaves = sample.leaves(rows, 3)
        packed = pack_leaves(sample.prompts(rows), leaves, sample.texts.tree, "catalogue")
        counts = counts.plus(count_packed(packed, sample.config.vocab_size), 1 / (2 * BATCHES))
    assert unit.counts == pytest.approx(counts._replace(passes=1))
    assert unit.seconds > 0


@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
def test_a_search_feeds_each_prompt_once(sample, scoring):
    unit = sample.search(Search("test", 2, "beam", 3, scoring, "auto"))
    rows = [row for batch in sample.batches("test", 2) for row in batch]
    lengths = torch.tensor([len(prompt) for prompt in sample.prompts(rows)]).float()
    behind = unit.counts.tokens - lengths.mean()  # padding may add some
    assert 0 <= behind <= 3 * sample.texts.tree.longest + lengths.max() - lengths.min()
    # Apart, each of three beams has a prompt of its own.
    assert unit.apart.tokens - unit.counts.tokens == pytest.approx(2 * float(lengths.mean()))
    pairs = float((lengths * (lengths + 1) / 2).mean())
    assert unit.apart.pairs - unit.counts.pairs == pytest.approx(2 * pairs)
    assert unit.counts.passes >= 1
    assert unit.counts.logits > 0
    assert unit.seconds > 0


def test_a_sampled_rollout_is_counted(sample):
    unit = sample.search(Search("train", 2, "oversample", 4, "catalogue", "auto"))
    beam = sample.search(Search("train", 2, "beam", 4, "catalogue", "auto"))
    prompt = (beam.apart.tokens - beam.counts.tokens) / 3
    assert unit.apart.tokens - unit.counts.tokens == pytest.approx(5 * prompt)  # of six samples


def test_an_unconstrained_rollout_shares_no_prompt(sample):
    unit = sample.search(Search("train", 2, "unconstrained", 4, "vocabulary", "auto"))
    assert unit.apart == unit.counts
    assert (
        unit.counts.tokens
        > sample.search(Search("train", 2, "beam", 4, "vocabulary", "auto")).counts.tokens
    )


def test_a_title_is_written_token_by_token(sample):
    unit = sample.search(Search("test", 2, "greedy", 1, "vocabulary", "auto"))
    assert unit.apart == unit.counts
    assert 1 < unit.counts.passes <= sample.texts.tree.longest
    assert unit.seconds > 0


def test_a_unit_is_found_out_once(sample, monkeypatch):
    calls = []
    monkeypatch.setattr(sample, "_search", lambda *key: calls.append(key))
    monkeypatch.setattr(sample, "_score", lambda *key: calls.append(key))
    for rate in (1e-5, 2e-5):  # the rate changes no time
        options = RL.model_copy(update={"learning_rate": rate})
        sample.score(options, 3, "catalogue", is_update=True)
        sample.search(Search("test", 2, "beam", 3, "catalogue", "auto"))
        sample.search(Search("test", 2, "beam", 3, "catalogue", "float32"))  # which auto means here
    sample.score(RL.model_copy(update={"rows_per_pass": 4}), 3, "catalogue", is_update=True)
    sample.score(SftOptions(batch_size=4, rows_per_pass=2), 1, "vocabulary", is_update=True)
    assert len(calls) == 4


def test_a_backbone_too_large_to_be_timed_is_counted_by_a_small_one(data, large_model, monkeypatch):
    monkeypatch.setattr(sample_module, "MOST_TIMED", 1e6)
    config = load_config(str(large_model))
    sample = Sample(config, Texts.read(str(large_model), data), data, seed=0)
    assert sample.search(Search("test", 2, "beam", 3, "catalogue", "auto")).seconds is None
    assert sample.score(RL, 3, "catalogue", is_update=True).seconds is None
    assert (config.hidden_size, sample.known["searched"].model.config.hidden_size) == (
        512,
        256,
    )


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_a_backbone_that_only_recommends_is_counted(data, fixed_model, family):
    texts = Texts.read(str(fixed_model), data)
    config = causal_lm(family, len(texts.encoder.tokenizer)).config
    sample = Sample(config, texts, data, seed=0)
    unit = sample.search(Search("test", 2, "beam", 3, "catalogue", "auto"))
    assert unit.counts.tokens > 0


def test_seconds_are_those_of_a_row(sample, monkeypatch):
    clock, runs = iter([3, 15]), []
    monkeypatch.setattr(sample_module.time, "perf_counter", lambda: next(clock))
    assert sample.time(runs.append, [[{}, {}]] * 4) == 12 / (2 * 4 * REPEATS)
    assert len(runs) == 1 + 4 * REPEATS


def test_planning_draws_no_random_number_of_the_process(sample):
    before = torch.get_rng_state()
    sample.score(RL, 3, "catalogue", is_update=True)
    sample.search(Search("test", 2, "iid", 3, "catalogue", "auto"))
    assert torch.equal(before, torch.get_rng_state())
    assert len(CYCLE) == len(sample.texts.responses)
