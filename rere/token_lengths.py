"""Count the tokens of titles and prompts under a backbone's tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rere.backbones import load_tokenizer
from rere.catalogue import find_twins
from rere.data.dataset import SPLITS, read_items, read_split
from rere.errors import InputError
from rere.files import write_json
from rere.prefix_tree import PrefixTree
from rere.tokenization import MAX_PROMPT_TOKENS, TEXTS_PER_CALL, PromptEncoder, shorten

ROWS_AT_ONCE = 1_000_000
"""Rows whose lengths are estimated at once, which takes about 300 bytes each."""


def token_lengths(backbone: Path, data: Path, rows: int | None, output: Path) -> None:
    """Write statistics of the lengths of all titles and of the test rows' prompts as JSON.

    A title is counted with the end-of-sequence token, a prompt after cutting it to
    MAX_PROMPT_TOKENS. `rows` is the size of a sample of test rows. `same_tokens` lists the titles
    that the tokenizer cannot tell from another one.
    """
    encoder = PromptEncoder(load_tokenizer(backbone), read_items(data)["title"].to_list())
    test = read_split(data, "test", rows)
    prompts = encoder.encode_prompts(test["row_id"].to_list(), test["history"].to_list(), seed=0)
    responses, titles = encoder.encode_responses(), encoder.titles
    lengths = {
        "titles": length_statistics(responses),
        "prompts": length_statistics(prompts) | {"limit": MAX_PROMPT_TOKENS},
        "same_tokens": [
            {"item": item, "title": titles[item], "as_item": other, "as_title": titles[other]}
            for item, other in find_twins(PrefixTree.build(responses).leaf_of_item, titles)
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
    """Raise InputError, with row and title, if a prompt of a split of `data` is too long.

    `responses` are those of the encoder's titles. A prompt and the longest title must fit into the
    `context` of the model, in tokens; None: no limit. A split without a file is skipped. Only rows
    that may be too long by the lengths of their titles are encoded.
    """
    tokens = np.array([len(response) for response in responses])
    longest = int(tokens.argmax())
    # The end of sequence is predicted, but not fed.
    room = MAX_PROMPT_TOKENS if context is None else context - int(tokens[longest]) + 1
    fixed = max(map(len, encoder.encode_prompts(range(100), [[]] * 100, seed)))  # without titles

    def check_rows(rows: pl.DataFrame) -> None:
        row_ids = rows["row_id"].to_list()
        prompts = encoder.encode_prompts(row_ids, rows["history"].to_list(), seed)
        for row_id, prompt in zip(row_ids, prompts, strict=True):
            if len(prompt) > room:
                raise InputError(
                    f"row {row_id}: its prompt of {len(prompt)} tokens and the title "
                    f"{shorten(encoder.titles[longest])} of {tokens[longest]} exceed the {context} "
                    "positions of the model; lower max_history or max_title_words, or take a "
                    "backbone with more"
                )

    for path in (data / f"{split}.parquet" for split in SPLITS):
        for part in read_split(data, path.stem).iter_slices(ROWS_AT_ONCE) if path.is_file() else ():
            last, total = title_tokens(part["history"], tokens)
            is_suspect = may_exceed(fixed + last, MAX_PROMPT_TOKENS)
            if room < MAX_PROMPT_TOKENS:
                is_suspect |= may_exceed(fixed + total, room)
            try:
                for rows in part.filter(pl.Series(is_suspect)).iter_slices(TEXTS_PER_CALL):
                    check_rows(rows)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None


def title_tokens(histories: pl.Series, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of each history's last title and of all its titles, (rows,) each.

    `tokens` (I,) are those of each item's title. An empty history has 0.
    """
    count = histories.list.len().to_numpy().astype(np.int64)
    flat = tokens[histories.explode().drop_nulls().to_numpy()]
    edge, end = np.append(0, flat.cumsum()), count.cumsum()
    last = np.append(flat, 0)[end - 1] * (count > 0)
    return last, edge[end] - edge[end - count]


def may_exceed(estimate: np.ndarray, limit: int) -> np.ndarray:
    """Return whether texts of about so many tokens may have more than `limit`.

    A title's tokens in a prompt may differ from those in its response, at its ends.
    """
    return estimate * 1.1 + 16 > limit
