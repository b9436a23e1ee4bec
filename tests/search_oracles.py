"""Slow references for constrained search: brute force, a plain beam search, and `generate`.

A catalogue is a list of token sequences that end in EOS. A ranking is a list of pairs of a token
sequence and its score, best first.
"""

import pytest
import torch
from hypothesis import strategies as st
from tiny_models import VOCAB_SIZE, precise
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

EOS = 1
SCORINGS = ["vocabulary", "catalogue", "decisions"]
MODELS = {family: precise(family, seed=1) for family in ("qwen2", "gpt2")}

CATALOGUES = st.lists(
    st.lists(st.integers(2, 6) | st.integers(2, VOCAB_SIZE - 1), max_size=7),
    min_size=1,
    max_size=40,
).map(lambda paths: [[*path, EOS] for path in paths])
PROMPT_BATCHES = st.lists(
    st.lists(st.integers(2, VOCAB_SIZE - 1), min_size=1, max_size=9), min_size=1, max_size=3
)


def random_catalogue(items, seed, longest=8, tokens=VOCAB_SIZE):
    """Sequences with shared prefixes, of mixed lengths, some of them equal."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (), generator=generator))

    return [[*(2 + draw(tokens - 2) for _ in range(draw(longest))), EOS] for _ in range(items)]


def assert_same_ranking(actual, expected, tolerance):
    assert [path for path, _ in actual] == [path for path, _ in expected]
    scores = [score for _, score in expected]
    assert [score for _, score in actual] == pytest.approx(scores, abs=tolerance, rel=0)


# ---------------------------------------------------------------------------------- plain passes


@torch.no_grad()
def next_log_probs(model, ids):
    """log p(next token | ids), (V,), by a plain forward pass over the whole sequence."""
    return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def at_temperature(model, temperature):
    """A function that returns the model's output with logits divided by the temperature."""

    def forward(input_ids):
        output = model(input_ids=input_ids)
        output.logits = output.logits / temperature
        return output

    return forward


def next_tokens(sequences, path):
    """The tokens with which some sequence continues `path`."""
    length = len(path)
    return sorted({s[length] for s in sequences if len(s) > length and tuple(s[:length]) == path})


def renormalise(log_probs, tokens):
    """Log-probabilities that sum to one over `tokens`."""
    others = [t for t in range(VOCAB_SIZE) if t not in tokens]
    log_probs = log_probs - log_probs[tokens].logsumexp(-1)
    return log_probs.index_fill(0, torch.tensor(others, dtype=torch.long), -999)


def brute_force(model, sequences, prompt, scoring="vocabulary"):
    """The ranking of all distinct sequences, by a plain pass for each token."""
    ranking = []
    for sequence in {tuple(s) for s in sequences}:
        score = 0.0
        for end, token in enumerate(sequence):
            log_probs = next_log_probs(model, [*prompt, *sequence[:end]])
            allowed = next_tokens(sequences, sequence[:end])
            if scoring == "catalogue":
                log_probs = renormalise(log_probs, allowed)
            if scoring != "decisions" or len(allowed) > 1:
                score += log_probs[token].item()
        ranking.append((sequence, score))
    return sorted(ranking, key=lambda pair: -pair[1])


def plain_search(model, sequences, prompt, num_beams, scoring="vocabulary", length_penalty=0.0):
    """The ranking by transformers' beam search rules, one hypothesis at a time.

    Of the best 2K continuations, those that end among the first K are results, and the first K
    that do not end are continued until the best of them cannot beat K results. Except under
    `vocabulary` scoring, a continuation takes all forced tokens after its first.
    """
    sequences = [tuple(s) for s in sequences]
    longest = max(map(len, sequences))

    def add_forced(path):
        while scoring != "vocabulary" and len(allowed := next_tokens(sequences, path)) == 1:
            path += tuple(allowed)
        return path

    running, results = [(add_forced(()), 0.0)], []
    if running[0][0] in sequences:
        return running
    while running:
        continued = []
        for path, score in running:
            log_probs = next_log_probs(model, [*prompt, *path])
            tokens = next_tokens(sequences, path)
            if scoring == "catalogue":
                log_probs = renormalise(log_probs, tokens)
            continued += [(add_forced((*path, t)), score + log_probs[t].item()) for t in tokens]
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


# ------------------------------------------------------------------------------------- generate


class AllowCatalogue(LogitsProcessor):
    """-inf for tokens that continue no sequence; `generate` applies it after the log-softmax."""

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


def generate_rankings(model, sequences, prompts, num_beams, length_penalty=0.0):
    """One ranking per prompt by transformers' own beam search, without its filler hypotheses."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    is_token = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=is_token,
        logits_processor=LogitsProcessorList([AllowCatalogue(sequences, length)]),
        generation_config=GenerationConfig(
            num_beams=num_beams,
            num_return_sequences=num_beams,
            length_penalty=length_penalty,
            early_stopping="never",  # stop when nothing can improve, not by a heuristic
            do_sample=False,
            max_new_tokens=max(map(len, sequences)),
            eos_token_id=EOS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        ),
    )
    responses = output.sequences[:, length:].tolist()
    if num_beams == 1:  # greedy decoding, which returns no sequence scores
        paths = [tuple(ids[: ids.index(EOS) + 1]) for ids in responses]
        return [
            [pair for pair in brute_force(model, sequences, prompt) if pair[0] == path]
            for path, prompt in zip(paths, prompts, strict=True)
        ]
    scores = output.sequences_scores.tolist()
    return [
        [
            (tuple(responses[i][: responses[i].index(EOS) + 1]), scores[i])
            for i in range(row * num_beams, (row + 1) * num_beams)
            if scores[i] > -1e8
        ]
        for row in range(len(prompts))
    ]
