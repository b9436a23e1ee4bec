"""Rank the catalogue with a language model: for every test row, or for one history of titles."""

import difflib
import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue
from rere.config.evaluation import Recommend, Search
from rere.data.splits import read_items, read_split
from rere.engine.batching import rows_that_fit
from rere.engine.beam import beam_search
from rere.errors import InputError
from rere.evaluation.predictions import write_predictions
from rere.progress import progress
from rere.prompts import PromptEncoder


def recommend(options: Recommend, model: Path, data: Path, seed: int, output: Path) -> None:
    """Write the predictions of the model in a folder on the test split of a data set.

    Every beam ends in an item of the catalogue; a beam whose title several items share yields
    all of them, in the order of item id. Scores are log-probabilities of the title.
    """
    policy = load_policy(model, options)
    encoder = PromptEncoder(load_tokenizer(model), read_items(data)["title"].to_list())
    tree = catalogue_of(model, policy, encoder).tree.to(policy.device)

    rows = read_split(data, "test", options.rows)
    prompts = encoder.prompts(rows["row_id"].to_list(), rows["history"].to_list(), seed)
    # Rows of like length share a pass, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    longest = len(prompts[order[-1]]) if order else 0
    batch_size = options.batch_size or rows_that_fit(
        policy, tree, longest, options.num_beams, options.scoring
    )
    items: list[list[int]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    with progress(len(prompts), "recommend") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            beams = beam_search(
                policy,
                tree,
                [prompts[row] for row in batch],
                options.num_beams,
                options.scoring,
                options.length_penalty,
            )
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


def continue_history(
    options: Search, model: Path, history: Sequence[str], top: int, seed: int
) -> list[tuple[str, float]]:
    """The `top` titles, with scores, that the model in a folder ranks first after a history.

    They are those of the catalogue that the folder holds; a title of several items comes once.
    Raises InputError for a title that is not among them.
    """
    policy, tokenizer = load_policy(model, options), load_tokenizer(model)
    path = model / CATALOGUE
    catalogue = Catalogue.load(path, policy.config.get_text_config().vocab_size)
    encoder = PromptEncoder(tokenizer, catalogue.titles)
    if catalogue.fingerprint != encoder.fingerprint():
        raise InputError(f"{path}: not of this tokenizer and prompt; train the model again")

    item_of_title = {title: item for item, title in enumerate(catalogue.titles)}
    for title in history:
        if title not in item_of_title:
            close = ", ".join(map(repr, closest(title, item_of_title)))
            raise InputError(f"there is no title {title!r}; the closest are {close}")
    prompts = encoder.prompts([0], [[item_of_title[title] for title in history]], seed)
    leaf, score = beam_search(
        policy,
        catalogue.tree.to(policy.device),
        prompts,
        max(options.num_beams, top),
        options.scoring,
        options.length_penalty,
    )
    ranked: dict[str, float] = {}
    for node, log_prob in zip(leaf[0].tolist(), score[0].tolist(), strict=True):
        for item in (catalogue.tree.leaf_of_item == node).nonzero()[:, 0].tolist():
            ranked.setdefault(catalogue.titles[item], log_prob)
        if len(ranked) >= top:
            break
    return list(ranked.items())[:top]


def load_policy(model: Path, options: Search) -> PreTrainedModel:
    """The model in a folder, on the device and in the arithmetic of the search."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(model).to(device, getattr(torch, options.dtype))


def catalogue_of(model: Path, policy: PreTrainedModel, encoder: PromptEncoder) -> Catalogue:
    """The catalogue in the model's folder if it is the encoder's, a new one otherwise."""
    if (path := model / CATALOGUE).is_file():
        stored = Catalogue.load(path, policy.config.get_text_config().vocab_size)
        if stored.fingerprint == encoder.fingerprint():
            return stored
    return Catalogue.build(encoder, encoder.responses())


def closest(name: str, titles: Iterable[str]) -> list[str]:
    """The titles most like `name`, three at most, whatever their case.

    Comparing letter by letter takes its time, so a count of shared trigrams goes before.
    """
    name = name.casefold()
    trigrams = {name[i : i + 3] for i in range(max(1, len(name) - 2))}

    def likeness(title: str) -> tuple[int, int]:
        folded = title.casefold()
        return sum(trigram in folded for trigram in trigrams), -abs(len(folded) - len(name))

    shortlist = {t.casefold(): t for t in heapq.nlargest(200, titles, key=likeness)}
    return [shortlist[t] for t in difflib.get_close_matches(name, shortlist, n=3, cutoff=0)]
