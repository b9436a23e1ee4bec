"""Rank the catalogue for every test row with a language model."""

from pathlib import Path

import torch

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import PrefixTree
from rere.config import Recommend
from rere.data.splits import read_items, read_split
from rere.engine.beam import beam_search
from rere.evaluation.predictions import write_predictions
from rere.progress import progress
from rere.prompts import PromptEncoder


def recommend(options: Recommend, model: Path, data: Path, seed: int, output: Path) -> None:
    """Write the predictions of the model in a folder on the test split of a data set.

    Every beam ends in an item of the catalogue; a beam whose title several items share yields
    all of them, in the order of item id. Scores are log-probabilities of the title.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_model(model).to(device, getattr(torch, options.dtype))
    encoder = PromptEncoder(load_tokenizer(model), read_items(data)["title"].to_list())
    tree = PrefixTree.build(encoder.responses()).to(device)

    rows = read_split(data, "test", options.rows)
    prompts = encoder.prompts(rows["row_id"].to_list(), rows["history"].to_list(), seed)
    # Rows of like length share a pass, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    items: list[list[int]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    with progress(len(prompts), "recommend") as bar:
        for start in range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            beams = beam_search(policy, tree, [prompts[row] for row in batch], options.num_beams)
            for row, leaves, log_probs in zip(
                batch, beams.leaf.tolist(), beams.score.tolist(), strict=True
            ):
                for leaf, log_prob in zip(leaves, log_probs, strict=True):
                    same = tree.leaf_items[leaf] if leaf >= 0 else []
                    items[row] += same
                    scores[row] += [log_prob] * len(same)
            bar.update(len(batch))
    length = options.list_length
    write_predictions(output, rows, [r[:length] for r in items], [s[:length] for s in scores])
