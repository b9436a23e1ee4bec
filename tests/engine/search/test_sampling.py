"""Samples from the constrained policy against its enumerated probabilities."""

import math

import pytest
import torch
from scipy.stats import chisquare
from search_oracles import EOS, MODELS, at_temperature, brute_force, random_catalogue
from tiny_models import FAMILIES, MASK_IGNORING, precise, tolerance, unigram_lm

from rere.engine.search.noise import row_seeds
from rere.engine.search.sampling import (
    Samples,
    keep_distinct,
    sample_candidates,
    stochastic_beam_search,
)
from rere.prefix_tree import PrefixTree

PROMPTS = [[5, 9, 3, 4, 7], [8], [2, 3]]
SEQUENCES = random_catalogue(12, seed=3)
TREE = PrefixTree.build(SEQUENCES)
ROW = row_seeds(0, 0, [0])


def leaf_probabilities(model, prompt, temperature=1.0):
    """The policy's probability of each leaf, by plain passes."""
    model = at_temperature(model, temperature)
    leaf = {tuple(s): n for s, n in zip(SEQUENCES, TREE.leaf_of_item.tolist(), strict=True)}
    return {leaf[s]: math.exp(p) for s, p in brute_force(model, SEQUENCES, prompt, "catalogue")}


def assert_samples_fit(leaves, probabilities):
    counts = [(leaves == leaf).sum().item() for leaf in probabilities]
    assert sum(counts) == leaves.numel()
    expected = [p * leaves.numel() / sum(probabilities.values()) for p in probabilities.values()]
    assert chisquare(counts, expected).pvalue > 1e-3


# -------------------------------------------------------------------------------- i.i.d. samples


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("family", MODELS)
def test_samples_follow_the_policy_at_its_temperature(family, temperature):
    model = MODELS[family]
    leaf, score = sample_candidates(
        model, TREE, PROMPTS, 4000, row_seeds(0, 0, [0, 1, 2]), temperature
    )
    for row, prompt in enumerate(PROMPTS):
        probabilities = leaf_probabilities(model, prompt, temperature)
        assert_samples_fit(leaf[row], probabilities)
        expected = [math.log(probabilities[n]) for n in leaf[row].tolist()]
        assert score[row].tolist() == pytest.approx(expected, abs=max(tolerance(model), 1e-6))


@pytest.mark.parametrize("family", FAMILIES | MASK_IGNORING)
def test_log_probabilities_equal_those_of_plain_passes(family):
    model = precise(family)
    leaf, score = sample_candidates(model, TREE, PROMPTS, 8, row_seeds(0, 0, [0, 1, 2]))
    for row, prompt in enumerate(PROMPTS):
        probabilities = leaf_probabilities(model, prompt)
        expected = [math.log(probabilities[n]) for n in leaf[row].tolist()]
        assert score[row].tolist() == pytest.approx(expected, abs=max(tolerance(model), 1e-6))


@pytest.mark.parametrize("sampler", [sample_candidates, stochastic_beam_search])
def test_samples_of_a_row_do_not_depend_on_its_batch(sampler):
    model, ids = MODELS["qwen2"], [11, 12, 13]
    together = sampler(model, TREE, PROMPTS, 5, row_seeds(1, 2, ids))
    for row, prompt in enumerate(PROMPTS):
        alone = sampler(model, TREE, [prompt], 5, row_seeds(1, 2, ids[row : row + 1]))
        assert torch.equal(alone.leaf[0], together.leaf[row])
        torch.testing.assert_close(alone.score[0], together.score[row])
    other = sampler(model, TREE, PROMPTS, 5, row_seeds(1, 3, ids))
    assert not torch.equal(other.leaf, together.leaf)


@pytest.mark.parametrize("sampler", [sample_candidates, stochastic_beam_search])
@pytest.mark.parametrize(
    ("number", "temperature", "message"),
    [(0, 1.0, "at least 1"), (2, 0.0, "temperature"), (2, math.nan, "temperature")],
)
def test_numbers_out_of_range_are_refused(sampler, number, temperature, message):
    with pytest.raises(ValueError, match=message):
        sampler(MODELS["qwen2"], TREE, PROMPTS[:1], number, ROW, temperature)


