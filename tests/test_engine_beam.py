"""Constrained beam search against brute force, a plain search in Python, and `generate`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, causal_lm, unigram_lm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rere.catalogue import PrefixTree
from rere.engine.beam import beam_search

VOCAB, EOS = 24, 1
PATHS = st.lists(
    st.lists(st.integers(2, 6) | st.integers(2, VOCAB - 1), max_size=7), min_size=1, max_size=40
)
CATALOGUES = PATHS.map(lambda paths: [[*path, EOS] for path in paths])
PROMPTS = st.lists(
    st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=3
)
MODELS = {family: causal_lm(family, VOCAB, seed=1).double() for family in ("qwen2", "gpt2")}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return causal_lm(request.param, VOCAB).double()


def random_catalogue(items, seed, longest=8, tokens=VOCAB):
    """Sequences with shared prefixes, of mixed lengths, some of them equal."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (), generator=generator))

    return [[*(2 + draw(tokens - 2) for _ in range(draw(longest))), EOS] for _ in range(items)]


def found(model, sequences, prompts, num_beams):
    """The search's result, row by row: token sequences and their scores."""
    tree = PrefixTree.build(sequences)
    leaf, score = beam_search(model, tree, prompts, num_beams)
    assert leaf.shape == score.shape == (len(prompts), num_beams)
    rows = []
    for leaves, scores in zip(leaf.tolist(), score.tolist(), strict=True):
        pairs = [(n, s) for n, s in zip(leaves, scores, strict=True) if n >= 0]
        # What is missing is missing at the end.
        assert leaves[len(pairs) :] == [-1] * (num_beams - len(pairs))
        assert scores[len(pairs) :] == [-torch.inf] * (num_beams - len(pairs))
        rows.append([(tuple(sequences[tree.leaf_items[n][0]]), s) for n, s in pairs])
    return rows


@torch.no_grad()
def log_probs(model, ids):
    """log p(next token | ids), (V,), by a plain forward pass over the whole sequence."""
    return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@torch.no_grad()
def brute_force(model, sequences, prompt):
    """Every distinct sequence with its score, best first: one plain pass for each."""
    scored = []
    for sequence in {tuple(s) for s in sequences}:
        ids = torch.tensor([[*prompt, *sequence]])
        values = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        score = values[range(len(sequence)), sequence].sum().item()
        scored.append((sequence, score))
    return sorted(scored, key=lambda pair: -pair[1])


def plain_search(model, sequences, prompt, num_beams):
    """Token-synchronous beam search as transformers has it, a hypothesis at a time.

    Of the best 2K continuations, those that end among the first K are results and the first K
    that do not end go on; it stops when none is left.
    """
    prefixes = {tuple(s[:length]) for s in sequences for length in range(len(s) + 1)}
    running, results = [((), 0.0)], []
    while running:
        continued = []
        for path, score in running:
            values = log_probs(model, [*prompt, *path]).tolist()
            tokens = [token for token in range(VOCAB) if (*path, token) in prefixes]
            continued += [((*path, token), score + values[token]) for token in tokens]
        continued = sorted(continued, key=lambda pair: -pair[1])[: 2 * num_beams]
        results += [pair for pair in continued[:num_beams] if pair[0][-1] == EOS]
        running = [pair for pair in continued if pair[0][-1] != EOS][:num_beams]
    return sorted(results, key=lambda pair: -pair[1])[:num_beams]


class Constrained(LogitsProcessor):
    """-inf for what no sequence continues with; `generate` applies it after the log-softmax."""

    def __init__(self, sequences, prompt_length):
        self.prompt_length = prompt_length
        self.allowed = {}
        for sequence in sequences:
            for end, token in enumerate(sequence):
                self.allowed.setdefault(tuple(sequence[:end]), set()).add(token)

    def __call__(self, input_ids, scores):
        masked = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids[:, self.prompt_length :].tolist()):
            for token in self.allowed.get(tuple(ids), ()):
                masked[row, token] = scores[row, token]
        return masked


