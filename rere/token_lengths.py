"""Count the tokens of titles and prompts, and refuse prompts that are too long for a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rere.backbones import load_tokenizer
from rere.catalogue import find_shadowed
from rere.data.dataset import SPLITS, read_items, read_split
from rere.errors import InputError
from rere.files import write_json
from rere.prefix_tree import PrefixTree
from rere.tokenization import MAX_PROMPT_TOKENS, TEXTS_PER_CALL, PromptEncoder, shorten

ROWS_AT_ONCE = 1_000_000
"""Rows whose lengths are estimated at once, which takes about 300 bytes each."""

UNTITLED = 100
"""Prompts that are encoded without titles for the longest one; so many have every instruction."""

SLACK, SPARE_TOKENS = 1.1, 16
"""A prompt has at most so many times its estimate and so many tokens more: a title's tokens may
differ at both ends from those of its response."""


def token_lengths(backbone: Path, data: Path, rows: int | None, output: Path) -> None:
    """Write statistics of the lengths of all titles and of the test rows' prompts as JSON.

    A title is counted with the end-of-sequence token, a prompt after cutting it to
    MAX_PROMPT_TOKENS. `rows` is the size of a sample of test rows. `shadowed` lists the items whose
    title the tokenizer cannot tell from another one. Raises InputError if a file is missing or
    malformed, or a prompt too long.
    """
    encoder = PromptEncoder(load_tokenizer(backbone), read_items(data)["title"].to_list())
    test = read_split(data, "test", rows)
    prompts = encoder.encode_prompts(test["row_id"].to_list(), test["history"].to_list(), seed=0)
    responses, titles = encoder.encode_responses(), encoder.titles
    lengths = {
        "titles": length_statistics(responses),
        "prompts": length_statistics(prompts) | {"limit": MAX_PROMPT_TOKENS},
        "shadowed": [
            {"item": item, "title": titles[item], "by_item": other, "by_title": titles[other]}
            for item, other in find_shadowed(PrefixTree.build(responses).leaf_of_item, titles)
        ],
    }
    write_json(output, lengths)


def length_statistics(sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the number of sequences, and mean, median, 99th percentile and maximum length."""
    lengths = np.array([len(sequence) for sequence in sequences])
    median, percentile = np.quantile(lengths, [0.5, 0.99], method="higher")
    return {
        "count": len(lengths),
        "mean": float(lengths.mean()),
        "median": int(median),
        "99th_percentile": int(percentile),
        "longest": int(lengths.max()),
    }


def check_prompts(
    encoder: PromptEncoder,
    responses: Sequence[Sequence[int]],
    data: Path,
    seed: int,
    context: int | None,
) -> None:
    """Raise InputError, with row_id and title, if a prompt of a split of `data` is too long.

    `responses` are those of the encoder's titles. A prompt and the longest title must fit into the
    `context` of the model, in tokens; None: no limit. A split without a file is skipped. Only rows
    that may be too long by the lengths of their titles are encoded.
    """
    num_tokens = np.array([len(response) for response in responses])
    longest = int(num_tokens.argmax())
    # The end of sequence is predicted, but not fed.
    longest_prompt = (
        MAX_PROMPT_TOKENS if context is None else context - int(num_tokens[longest]) + 1
    )
    fixed = max(map(len, encoder.encode_prompts(range(UNTITLED), [[]] * UNTITLED, seed)))

    def check_rows(rows: pl.DataFrame) -> None:
        row_ids = rows["row_id"].to_list()
        prompts = encoder.encode_prompts(row_ids, rows["history"].to_list(), seed)
        for row_id, prompt in zip(row_ids, prompts, strict=True):
            if len(prompt) > longest_prompt:
                raise InputError(
                    f"row_id {row_id}: its prompt of {len(prompt)} tokens and the title "
                    f"{shorten(encoder.titles[longest])} of {num_tokens[longest]} exceed the "
                    f"{context} positions of the model; lower max_history or max_title_words, or "
                    "take a backbone with more"
                )

    for path in (data / f"{split}.parquet" for split in SPLITS):
        for part in read_split(data, path.stem).iter_slices(ROWS_AT_ONCE) if path.is_file() else ():
            last, total = count_title_tokens(part["history"], num_tokens)
            is_suspect = may_exceed(fixed + last, MAX_PROMPT_TOKENS)
            if longest_prompt < MAX_PROMPT_TOKENS:
                is_suspect |= may_exceed(fixed + total, longest_prompt)
            try:
                for rows in part.filter(pl.Series(is_suspect)).iter_slices(TEXTS_PER_CALL):
                    check_rows(rows)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None


def count_title_tokens(
    histories: pl.Series, num_tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of each history's last title and of all its titles, (rows,) i64 each.

    `histories` are lists of items, none of them empty. `num_tokens` (I,) are the tokens of each
    item's title.
    """
    count = histories.list.len().to_numpy().astype(np.int64)
    flat = num_tokens[histories.explode().to_numpy()]
    edge, end = np.append(0, flat.cumsum()), count.cumsum()
    return flat[end - 1], edge[end] - edge[end - count]


def may_exceed(estimate: np.ndarray, limit: int) -> np.ndarray:
    """Return whether prompts of about `estimate` (rows,) tokens may have more than `limit`."""
    return estimate * SLACK + SPARE_TOKENS > limit
