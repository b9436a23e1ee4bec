"""Rollout strategies: constrained ones by their functions, unconstrained ones by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from scipy.stats import chisquare
from search_oracles import (
    CATALOGUES,
    EOS,
    MODELS,
    at_temperature,
    brute_force,
    next_log_probs,
    random_catalogue,
)
from tiny_models import FAMILIES, MASK_IGNORING, VOCAB_SIZE, causal_lm, unigram_lm
from transformers import GenerationConfig

from rere.engine.search.beam import beam_search
from rere.engine.search.generate import generate_tokens
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import roll_out
from rere.engine.search.sampling import keep_distinct, sample_candidates, stochastic_beam_search
from rere.errors import InputError
from rere.prefix_tree import PrefixTree, find_leaf, token_ids

PROMPTS = [[5, 9, 3, 4, 7], [8], [2, 3]]
SEQUENCES = random_catalogue(12, seed=3)
TREE = PrefixTree.build(SEQUENCES)
SEEDS = row_seeds(0, 0, [11, 12, 13])
TARGET = TREE.leaf_of_item[:3]
CONSTRAINED = ("beam", "iid", "oversample", "oversample_with_target", "stochastic_beam")
UNCONSTRAINED = ("unconstrained", "unconstrained_beam")


def without_padding(ids):
    """Each row's candidates as token lists without padding."""
    return [[[token for token in path if token >= 0] for path in row] for row in ids.tolist()]


# ------------------------------------------------------------------------- leaves and token ids


@given(CATALOGUES)
@settings(max_examples=60, deadline=None)
def test_leaves_give_the_tokens_of_their_items(sequences):
    tree = PrefixTree.build(sequences)
    ids = token_ids(tree, tree.leaf_of_item)
    assert ids.shape == (len(sequences), max(map(len, sequences)))
    assert without_padding(ids[:, None]) == [[s] for s in sequences]
    assert find_leaf(tree, ids).equal(tree.leaf_of_item)
    assert tree.eos == EOS


@given(CATALOGUES, CATALOGUES)
@settings(max_examples=60, deadline=None)
def test_non_items_have_no_leaf(sequences, others):
    tree = PrefixTree.build(sequences)
    leaf = {tuple(s): n for s, n in zip(sequences, tree.leaf_of_item.tolist(), strict=True)}
    others = [[*s[:-1], VOCAB_SIZE - 1] for s in sequences] + [s[:-1] for s in sequences] + others
    others = [s[: tree.longest] for s in others]
    ids = torch.tensor([s + [-1] * (tree.longest - len(s)) for s in others])
    assert find_leaf(tree, ids).tolist() == [leaf.get(tuple(s), -1) for s in others]


def test_empty_slots_have_no_tokens():
    assert (token_ids(TREE, torch.tensor([[-1]])) == -1).all()


def test_levels_by_hand():
    tree = PrefixTree.build([[2, 4, EOS], [2, EOS], [3, 4, 4, EOS]])
    # The root; 2 and 3 4 4 EOS; 2 EOS and 2 4 EOS.
    assert tree.num_levels == 3
    assert tree.parent.tolist() == [0, 0, 0, 1, 1]
    assert PrefixTree.build([[4, EOS]]).num_levels == 1


# ---------------------------------------------------------------------------------- constrained


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("strategy", CONSTRAINED)
def test_a_strategy_equals_its_function(strategy, scoring, temperature):
    model = MODELS["qwen2"]
    found = roll_out(model, TREE, PROMPTS, strategy, 4, SEEDS, scoring, temperature, TARGET)
    inputs = (model, TREE, PROMPTS)
    many = sample_candidates(*inputs, 6, SEEDS, temperature)
    expected = {
        "beam": lambda: beam_search(*inputs, 4, scoring, 0.0, temperature),
        "iid": lambda: sample_candidates(*inputs, 4, SEEDS, temperature),
        "oversample": lambda: keep_distinct(many, 4),
        "oversample_with_target": lambda: keep_distinct(many, 4, TARGET),
        "stochastic_beam": lambda: stochastic_beam_search(*inputs, 4, SEEDS, temperature),
    }[strategy]()
    assert torch.equal(found.leaf, expected.leaf)
    assert torch.equal(found.log_prob, expected.score)
    assert (found.leaf >= 0).all() and found.exists.all()
    assert without_padding(found.ids) == [
        [SEQUENCES[TREE.leaf_items[n][0]] for n in row] for row in found.leaf.tolist()
    ]
    if strategy == "stochastic_beam":
        assert torch.equal(found.threshold, expected.threshold)
    else:
        assert found.threshold is None


