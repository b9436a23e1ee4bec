"""Constrained beam search against brute force, a plain search in Python, and `generate`."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import (
    FAMILIES,
    UNSTEERABLE,
    VOCAB_SIZE,
    causal_lm,
    precise,
    tolerance,
    unigram_lm,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rere.catalogue import PrefixTree
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.scoring import sum_by_candidate, token_log_probs
from rere.engine.search import beam, path_scorer
from rere.engine.search.beam import beam_search
from rere.engine.search.path_scorer import PathScorer
from rere.engine.search.paths import AuxiliaryScorer
from rere.errors import InputError
from rere.evaluation.decode import node_log_probs

EOS = 1
PATHS = st.lists(
    st.lists(st.integers(2, 6) | st.integers(2, VOCAB_SIZE - 1), max_size=7),
    min_size=1,
    max_size=40,
)
CATALOGUES = PATHS.map(lambda paths: [[*path, EOS] for path in paths])
PROMPTS = st.lists(
    st.lists(st.integers(2, VOCAB_SIZE - 1), min_size=1, max_size=9), min_size=1, max_size=3
)
MODELS = {family: precise(family, seed=1) for family in ("qwen2", "gpt2")}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return precise(request.param)


def random_catalogue(items, seed, longest=8, tokens=VOCAB_SIZE):
    """Sequences with shared prefixes, of mixed lengths, some of them equal."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (), generator=generator))

    return [[*(2 + draw(tokens - 2) for _ in range(draw(longest))), EOS] for _ in range(items)]


def found(model, sequences, prompts, num_beams, **options):
    """The search's result, row by row: token sequences and their scores."""
    tree = PrefixTree.build(sequences)
    leaf, score = beam_search(model, tree, prompts, num_beams, **options)
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


def brute_force(model, sequences, prompt, scoring="vocabulary"):
    """Every distinct sequence with its score, best first: plain passes for each."""
    scored = []
    for sequence in {tuple(s) for s in sequences}:
        score = 0.0
        for place, token in enumerate(sequence):
            values = log_probs(model, [*prompt, *sequence[:place]])
            following = continuations(sequences, sequence[:place])
            if scoring == "catalogue":
                values = renormalised(values, following)
            score += 0 if scoring == "decisions" and len(following) == 1 else values[token].item()
        scored.append((sequence, score))
    return sorted(scored, key=lambda pair: -pair[1])


def continuations(sequences, path):
    """The tokens with which some sequence continues `path`."""
    length = len(path)
    return sorted({s[length] for s in sequences if len(s) > length and tuple(s[:length]) == path})


def renormalised(values, tokens):
    """Log-probabilities that sum to one over `tokens`."""
    return (values - values[tokens].logsumexp(-1)).index_fill(
        0, torch.tensor([t for t in range(VOCAB_SIZE) if t not in tokens], dtype=torch.long), -999
    )


def plain_search(model, sequences, prompt, num_beams, scoring="vocabulary", length_penalty=0.0):
    """Beam search as transformers has it, a hypothesis at a time, by token or by decision.

    Of the best 2K continuations, those that end among the first K are results and the first K
    that do not end go on, until the best that goes on cannot beat K results. By decision, which
    all scorings but `vocabulary` are, a continuation takes all forced tokens after its first.
    """
    sequences = [tuple(s) for s in sequences]
    longest = max(map(len, sequences))

    def forced(path):
        while scoring != "vocabulary" and len(following := continuations(sequences, path)) == 1:
            path += tuple(following)
        return path

    running, results = [(forced(()), 0.0)], []
    if running[0][0] in sequences:
        return running
    while running:
        continued = []
        for path, score in running:
            values, tokens = log_probs(model, [*prompt, *path]), continuations(sequences, path)
            if scoring == "catalogue":
                values = renormalised(values, tokens)
            continued += [(forced((*path, t)), score + values[t].item()) for t in tokens]
        continued = sorted(continued, key=lambda pair: -pair[1])[: 2 * num_beams]
        results += [
            (path, score / len(path) ** length_penalty)
            for path, score in continued[:num_beams]
            if path[-1] == EOS
        ]
        results = sorted(results, key=lambda pair: -pair[1])[:num_beams]
        running = [pair for pair in continued if pair[0][-1] != EOS][:num_beams]
        if running and len(results) == num_beams:
            most = longest if length_penalty > 0 else 1
            running = running if running[0][1] / most**length_penalty > results[-1][1] else []
    return results


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


