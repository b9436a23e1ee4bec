"""Constrained beam search against brute force, a plain search, and transformers' `generate`."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search_oracles import (
    CATALOGUES,
    EOS,
    MODELS,
    PROMPT_BATCHES,
    SCORINGS,
    assert_same_ranking,
    brute_force,
    generate_rankings,
    plain_search,
    random_catalogue,
)
from tiny_models import MASK_IGNORING, VOCAB_SIZE, causal_lm, precise, tolerance, unigram_lm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search import beam, path_scorer
from rere.engine.search.beam import beam_search
from rere.engine.search.path_scorer import PathScorer
from rere.engine.search.paths import AuxiliaryScorer
from rere.errors import InputError
from rere.evaluation.decode import node_log_probs
from rere.prefix_tree import PrefixTree
from rere.pruning import prune_rows


def search(model, sequences, prompts, num_beams, **options):
    """One ranking per prompt: token sequences and their scores."""
    tree = PrefixTree.build(sequences)
    leaf, score = beam_search(model, tree, prompts, num_beams, **options)
    assert leaf.shape == score.shape == (len(prompts), num_beams)
    rows = []
    for leaves, scores in zip(leaf.tolist(), score.tolist(), strict=True):
        pairs = [(n, s) for n, s in zip(leaves, scores, strict=True) if n >= 0]
        # Empty slots come last.
        assert leaves[len(pairs) :] == [-1] * (num_beams - len(pairs))
        assert scores[len(pairs) :] == [-torch.inf] * (num_beams - len(pairs))
        rows.append([(tuple(sequences[tree.leaf_items[n][0]]), s) for n, s in pairs])
    return rows


# -------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("scoring", SCORINGS)
def test_enough_beams_rank_the_whole_catalogue(model, scoring):
    sequences = random_catalogue(25, seed=3)
    prompts = [[5, 9, 3, 4, 7], [8], [2, 3]]
    expected = [brute_force(model, sequences, prompt, scoring) for prompt in prompts]
    for num_beams in (25, 40):
        rows = search(model, sequences, prompts, num_beams, scoring=scoring)
        for actual, ranking in zip(rows, expected, strict=True):
            assert_same_ranking(actual, ranking, tolerance(model))


@given(
    CATALOGUES,
    PROMPT_BATCHES,
    st.sampled_from([1, 2, 5, 16]),
    st.sampled_from(["qwen2", "gpt2"]),
    st.sampled_from(SCORINGS),
    st.sampled_from([0.0, 0.0, 1.0, -0.5]),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_equals_a_plain_search(
    chain_length, sequences, prompts, num_beams, family, scoring, penalty
):
    model, options = MODELS[family], {"scoring": scoring, "length_penalty": penalty}
    rows = search(model, sequences, prompts, num_beams, **options)
    for actual, prompt in zip(rows, prompts, strict=True):
        assert_same_ranking(
            actual, plain_search(model, sequences, prompt, num_beams, **options), 1e-9
        )


@given(
    CATALOGUES,
    PROMPT_BATCHES,
    st.data(),
    st.sampled_from([1, 2, 5, 16]),
    st.sampled_from(["qwen2", "gpt2"]),
    st.sampled_from(SCORINGS),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_each_row_searches_its_own_pruned_tree(
    chain_length, sequences, prompts, data, num_beams, family, scoring
):
    model, tree = MODELS[family], PrefixTree.build(sequences)
    leaves = sorted(set(tree.leaf_of_item.tolist()))
    some = st.sets(st.sampled_from(leaves), max_size=len(leaves) - 1)
    excluded = [data.draw(some) for _ in prompts]
    trees = prune_rows(tree, excluded)
    leaf, score = beam_search(model, trees, prompts, num_beams, scoring)
    for row, prompt in enumerate(prompts):
        kept = [
            s
            for s, n in zip(sequences, tree.leaf_of_item.tolist(), strict=True)
            if n not in excluded[row]
        ]
        nodes = trees.original[leaf[row][leaf[row] >= 0]].tolist()
        actual = [
            (tuple(sequences[tree.leaf_items[node][0]]), value)
            for node, value in zip(nodes, score[row].tolist(), strict=False)
        ]
        (expected,) = search(model, kept, [prompt], num_beams, scoring=scoring)
        assert_same_ranking(actual, expected, 1e-9)


@pytest.mark.parametrize("num_beams", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", range(2))
def test_equals_generate(model, num_beams, seed, chain_lengths):
    sequences = random_catalogue(60, seed, tokens=8 if seed else VOCAB_SIZE)
    prompts = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
    expected = generate_rankings(model, sequences, prompts, num_beams)
    for _ in chain_lengths():
        rows = search(model, sequences, prompts, num_beams)
        # (`generate` computes the log-softmax in float32, whatever the model's type.)
        for actual, row in zip(rows, expected, strict=True):
            assert_same_ranking(actual, row, max(1e-5, tolerance(model)))


@given(
    CATALOGUES,
    PROMPT_BATCHES,
    st.sampled_from([1, 2, 5, 16]),
    st.sampled_from([0.0, 0.0, 1.0, 0.5, -1.0]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_generate_on_any_catalogue(sequences, prompts, num_beams, penalty):
    model = MODELS["qwen2"]
    penalty = penalty if num_beams > 1 else 0.0  # greedy decoding has none
    expected = generate_rankings(model, sequences, prompts, num_beams, penalty)
    rows = search(model, sequences, prompts, num_beams, length_penalty=penalty)
    for actual, row in zip(rows, expected, strict=True):
        assert_same_ranking(actual, row, 1e-5)


def test_many_beams_and_long_titles(chain_lengths):
    long = [[2, *([3 + seed] * 190), 4, seed + 2, EOS] for seed in range(3)]
    sequences = [*random_catalogue(300, seed=5), *long]
    prompts = [[5, 9, 3], [8]]
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1).double()
    generated = generate_rankings(model, sequences, prompts, 200)
    exact = [brute_force(model, sequences, prompt, "catalogue") for prompt in prompts]
    for _ in chain_lengths():
        for actual, row in zip(search(model, sequences, prompts, 200), generated, strict=True):
            assert_same_ranking(actual, row, 1e-5)
        rows = search(model, sequences, prompts, 200, scoring="catalogue")
        for actual, row in zip(rows, exact, strict=True):
            assert_same_ranking(actual[:50], row[:50], 1e-9)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("family", MASK_IGNORING)
def test_architectures_without_a_shared_prompt_are_searched_exactly(family, scoring, caplog):
    model = precise(family)
    sequences, prompts = random_catalogue(40, seed=6), [[5, 9, 3, 4, 7, 11, 2, 2, 6], [8], [2, 3]]
    rows = search(model, sequences, prompts, 5, scoring=scoring)
    assert caplog.text.count("every candidate is computed with its whole prompt") == 1
    for actual, prompt in zip(rows, prompts, strict=True):
        expected = plain_search(model, sequences, prompt, 5, scoring)
        assert_same_ranking(actual, expected, 1e-5)


def test_other_architectures_share_prompts(model, caplog):
    search(model, [[5, EOS]], [[3]], 1)
    assert not caplog.text


@pytest.mark.parametrize("scoring", SCORINGS)
def test_only_catalogue_probabilities_sum_to_one(scoring):
    sequences = random_catalogue(20, seed=2)
    (row,) = search(MODELS["qwen2"], sequences, [[3, 4]], 20, scoring=scoring)
    total = sum(math.exp(score) for _, score in row)
    assert (total == pytest.approx(1)) == (scoring == "catalogue")


def test_decision_scores_equal_those_of_packed_leaves(model):
    tree = PrefixTree.build(random_catalogue(30, seed=2))
    prompts = [[3, 4], [5]]
    leaf, score = beam_search(model, tree, prompts, 6, "decisions")
    packed = pack_leaves(prompts, leaf, tree, "decisions")
    expected = sum_by_candidate(token_log_probs(model, packed), packed)
    torch.testing.assert_close(score, expected.detach(), atol=tolerance(model), rtol=0)


# ----------------------------------------------------------------------------- auxiliary scorer


def test_node_log_probs_by_hand():
    # Items 0 and 3 share a title, 1 and 2 the token 4. Nodes: root, [3 1], [4], [4 5 1], [4 6 1].
    tree = PrefixTree.build([[3, EOS], [4, 5, EOS], [4, 6, EOS], [3, EOS]])
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]]).log()
    expected = [[1.0, 0.5, 0.5, 0.2, 0.3], [1.0, 1.0, 0.0, 0.0, 0.0]]
    log_probs = node_log_probs(tree, logits)
    assert log_probs.isfinite().all()
    torch.testing.assert_close(log_probs.exp(), torch.tensor(expected))


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("scoring", ["catalogue", "decisions"])
def test_an_items_score_is_the_mean_of_both_models(scoring, weight):
    """The auxiliary scores of a title's decisions sum to its log-probability of the title."""
    model, sequences = MODELS["qwen2"], random_catalogue(40, seed=6)
    tree, prompts = PrefixTree.build(sequences), [[3, 4], [5]]
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).mul(3)
    auxiliary = AuxiliaryScorer(node_log_probs(tree, logits), weight)
    rows = search(model, sequences, prompts, 40, scoring=scoring, auxiliary=auxiliary)
    for actual, prompt, probability in zip(rows, prompts, logits.softmax(-1), strict=True):
        expected = []
        for path, score in brute_force(model, sequences, prompt, scoring):
            items = [item for item, other in enumerate(sequences) if tuple(other) == path]
            theirs = probability[items].sum().log().item()
            expected.append((path, weight * score + (1 - weight) * theirs))
        assert_same_ranking(actual, sorted(expected, key=lambda pair: -pair[1]), 1e-5)