@pytest.mark.parametrize("strategy", ["beam", "stochastic_beam"])
def test_a_small_catalogue_leaves_empty_slots(strategy):
    number = len({tuple(s) for s in SEQUENCES})
    found = roll_out(MODELS["gpt2"], TREE, PROMPTS, strategy, number + 3, SEEDS)
    exists = torch.arange(number + 3) < number
    assert found.exists.equal(exists.expand(3, -1))
    assert (found.leaf >= 0).equal(found.exists)
    assert found.log_prob.isneginf().equal(~found.exists)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("scoring", ["vocabulary", "catalogue"])
def test_beam_search_at_a_temperature(scoring, temperature):
    model = MODELS["gpt2"]
    found = roll_out(model, TREE, PROMPTS, "beam", 40, SEEDS, scoring, temperature)
    for row, prompt in enumerate(PROMPTS):
        truth = brute_force(at_temperature(model, temperature), SEQUENCES, prompt, scoring)
        scores = found.log_prob[row, : len(truth)].tolist()
        assert scores == pytest.approx([score for _, score in truth], abs=1e-6)


def test_a_sampled_target_is_kept():
    model = unigram_lm([1e-3, 0.3, 0.3, 0.3, 0.1])
    tree = PrefixTree.build([[2, EOS], [3, EOS], [4, EOS], [EOS]])
    target = tree.leaf_of_item[[2] * 200]
    arguments = (model, tree, [[1]] * 200, "oversample_with_target", 2, row_seeds(0, 0, range(200)))
    found = roll_out(*arguments, target=target)
    samples = sample_candidates(model, tree, [[1]] * 200, 3, row_seeds(0, 0, range(200)))
    is_sampled = (samples.leaf == target[:, None]).any(-1)
    assert (found.leaf == target[:, None]).any(-1).equal(is_sampled)
    with pytest.raises(ValueError, match="needs the target"):
        roll_out(*arguments)


@pytest.mark.parametrize("strategy", [*CONSTRAINED, *UNCONSTRAINED])
@pytest.mark.parametrize(
    ("size", "temperature", "message"),
    [(0, 1.0, "at least"), (2, 0.0, "temperature"), (2, math.nan, "temperature")],
)
def test_numbers_out_of_range_are_refused(strategy, size, temperature, message):
    arguments = (MODELS["qwen2"], TREE, PROMPTS, strategy, size, SEEDS)
    with pytest.raises(ValueError, match=message):
        roll_out(*arguments, temperature=temperature, target=TARGET)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="unknown rollout strategy beams"):
        roll_out(MODELS["qwen2"], TREE, PROMPTS, "beams", 2, SEEDS)


# -------------------------------------------------------------------------------- unconstrained


def test_unconstrained_samples_by_hand():
    # p(EOS) = 1/2, p(2) = p(3) = 1/4; the catalogue holds 2, 3 3 and 3 2.
    model = unigram_lm([1e-9, 0.5, 0.25, 0.25])
    tree = PrefixTree.build([[2, EOS], [3, 3, EOS], [3, 2, EOS]])
    rows = 500
    found = roll_out(model, tree, [[3]] * rows, "unconstrained", 8, row_seeds(0, 0, range(rows)))
    leaf = dict(zip([(2, EOS), (3, 3, EOS), (3, 2, EOS)], tree.leaf_of_item.tolist(), strict=True))
    probability = {(EOS,): 1 / 2, (2, EOS): 1 / 8, (3, EOS): 1 / 8}
    for first in (2, 3):
        for second in (2, 3):
            probability[first, second, EOS] = 1 / 32
            # Sequences stop at three tokens, the length of the longest item.
            probability |= {(first, second, third): 1 / 64 for third in (2, 3)}
    paths = [tuple(path) for row in without_padding(found.ids) for path in row]
    assert found.leaf.flatten().tolist() == [leaf.get(path, -1) for path in paths]
    expected = [math.log(probability[path]) for path in paths]
    assert found.log_prob.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    counts = [paths.count(path) for path in probability]
    assert chisquare(counts, [p * len(paths) for p in probability.values()]).pvalue > 1e-3
    # Items have the probabilities 1/8, 1/32 and 1/32.
    share = (found.leaf >= 0).double().mean().item()
    assert abs(share - 3 / 16) < 4 * math.sqrt(3 / 16 * 13 / 16 / len(paths))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("strategy", UNCONSTRAINED)