@pytest.mark.parametrize("sampler", [sample_candidates, stochastic_beam_search])
def test_one_item(sampler):
    tree = PrefixTree.build([[4, 5, EOS]])
    samples = sampler(MODELS["gpt2"], tree, PROMPTS[:1], 3, ROW)
    assert samples.leaf[0].tolist() == ([0, 0, 0] if sampler is sample_candidates else [0, -1, -1])
    assert samples.score[0, 0] == 0


# ------------------------------------------------------------------------------ distinct samples


def test_distinct_samples_come_first():
    samples = Samples(torch.tensor([[3, 3, 5, 3, 4, 5]]), -torch.arange(6.0)[None])
    assert keep_distinct(samples, 4).leaf.tolist() == [[3, 5, 4, 3]]
    assert keep_distinct(samples, 4).score.tolist() == [[0, -2, -4, -1]]
    assert keep_distinct(samples, 2, first=torch.tensor([4])).leaf.tolist() == [[4, 3]]
    assert keep_distinct(samples, 2, first=torch.tensor([9])).leaf.tolist() == [[3, 5]]


# ------------------------------------------------------------------------------- stochastic beams


def without_replacement(probabilities, size):
    """The probability of each leaf to be among `size` successive draws."""
    included = dict.fromkeys(probabilities, 0.0)

    def draw(chance, taken):
        if len(taken) == size:
            for leaf in taken:
                included[leaf] += chance
            return
        left = {leaf: p for leaf, p in probabilities.items() if leaf not in taken}
        for leaf, p in left.items():
            draw(chance * p / sum(left.values()), (*taken, leaf))

    draw(1.0, ())
    return included


@pytest.mark.parametrize("size", [1, 2, 3])
def test_stochastic_beams_sample_without_replacement(size):
    model, rows = MODELS["qwen2"], 6000
    probabilities = leaf_probabilities(model, PROMPTS[0])
    samples = stochastic_beam_search(
        model, TREE, PROMPTS[:1] * rows, size, row_seeds(0, 0, range(rows))
    )
    assert all(len(set(row)) == size for row in samples.leaf.tolist())
    expected = [math.log(probabilities[n]) for n in samples.leaf.flatten().tolist()]
    assert samples.score.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    for leaf, chance in without_replacement(probabilities, size).items():
        share = (samples.leaf == leaf).any(-1).double().mean().item()
        assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / rows) + 1e-9


def test_the_weighted_estimator_is_unbiased():
    """Kool et al.: weights p / q, where q is the probability to exceed the threshold."""
    model, rows = MODELS["gpt2"], 6000
    probabilities = leaf_probabilities(model, PROMPTS[0])
    value = torch.arange(len(TREE.fanout), dtype=torch.float64) ** 2
    truth = sum(p * value[leaf].item() for leaf, p in probabilities.items())
    samples = stochastic_beam_search(
        model, TREE, PROMPTS[:1] * rows, 3, row_seeds(5, 0, range(rows))
    )
    score, threshold = samples.score.double(), samples.threshold.double()[:, None]
    inclusion = -torch.expm1(-(score - threshold).exp())
    estimates = (score.exp() / inclusion * value[samples.leaf]).sum(-1)
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / math.sqrt(rows)


def test_as_many_beams_as_items_hold_all_items():
    number = len({tuple(s) for s in SEQUENCES})
    samples = stochastic_beam_search(MODELS["qwen2"], TREE, PROMPTS[:1], number + 2, ROW)
    kept = samples.leaf[0, :number].tolist()
    assert sorted(kept) == sorted(set(TREE.leaf_of_item.tolist()))
    assert samples.leaf[0, number:].tolist() == [-1, -1]
    assert samples.perturbed[0, :number].diff().max() <= 0
    assert samples.threshold.tolist() == [-torch.inf]


def test_finished_leaves_compete_with_unfinished_paths():
    """One item ends at the first decision, the others of equal total probability at the second."""
    sequences = [[2, EOS], [3, 4, EOS], [3, 5, EOS], [3, 6, EOS]]
    tree = PrefixTree.build(sequences)
    model = unigram_lm([1e-3, 0.1, 0.45, 0.45, 1e-3, 1e-3, 1e-3])
    samples = stochastic_beam_search(model, tree, [[1]] * 2000, 1, row_seeds(0, 0, range(2000)))
    share = (samples.leaf == tree.leaf_of_item[0]).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.05)
