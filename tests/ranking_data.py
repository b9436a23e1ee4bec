"""Titles, test rows and a catalogue that the tests of ranking share."""

from collections.abc import Sequence

import torch
from tiny_models import TITLES, causal_lm, tokenizer

from rere.catalogue import Catalogue
from rere.tokenization import PromptEncoder, prompt_text, response_text

ITEM_TITLES = [*TITLES, *(f"Item number {number}" for number in range(12)), "Heat"]
"""Titles of 25 items; three of them are called Heat."""

HEAT_ITEMS = [item for item, title in enumerate(ITEM_TITLES) if title == "Heat"]
TEST_ROWS = [
    ([item % 25, (3 * item + 1) % 25][: 1 + item % 2], (7 * item) % 25) for item in range(12)
]
"""(history, target) of each test row."""

SEED = 5


def build_catalogue(titles: Sequence[str] = ITEM_TITLES) -> Catalogue:
    """The catalogue of these titles in the tokens of the fixed model."""
    encoder = PromptEncoder(tokenizer("qwen2"), titles)
    ids = [f"raw{item}" for item in range(len(titles))]
    return Catalogue.build(encoder, encoder.encode_responses(), ids, max_history=3)


@torch.no_grad()
def brute_force_scores(
    scoring: str, instruction: str, history: Sequence[str], titles: Sequence[str]
) -> list[float]:
    """log p(title | prompt) of each title, with one plain forward pass over each whole text.

    `catalogue` normalises a token over those that continue one of the titles with the same
    beginning.
    """
    tokens = tokenizer("qwen2")
    model = causal_lm("qwen2", len(tokens))
    prompt = prompt_text(instruction, history)
    start = len(tokens(prompt).input_ids)
    sequences = [
        [*tokens(prompt + response_text(title)).input_ids, tokens.eos_token_id] for title in titles
    ]
    scores = []
    for ids in sequences:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        score = 0.0
        for position in range(start, len(ids)):
            allowed = range(logits.shape[1])
            if scoring == "catalogue":
                allowed = {s[position] for s in sequences if s[:position] == ids[:position]}
            competing = logits[position - 1, list(allowed)].logsumexp(0)
            score += (logits[position - 1, ids[position]] - competing).item()
        scores.append(score)
    return scores