@pytest.mark.parametrize("family", FAMILIES | MASK_IGNORING)
def test_unconstrained_log_probabilities_equal_those_of_plain_passes(family, strategy, temperature):
    # Not in float64: some models pad wrongly there, and `generate` computes in float32 anyway.
    model = causal_lm(family, VOCAB_SIZE)
    found = roll_out(model, TREE, PROMPTS, strategy, 3, SEEDS, temperature=temperature)
    for row, prompt in enumerate(PROMPTS):
        for path, score in zip(
            without_padding(found.ids)[row], found.log_prob[row].tolist(), strict=True
        ):
            expected = 0.0
            for end, token in enumerate(path):
                plain = at_temperature(model, temperature)
                expected += next_log_probs(plain, [*prompt, *path[:end]])[token].item()
            assert score == pytest.approx(expected, abs=2e-4)


def test_unconstrained_beams_by_hand():
    model = unigram_lm([0.02, 0.5, 0.28, 0.2])
    tree = PrefixTree.build([[2, EOS], [3, 2, EOS]])
    found = roll_out(model, tree, [[3]], "unconstrained_beam", 4, SEEDS[:1])
    # Probabilities .5, .28 x .5, .2 x .5, .28 x .28 x .5; only the second is an item.
    assert without_padding(found.ids) == [[[EOS], [2, EOS], [3, EOS], [2, 2, EOS]]]
    expected = [math.log(p) for p in (0.5, 0.14, 0.1, 0.0392)]
    assert found.log_prob[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert found.leaf.tolist() == [[-1, tree.leaf_of_item[0].item(), -1, -1]]


@pytest.mark.parametrize("strategy", UNCONSTRAINED)
def test_the_checkpoints_generation_config_is_ignored(strategy):
    model = causal_lm("qwen2", VOCAB_SIZE)
    expected = roll_out(model, TREE, PROMPTS, strategy, 4, SEEDS)
    config = GenerationConfig(
        do_sample=True,
        top_k=1,
        top_p=0.1,
        temperature=3.0,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[3, 4, 5],
        min_length=9,
        length_penalty=2.0,
        max_length=6,
        eos_token_id=7,
    )
    model.generation_config = config
    found = roll_out(model, TREE, PROMPTS, strategy, 4, SEEDS)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.log_prob, expected.log_prob)
    assert model.generation_config is config


def test_a_failing_generate_restores_the_generation_config(monkeypatch):
    model = causal_lm("qwen2", VOCAB_SIZE)
    config = model.generation_config

    def fails(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_tokens(model, PROMPTS, EOS, 3)
    assert model.generation_config is config


@pytest.mark.parametrize("strategy", UNCONSTRAINED)
def test_dropout_is_off(strategy):
    model = causal_lm("gpt2", VOCAB_SIZE)
    expected = roll_out(model, TREE, PROMPTS, strategy, 4, SEEDS)
    found = roll_out(model.train(), TREE, PROMPTS, strategy, 4, SEEDS)
    assert torch.equal(found.ids, expected.ids)
    assert model.training


@pytest.mark.parametrize("strategy", [*CONSTRAINED, *UNCONSTRAINED])
def test_candidates_of_a_row_do_not_depend_on_its_batch(strategy):
    model = MODELS["qwen2"]
    together = roll_out(model, TREE, PROMPTS, strategy, 4, SEEDS, target=TARGET)
    again = roll_out(model, TREE, PROMPTS, strategy, 4, SEEDS, target=TARGET)
    assert torch.equal(again.ids, together.ids)
    for row, prompt in enumerate(PROMPTS):
        one = slice(row, row + 1)
        alone = roll_out(model, TREE, [prompt], strategy, 4, SEEDS[one], target=TARGET[one])
        assert torch.equal(alone.ids[0], together.ids[row])
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[row])


@pytest.mark.parametrize("strategy", UNCONSTRAINED)
def test_nan_weights_are_refused(strategy):
    model = causal_lm("qwen2", VOCAB_SIZE)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not numbers"):
        roll_out(model, TREE, PROMPTS, strategy, 4, SEEDS)


@pytest.mark.parametrize("strategy", UNCONSTRAINED)
def test_a_prompt_beyond_the_models_positions_is_refused(strategy):
    model = causal_lm("gpt2", VOCAB_SIZE, max_position_embeddings=12)
    with pytest.raises(InputError, match="12 positions"):
        roll_out(model, TREE, [[2] * 10], strategy, 4, SEEDS[:1])
