"""Count the tokens of titles and prompts under a backbone's tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rere.backbones import load_tokenizer
from rere.catalogue import find_twins
from rere.data.dataset import read_items, read_split
from rere.files import write_json
from rere.prefix_tree import PrefixTree
from rere.tokenization import MAX_PROMPT_TOKENS, PromptEncoder


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