def test_an_auxiliary_scorer_is_refused_under_vocabulary():
    auxiliary = AuxiliaryScorer(torch.zeros(1, 1), 0.5)
    with pytest.raises(ValueError, match="an auxiliary scorer needs"):
        PathScorer(
            MODELS["qwen2"],
            PrefixTree.build([[5, EOS]]),
            [[3]],
            "vocabulary",
            auxiliary=auxiliary,
        )


def test_float32_agrees_with_float64(model):
    sequences = random_catalogue(60, seed=4)
    prompts = [[5, 9, 3, 4, 7], [8]]
    expected = search(model, sequences, prompts, 16)
    dtype = model.dtype
    try:
        actual = search(model.float(), sequences, prompts, 16)
    finally:
        model.to(dtype)
    for one, other in zip(actual, expected, strict=True):
        assert_same_ranking(one, other, 1e-4)


def test_half_precision_logits_are_summed_in_float32():
    model = causal_lm("qwen2", VOCAB_SIZE).bfloat16()
    _, score = beam_search(model, PrefixTree.build(random_catalogue(9, seed=0)), [[3, 4]], 4)
    assert score.dtype == torch.float32


# ------------------------------------------------------------------------------------- by hand


def test_by_hand():
    # A sequence scores the product of p(EOS) = 1/2, p(2) = 1/4, p(3) = 1/8, p(4) = 1/16.
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    sequences = [[2, 2, EOS], [4, 3, EOS], [3, EOS], [2, EOS]]
    (row,) = search(model, sequences, [[3]], 4)
    expected = {
        (2, EOS): 1 / 4 * 1 / 2,
        (3, EOS): 1 / 8 * 1 / 2,
        (2, 2, EOS): 1 / 4 * 1 / 4 * 1 / 2,
        (4, 3, EOS): 1 / 16 * 1 / 8 * 1 / 2,
    }
    assert_same_ranking(row, [(path, math.log(p)) for path, p in expected.items()], 1e-12)