def generated(model, sequences, prompts, num_beams):
    """The same by transformers' own beam search, its filler rows dropped."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=real,
        logits_processor=LogitsProcessorList([Constrained(sequences, length)]),
        generation_config=GenerationConfig(
            num_beams=num_beams,
            num_return_sequences=num_beams,
            length_penalty=0.0,
            early_stopping=False,
            do_sample=False,
            max_new_tokens=max(map(len, sequences)),
            eos_token_id=EOS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        ),
    )
    responses = output.sequences[:, length:].tolist()
    if num_beams == 1:  # greedy decoding, which adds no scores up
        paths = [tuple(ids[: ids.index(EOS) + 1]) for ids in responses]
        return [
            [pair for pair in brute_force(model, sequences, prompt) if pair[0] == path]
            for path, prompt in zip(paths, prompts, strict=True)
        ]
    scores = output.sequences_scores.tolist()
    rows = []
    for row in range(len(prompts)):
        places = range(row * num_beams, (row + 1) * num_beams)
        pairs = [
            (tuple(responses[i][: responses[i].index(EOS) + 1]), scores[i])
            for i in places
            if scores[i] > -1e8
        ]
        rows.append(pairs)
    return rows


def assert_same(actual, expected, tolerance):
    assert [path for path, _ in actual] == [path for path, _ in expected]
    scores = [score for _, score in expected]
    assert [score for _, score in actual] == pytest.approx(scores, abs=tolerance, rel=0)


# -------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("num_beams", [25, 40])
def test_enough_beams_rank_the_whole_catalogue(model, num_beams):
    sequences = random_catalogue(25, seed=3)
    prompts = [[5, 9, 3, 4, 7], [8], [2, 3]]
    for actual, prompt in zip(found(model, sequences, prompts, num_beams), prompts, strict=True):
        assert_same(actual, brute_force(model, sequences, prompt), 1e-9)


@given(CATALOGUES, PROMPTS, st.sampled_from([1, 2, 5, 16]), st.sampled_from(["qwen2", "gpt2"]))
@settings(max_examples=40, deadline=None)
def test_equals_a_plain_search(sequences, prompts, num_beams, family):
    model = MODELS[family]
    for actual, prompt in zip(found(model, sequences, prompts, num_beams), prompts, strict=True):
        assert_same(actual, plain_search(model, sequences, prompt, num_beams), 1e-9)


@pytest.mark.parametrize("num_beams", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", range(2))
def test_equals_generate(model, num_beams, seed):
    sequences = random_catalogue(60, seed, tokens=8 if seed else VOCAB)
    prompts = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
    expected = generated(model, sequences, prompts, num_beams)
    # (generate takes the log-softmax in float32, whatever the model computes in.)
    for actual, row in zip(found(model, sequences, prompts, num_beams), expected, strict=True):
        assert_same(actual, row, 1e-5)


@given(CATALOGUES, PROMPTS, st.sampled_from([1, 2, 5, 16]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_equals_generate_on_any_catalogue(sequences, prompts, num_beams):
    model = MODELS["qwen2"]
    expected = generated(model, sequences, prompts, num_beams)
    for actual, row in zip(found(model, sequences, prompts, num_beams), expected, strict=True):
        assert_same(actual, row, 1e-5)


def test_float32_agrees_with_float64(model):
    sequences = random_catalogue(60, seed=4)
    prompts = [[5, 9, 3, 4, 7], [8]]
    expected = found(model, sequences, prompts, 16)
    try:
        actual = found(model.float(), sequences, prompts, 16)
    finally:
        model.double()
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other, 1e-4)


def test_scores_of_half_precision_logits_add_up_in_float32():
    model = causal_lm("qwen2", VOCAB).bfloat16()
    _, score = beam_search(model, PrefixTree.build(random_catalogue(9, seed=0)), [[3, 4]], 4)
    assert score.dtype == torch.float32


# ------------------------------------------------------------------------------------- by hand


def test_by_hand():
    # A sequence scores the product of p(EOS) = 1/2, p(2) = 1/4, p(3) = 1/8, p(4) = 1/16.
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    sequences = [[2, 2, EOS], [4, 3, EOS], [3, EOS], [2, EOS]]
    (row,) = found(model, sequences, [[3]], 4)
    expected = {
        (2, EOS): 1 / 4 * 1 / 2,
        (3, EOS): 1 / 8 * 1 / 2,
        (2, 2, EOS): 1 / 4 * 1 / 4 * 1 / 2,
        (4, 3, EOS): 1 / 16 * 1 / 8 * 1 / 2,
    }
    assert_same(row, [(path, math.log(p)) for path, p in expected.items()], 1e-12)


def test_a_good_start_can_lose_the_best_end():
    model = unigram_lm([1 / 16, 1 / 8, 1 / 2, 1 / 4, 1 / 16])
    # p(2, 4, EOS) = 1/2 * 1/16 * 1/8 = 1/256; p(3, EOS) = 1/4 * 1/8 = 1/32.
    # One beam follows the 2, p = 1/2, and never comes to see what follows the 3.
    sequences = [[2, 4, EOS], [3, EOS]]
    assert_same(found(model, sequences, [[3]], 1)[0], [((2, 4, EOS), math.log(1 / 256))], 1e-12)
    assert [path for path, _ in found(model, sequences, [[3]], 2)[0]] == [(3, EOS), (2, 4, EOS)]


def test_an_end_outside_the_best_k_is_no_result():
    model = unigram_lm([1 / 16, 1 / 8, 1 / 2, 1 / 4, 1 / 16])
    # EOS (1/8) is second to 2 (1/2) when one beam may end; as in transformers, it is gone then.
    assert_same(found(model, [[EOS], [2, EOS]], [[3]], 1)[0], [((2, EOS), math.log(1 / 16))], 1e-12)


# ------------------------------------------------------------------------------------ odd cases


def test_padding_changes_nothing(model):
    sequences = random_catalogue(40, seed=6)
    prompts = [[5, 9, 3, 4, 7, 11, 2, 2, 6], [8], [2, 3, 22]]
    together = found(model, sequences, prompts, 8)
    for row, prompt in zip(together, prompts, strict=True):
        assert_same(row, found(model, sequences, [prompt], 8)[0], 1e-9)


def test_fewer_items_than_beams_end_in_nothing():
    leaf, score = beam_search(
        MODELS["qwen2"], PrefixTree.build([[5, EOS], [6, EOS], [5, EOS]]), [[3, 4], [7]], 5
    )
    assert (leaf >= 0).tolist() == [[True, True, False, False, False]] * 2
    assert leaf[:, 2:].tolist() == [[-1] * 3] * 2
    assert score[:, 2:].tolist() == [[-torch.inf] * 3] * 2


@pytest.mark.parametrize("sequence", [[EOS], [7, EOS], [*range(2, 22), *range(2, 22), EOS]])
def test_a_single_item(model, sequence):
    (row,) = found(model, [sequence], [[3, 9]], 3)
    assert_same(row, brute_force(model, [sequence], [3, 9]), 1e-9)


def test_a_beam_at_least(model):
    with pytest.raises(ValueError, match="num_beams must be at least 1, not 0"):
        beam_search(model, PrefixTree.build([[5, EOS]]), [[3]], 0)


def test_what_a_checkpoint_asks_of_generate_changes_nothing():
    model = causal_lm("qwen2", VOCAB, seed=1).double()
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=3, top_p=0.1, temperature=9.0, repetition_penalty=7.0, num_beams=2
    )
    sequences = random_catalogue(40, seed=7)
    assert found(model, sequences, [[5, 6]], 9) == found(MODELS["qwen2"], sequences, [[5, 6]], 9)


def test_dropout_is_off_and_training_goes_on():
    model = causal_lm("gpt2", VOCAB, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).double()
    sequences = random_catalogue(40, seed=8)
    expected = found(model, sequences, [[5, 6]], 9)
    model.train()
    assert found(model, sequences, [[5, 6]], 9) == expected
    assert model.training
    assert all(module.training for module in model.modules())


def test_a_checkpointed_model_keeps_its_cache():
    model = causal_lm("qwen2", VOCAB, seed=1).double()
    model.activation_checkpointing_enable()
    model.train()
    sequences = random_catalogue(40, seed=9)
    assert found(model, sequences, [[5, 6]], 9) == found(MODELS["qwen2"], sequences, [[5, 6]], 9)


def test_no_gradient_is_kept(model):
    _, score = beam_search(model, PrefixTree.build([[5, EOS]]), [[3]], 1)
    assert not score.requires_grad
