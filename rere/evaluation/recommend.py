"""Rank the catalogue with a language model: for every test row, or for one history of titles."""

import difflib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
from transformers import PreTrainedModel

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue, PrefixTree
from rere.config.evaluation import Arithmetic, Decoding, Recommend, Search
from rere.data.splits import read_items, read_split
from rere.engine.search.batch_size import max_batch_size
from rere.engine.search.beam import Beams, beam_search
from rere.engine.search.path_scorer import Scoring
from rere.errors import InputError
from rere.evaluation.predictions import write_predictions
from rere.progress import progress
from rere.tokenization import PromptEncoder


class TestRun(NamedTuple):
    """A model and the test rows that it is to rank items for."""

    policy: PreTrainedModel
    encoder: PromptEncoder
    tree: PrefixTree  # on the policy's device
    rows: pl.DataFrame  # of the test split
    prompts: list[list[int]]

    def max_batch_size(self, num_beams: int, scoring: Scoring) -> int:
        """Rows of a search that memory takes."""
        longest = max(map(len, self.prompts), default=0)
        return max_batch_size(self.policy, self.tree, longest, num_beams, scoring)


Ranked = tuple[list[int], list[float]]
"""A row's items, best first, and their scores."""


def recommend(options: Recommend, model: Path, data: Path, seed: int, output: Path) -> None:
    """Write the predictions of the model in a folder on the test split of a data set.

    Scores are log-probabilities of the title.
    """
    run = load_run(options, model, data, seed)

    def rank(batch: list[int]) -> Iterable[Ranked]:
        beams = beam_search(
            run.policy,
            run.tree,
            [run.prompts[row] for row in batch],
            options.num_beams,
            options.scoring,
            options.length_penalty,
        )
        return items_of(run.tree, beams)

    batch_size = options.batch_size or run.max_batch_size(options.num_beams, options.scoring)
    write_ranked(output, run, batch_size, options.list_length, rank)


def load_run(options: Recommend | Decoding, model: Path, data: Path, seed: int) -> TestRun:
    """The model in a folder and the rows of a data set's test split that the options choose."""
    policy = load_policy(model, options)
    encoder = PromptEncoder(load_tokenizer(model), read_items(data)["title"].to_list())
    tree = catalogue_of(model, policy, encoder).tree.to(policy.device)
    rows = read_split(data, "test", options.rows)
    prompts = encoder.prompts(rows["row_id"].to_list(), rows["history"].to_list(), seed)
    return TestRun(policy, encoder, tree, rows, prompts)


def items_of(tree: PrefixTree, beams: Beams) -> Iterator[Ranked]:
    """Each row's beams as items.

    Every beam ends in an item of the catalogue; a beam whose title several items share yields
    all of them, in the order of item id.
    """
    for leaves, scores in zip(beams.leaf.tolist(), beams.score.tolist(), strict=True):
        pairs = [
            (item, score)
            for leaf, score in zip(leaves, scores, strict=True)
            for item in (tree.leaf_items[leaf] if leaf >= 0 else ())
        ]
        yield [item for item, _ in pairs], [score for _, score in pairs]


def write_ranked(
    output: Path,
    run: TestRun,
    batch_size: int,
    length: int,
    rank: Callable[[list[int]], Iterable[Ranked]],
) -> None:
    """Write predictions of up to `length` items a row, as `rank` has them of a batch's rows."""
    # Rows of like length share a pass, so that little of it is padding.
    order = sorted(range(len(run.prompts)), key=lambda row: len(run.prompts[row]))
    items: list[list[int]] = [[] for _ in order]
    scores: list[list[float]] = [[] for _ in order]
    with progress(len(order), "recommend") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for row, (ranked, ranked_scores) in zip(batch, rank(batch), strict=True):
                items[row], scores[row] = ranked[:length], ranked_scores[:length]
            bar.update(len(batch))
    write_predictions(output, run.rows, items, scores)


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


def load_policy(model: Path, options: Arithmetic) -> PreTrainedModel:
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