def test_one_beam_can_miss_the_best_sequence():
    model = unigram_lm([1 / 16, 1 / 8, 1 / 2, 1 / 4, 1 / 16])
    # p(2, 4, EOS) = 1/2 * 1/16 * 1/8 = 1/256; p(3, EOS) = 1/4 * 1/8 = 1/32.
    # One beam follows the 2, p = 1/2, and drops the 3.
    sequences = [[2, 4, EOS], [3, EOS]]
    assert_same_ranking(
        search(model, sequences, [[3]], 1)[0], [((2, 4, EOS), math.log(1 / 256))], 1e-12
    )
    assert [path for path, _ in search(model, sequences, [[3]], 2)[0]] == [(3, EOS), (2, 4, EOS)]


def test_a_path_that_ends_outside_the_best_k_is_discarded():
    model = unigram_lm([1 / 16, 1 / 8, 1 / 2, 1 / 4, 1 / 16])
    # EOS (1/8) ranks second to 2 (1/2), so that one beam discards it, as in transformers.
    assert_same_ranking(
        search(model, [[EOS], [2, EOS]], [[3]], 1)[0], [((2, EOS), math.log(1 / 16))], 1e-12
    )


# ------------------------------------------------------------------------------------ edge cases


def test_padding_changes_nothing(model):
    sequences = random_catalogue(40, seed=6)
    prompts = [[5, 9, 3, 4, 7, 11, 2, 2, 6], [8], [2, 3, 22]]
    together = search(model, sequences, prompts, 8)
    for row, prompt in zip(together, prompts, strict=True):
        assert_same_ranking(row, search(model, sequences, [prompt], 8)[0], tolerance(model))


def test_fewer_items_than_beams_leave_empty_slots():
    leaf, score = beam_search(
        MODELS["qwen2"], PrefixTree.build([[5, EOS], [6, EOS], [5, EOS]]), [[3, 4], [7]], 5
    )
    assert (leaf >= 0).tolist() == [[True, True, False, False, False]] * 2
    assert leaf[:, 2:].tolist() == [[-1] * 3] * 2
    assert score[:, 2:].tolist() == [[-torch.inf] * 3] * 2


@pytest.mark.parametrize("sequence", [[EOS], [7, EOS], [*range(2, 22), *range(2, 22), EOS]])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_single_item(model, sequence, scoring):
    (row,) = search(model, [sequence], [[3, 9]], 3, scoring=scoring)
    assert_same_ranking(row, brute_force(model, [sequence], [3, 9], scoring), tolerance(model))
    assert scoring == "vocabulary" or row[0][1] == 0  # the only item is certain


