"""How long titles and prompts are to a backbone's tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rere.backbones import load_tokenizer
from rere.data.dataset import read_items, read_split
from rere.files import write_json
from rere.tokenization import MAX_PROMPT_TOKENS, PromptEncoder


def token_lengths(backbone: Path, data: Path, rows: int | None, output: Path) -> None:
    """Write the numbers of tokens of all titles and of the test rows' prompts as JSON.

    A title is counted as a model writes it, with the end of sequence; a prompt as a model reads
    it, without the items that MAX_PROMPT_TOKENS leaves no room for. `rows` is a sample's size.
    """
    encoder = PromptEncoder(load_tokenizer(backbone), read_items(data)["title"].to_list())
    test = read_split(data, "test", rows)
    prompts = encoder.prompts(test["row_id"].to_list(), test["history"].to_list(), seed=0)
    lengths = {
        "titles": summary(encoder.responses()),
        "prompts": summary(prompts) | {"limit": MAX_PROMPT_TOKENS},
    }
    write_json(output, lengths)


def summary(sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How many token sequences there are, and how long."""
    lengths = np.array([len(sequence) for sequence in sequences])
    median, percentile = np.quantile(lengths, [0.5, 0.99], method="higher")
    return {
        "count": len(lengths),
        "mean": float(lengths.mean()),
        "median": int(median),
        "99th_percentile": int(percentile),
        "longest": int(lengths.max()),
    }