def generated(model, sequences, prompts, num_beams, length_penalty=0.0):
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
            length_penalty=length_penalty,
            early_stopping="never",  # as soon as nothing can get better, not by a heuristic
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

SCORINGS = ["vocabulary", "catalogue", "decisions"]


@pytest.fixture(params=["short chains", "long chains"])
def chains(request, monkeypatch):
    """How far ahead a pass feeds forced tokens, which changes no result."""
    full = 0 if request.param == "short chains" else 10**6
    monkeypatch.setattr(path_scorer, "full_pass", lambda model: full)


@pytest.mark.parametrize("num_beams", [25, 40])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_enough_beams_rank_the_whole_catalogue(model, num_beams, scoring):
    sequences = random_catalogue(25, seed=3)
    prompts = [[5, 9, 3, 4, 7], [8], [2, 3]]
    rows = found(model, sequences, prompts, num_beams, scoring=scoring)
    for actual, prompt in zip(rows, prompts, strict=True):
        assert_same(actual, brute_force(model, sequences, prompt, scoring), tolerance(model))


@given(
    CATALOGUES,
    PROMPTS,
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
def test_equals_a_plain_search(chains, sequences, prompts, num_beams, family, scoring, penalty):
    model, options = MODELS[family], {"scoring": scoring, "length_penalty": penalty}
    rows = found(model, sequences, prompts, num_beams, **options)
    for actual, prompt in zip(rows, prompts, strict=True):
        assert_same(actual, plain_search(model, sequences, prompt, num_beams, **options), 1e-9)


@pytest.mark.parametrize("num_beams", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", range(2))
def test_equals_generate(model, num_beams, seed, chains):
    sequences = random_catalogue(60, seed, tokens=8 if seed else VOCAB_SIZE)
    prompts = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
    expected = generated(model, sequences, prompts, num_beams)
    # (generate takes the log-softmax in float32, whatever the model computes in.)
    for actual, row in zip(found(model, sequences, prompts, num_beams), expected, strict=True):
        assert_same(actual, row, max(1e-5, tolerance(model)))


@given(
    CATALOGUES, PROMPTS, st.sampled_from([1, 2, 5, 16]), st.sampled_from([0.0, 0.0, 1.0, 0.5, -1.0])
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_generate_on_any_catalogue(sequences, prompts, num_beams, penalty):
    model = MODELS["qwen2"]
    penalty = penalty if num_beams > 1 else 0.0  # greedy decoding knows none
    expected = generated(model, sequences, prompts, num_beams, penalty)
    rows = found(model, sequences, prompts, num_beams, length_penalty=penalty)
    for actual, row in zip(rows, expected, strict=True):
        assert_same(actual, row, 1e-5)


def test_two_hundred_beams_and_titles_of_two_hundred_tokens(chains):
    long = [[2, *([3 + seed] * 190), 4, seed + 2, EOS] for seed in range(3)]
    sequences = [*random_catalogue(300, seed=5), *long]
    prompts = [[5, 9, 3], [8]]
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1).double()
    expected = generated(model, sequences, prompts, 200)
    for actual, row in zip(found(model, sequences, prompts, 200), expected, strict=True):
        assert_same(actual, row, 1e-5)
    for actual, prompt in zip(
        found(model, sequences, prompts, 200, scoring="catalogue"), prompts, strict=True
    ):
        exact = brute_force(model, sequences, prompt, "catalogue")
        assert_same(actual[:50], exact[:50], 1e-9)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("family", UNSTEERABLE)
def test_an_architecture_that_shares_no_prompt_is_searched_plainly(family, scoring, caplog):
    model = precise(family)
    sequences, prompts = random_catalogue(40, seed=6), [[5, 9, 3, 4, 7, 11, 2, 2, 6], [8], [2, 3]]
    rows = found(model, sequences, prompts, 5, scoring=scoring)
    assert caplog.text.count("every candidate is computed with its whole prompt") == 1
    for actual, prompt in zip(rows, prompts, strict=True):
        expected = plain_search(model, sequences, prompt, 5, scoring)
        assert_same(actual, expected, 1e-5)


def test_the_others_share_prompts(model, caplog):
    found(model, [[5, EOS]], [[3]], 1)
    assert not caplog.text


@pytest.mark.parametrize("scoring", SCORINGS)
def test_catalogue_scores_are_probabilities_of_items(scoring):
    sequences = random_catalogue(20, seed=2)
    (row,) = found(MODELS["qwen2"], sequences, [[3, 4]], 20, scoring=scoring)
    total = sum(math.exp(score) for _, score in row)
    assert (total == pytest.approx(1)) == (scoring == "catalogue")


def test_scores_of_decisions_are_those_of_packed_leaves(model):
    tree = PrefixTree.build(random_catalogue(30, seed=2))
    prompts = [[3, 4], [5]]
    leaf, score = beam_search(model, tree, prompts, 6, "decisions")
    packed = pack_leaves(prompts, leaf, tree, "decisions")
    expected = sum_by_candidate(token_log_probs(model, packed), packed)
    torch.testing.assert_close(score, expected.detach(), atol=tolerance(model), rtol=0)


# ------------------------------------------------------------------------------- an auxiliary


def test_the_mass_of_nodes_by_hand():
    # Items 0 and 3 share a title, 1 and 2 the token 4. Nodes: root, [3 1], [4], [4 5 1], [4 6 1].
    tree = PrefixTree.build([[3, EOS], [4, 5, EOS], [4, 6, EOS], [3, EOS]])
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]]).log()
    expected = [[1.0, 0.5, 0.5, 0.2, 0.3], [1.0, 1.0, 0.0, 0.0, 0.0]]
    mass = node_log_probs(tree, logits)
    assert mass.isfinite().all()
    torch.testing.assert_close(mass.exp(), torch.tensor(expected))


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("scoring", ["catalogue", "decisions"])
def test_an_assistant_has_its_share_of_an_items_score(scoring, weight):
    """What it says at the decisions of a title adds up to its log-probability of the title."""
    model, sequences = MODELS["qwen2"], random_catalogue(40, seed=6)
    tree, prompts = PrefixTree.build(sequences), [[3, 4], [5]]
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).mul(3)
    auxiliary = AuxiliaryScorer(node_log_probs(tree, logits), weight)
    rows = found(model, sequences, prompts, 40, scoring=scoring, auxiliary=auxiliary)
    for actual, prompt, probability in zip(rows, prompts, logits.softmax(-1), strict=True):
        expected = []
        for path, score in brute_force(model, sequences, prompt, scoring):
            own = [item for item, other in enumerate(sequences) if tuple(other) == path]
            theirs = probability[own].sum().log().item()
            expected.append((path, weight * score + (1 - weight) * theirs))
        assert_same(actual, sorted(expected, key=lambda pair: -pair[1]), 1e-5)