def test_num_beams_below_one_is_refused(model):
    with pytest.raises(ValueError, match="num_beams must be at least 1, not 0"):
        beam_search(model, PrefixTree.build([[5, EOS]]), [[3]], 0)


def test_titles_must_fit_the_models_positions():
    model = causal_lm("gpt2", VOCAB_SIZE, max_position_embeddings=8)
    search(model, [[5, 6, 7, EOS]], [[3] * 5], 1)
    message = "a prompt of 6 tokens and titles of up to 4 exceed the model's 8 positions"
    with pytest.raises(InputError, match=message):
        search(model, [[5, 6, 7, EOS]], [[3], [3] * 6], 1)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_nan_logits_are_refused(scoring):
    model = causal_lm("phi", VOCAB_SIZE)
    with torch.no_grad():
        model.lm_head.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="the model's logits are not numbers"):
        search(model, random_catalogue(9, seed=0), [[3]], 4, scoring=scoring)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_items_of_probability_zero_are_no_results(scoring):
    model = unigram_lm([1 / 8, 1 / 2, 0, 3 / 8])
    sequences = [[2, EOS], [3, EOS], [3, 3, EOS]]
    (row,) = search(model, sequences, [[3]], 3, scoring=scoring)
    assert [path for path, _ in row] == [(3, EOS), (3, 3, EOS)]


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_pass_and_a_step_need_one_synchronisation(scoring, chain_length, monkeypatch):
    """The host reads the sizes of the next pass together, and whether a step has an effect."""
    model, passes, steps, step = causal_lm("qwen2", VOCAB_SIZE, seed=1), [], [], beam.step
    model.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(beam, "step", lambda *x: steps.append(1) or step(*x))
    tree = PrefixTree.build(random_catalogue(60, seed=8, tokens=5))
    prompts = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
    # The first search also reads properties of the model and the tree.
    expected = beam_search(model, tree, prompts, 9, scoring)
    passes.clear()
    steps.clear()
    with CountReads() as reads:
        actual = beam_search(model, tree, prompts, 9, scoring)
    assert len(passes) > 2
    # A step is asked for by `any` and `__bool__`; after each pass one may have no effect.
    assert len(passes) + 2 * len(steps) <= reads.count <= len(passes) + 2 * len(steps + passes)
    assert all(map(torch.equal, actual, expected))


def test_forced_tokens_are_taken_together(monkeypatch):
    steps, step = [], beam.step
    monkeypatch.setattr(beam, "step", lambda *x: steps.append(1) or step(*x))
    monkeypatch.setattr(path_scorer, "full_pass_tokens", lambda model: 10**6)
    sequences = [[token, *range(5, 15), EOS] for token in (2, 3)]
    search(causal_lm("qwen2", VOCAB_SIZE), sequences, [[8], [9]], 2)
    assert len(steps) == 2  # the first token, then all others


class CountReads(TorchDispatchMode):
    """Counts operations for which the host would wait for a GPU."""

    def __enter__(self):
        self.count = 0
        reads = self

        class CountMethods(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                names = ("tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
                reads.count += getattr(function, "__name__", "") in names
                return function(*args, **(kwargs or {}))

        self.methods = CountMethods()
        self.methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        self.methods.__exit__(*error)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        has_mask = name in ("index", "index_put") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        self.count += has_mask or name in ("_local_scalar_dense", "nonzero", "masked_select")
        return function(*args, **(kwargs or {}))


def test_the_checkpoints_generation_config_is_ignored():
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1).double()
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=3, top_p=0.1, temperature=9.0, repetition_penalty=7.0, num_beams=2
    )
    sequences = random_catalogue(40, seed=7)
    assert search(model, sequences, [[5, 6]], 9) == search(MODELS["qwen2"], sequences, [[5, 6]], 9)


def test_dropout_is_off_and_training_mode_is_restored():
    model = causal_lm("gpt2", VOCAB_SIZE, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).double()
    sequences = random_catalogue(40, seed=8)
    expected = search(model, sequences, [[5, 6]], 9)
    model.train()
    assert search(model, sequences, [[5, 6]], 9) == expected
    assert model.training
    assert all(module.training for module in model.modules())


def test_gradient_checkpointing_keeps_the_cache():
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1).double()
    model.activation_checkpointing_enable()
    model.train()
    sequences = random_catalogue(40, seed=9)
    assert search(model, sequences, [[5, 6]], 9) == search(MODELS["qwen2"], sequences, [[5, 6]], 9)


def test_scores_have_no_gradient(model):
    _, score = beam_search(model, PrefixTree.build([[5, EOS]]), [[3]], 1)
    assert not score.requires_grad