def test_an_assistant_has_no_say_in_single_tokens():
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
    expected = found(model, sequences, prompts, 16)
    dtype = model.dtype
    try:
        actual = found(model.float(), sequences, prompts, 16)
    finally:
        model.to(dtype)
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other, 1e-4)


def test_scores_of_half_precision_logits_add_up_in_float32():
    model = causal_lm("qwen2", VOCAB_SIZE).bfloat16()
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
        assert_same(row, found(model, sequences, [prompt], 8)[0], tolerance(model))


def test_fewer_items_than_beams_end_in_nothing():
    leaf, score = beam_search(
        MODELS["qwen2"], PrefixTree.build([[5, EOS], [6, EOS], [5, EOS]]), [[3, 4], [7]], 5
    )
    assert (leaf >= 0).tolist() == [[True, True, False, False, False]] * 2
    assert leaf[:, 2:].tolist() == [[-1] * 3] * 2
    assert score[:, 2:].tolist() == [[-torch.inf] * 3] * 2


@pytest.mark.parametrize("sequence", [[EOS], [7, EOS], [*range(2, 22), *range(2, 22), EOS]])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_single_item(model, sequence, scoring):
    (row,) = found(model, [sequence], [[3, 9]], 3, scoring=scoring)
    assert_same(row, brute_force(model, [sequence], [3, 9], scoring), tolerance(model))
    assert scoring == "vocabulary" or row[0][1] == 0  # the only item is certain


def test_a_beam_at_least(model):
    with pytest.raises(ValueError, match="num_beams must be at least 1, not 0"):
        beam_search(model, PrefixTree.build([[5, EOS]]), [[3]], 0)


def test_titles_end_within_the_models_positions():
    model = causal_lm("gpt2", VOCAB_SIZE, max_position_embeddings=8)
    found(model, [[5, 6, 7, EOS]], [[3] * 5], 1)
    message = "a prompt of 6 tokens and titles of up to 4 exceed the model's 8 positions"
    with pytest.raises(InputError, match=message):
        found(model, [[5, 6, 7, EOS]], [[3], [3] * 6], 1)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_logits_that_are_not_numbers(scoring):
    model = causal_lm("phi", VOCAB_SIZE)
    with torch.no_grad():
        model.lm_head.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="the model's logits are not numbers"):
        found(model, random_catalogue(9, seed=0), [[3]], 4, scoring=scoring)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_what_the_model_rules_out_is_no_result(scoring):
    model = unigram_lm([1 / 8, 1 / 2, 0, 3 / 8])
    sequences = [[2, EOS], [3, EOS], [3, 3, EOS]]
    (row,) = found(model, sequences, [[3]], 3, scoring=scoring)
    assert [path for path, _ in row] == [(3, EOS), (3, 3, EOS)]


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_pass_takes_one_synchronisation(scoring, chains, monkeypatch):
    """The host reads the sizes of the next pass at once, and nothing else from the device."""
    model, passes = causal_lm("qwen2", VOCAB_SIZE, seed=1), []
    model.register_forward_hook(lambda *_: passes.append(1))
    tree = PrefixTree.build(random_catalogue(60, seed=8, tokens=5))
    prompts = [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
    expected = beam_search(model, tree, prompts, 9, scoring)  # asks once of a model and a tree
    passes.clear()
    monkeypatch.setattr(beam, "NO_WAIT", set())
    with Reads() as reads:
        actual = beam_search(model, tree, prompts, 9, scoring)
    assert len(passes) > 2
    assert reads.count == len(passes)
    assert all(map(torch.equal, actual, expected))


def test_forced_tokens_are_taken_together(monkeypatch):
    steps, step = [], beam.step
    monkeypatch.setattr(beam, "step", lambda *x: steps.append(1) or step(*x))
    monkeypatch.setattr(path_scorer, "full_pass", lambda model: 10**6)
    sequences = [[token, *range(5, 15), EOS] for token in (2, 3)]
    found(causal_lm("qwen2", VOCAB_SIZE), sequences, [[8], [9]], 2)
    assert len(steps) == 2  # the first token, and the others


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device, whatever the device."""

    def __enter__(self):
        self.count = 0
        reads = self

        class Lists(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                names = ("tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
                reads.count += getattr(function, "__name__", "") in names
                return function(*args, **(kwargs or {}))

        self.lists = Lists()
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        self.lists.__exit__(*error)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        boolean = name in ("index", "index_put") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        self.count += boolean or name in ("_local_scalar_dense", "nonzero", "masked_select")
        return function(*args, **(kwargs or {}))


def test_what_a_checkpoint_asks_of_generate_changes_nothing():
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1).double()
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=3, top_p=0.1, temperature=9.0, repetition_penalty=7.0, num_beams=2
    )
    sequences = random_catalogue(40, seed=7)
    assert found(model, sequences, [[5, 6]], 9) == found(MODELS["qwen2"], sequences, [[5, 6]], 9)


def test_dropout_is_off_and_training_goes_on():
    model = causal_lm("gpt2", VOCAB_SIZE, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).double()
    sequences = random_catalogue(40, seed=8)
    expected = found(model, sequences, [[5, 6]], 9)
    model.train()
    assert found(model, sequences, [[5, 6]], 9) == expected
    assert model.training
    assert all(module.training for module in model.modules())


def test_a_checkpointed_model_keeps_its_cache():
    model = causal_lm("qwen2", VOCAB_SIZE, seed=1).double()
    model.activation_checkpointing_enable()
    model.train()
    sequences = random_catalogue(40, seed=9)
    assert found(model, sequences, [[5, 6]], 9) == found(MODELS["qwen2"], sequences, [[5, 6]], 9)


def test_no_gradient_is_kept(model):
    _, score = beam_search(model, PrefixTree.build([[5, EOS]]), [[3]], 1)
    assert not score.requires_grad
