"""Rank the catalogue with a language model for the test rows."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from rere.backbones import load_for_inference, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue, with_titles
from rere.config.evaluation import Decoding, Recommend
from rere.config.options import Scoring
from rere.data.dataset import read_items, read_split
from rere.devices import choose_dtype
from rere.engine import SearchScoring
from rere.engine.model.precision import arithmetic
from rere.engine.search.batch_size import max_batch_size
from rere.engine.search.beam import Beams, beam_search
from rere.engine.search.sizes import SearchSizes, choose_sizes
from rere.evaluation.predictions import RawIds, read_raw_ids, write_predictions
from rere.evaluation.ranking import Ranking, rank_by_length, rank_leaves, with_first_title
from rere.prefix_tree import PrefixTree
from rere.progress import progress
from rere.ranks import Ranks, join, leave
from rere.tokenization import PromptEncoder


class RankingTask(NamedTuple):
    """A model and the test rows to rank items for."""

    policy: PreTrainedModel
    encoder: PromptEncoder
    tree: PrefixTree  # on the policy's device
    rows: pl.DataFrame  # of the test split
    prompts: list[list[int]]  # of the rows
    raw_ids: RawIds
    dtype: str  # of its arithmetic
    sizes: SearchSizes
    ranks: Ranks

    def max_batch_size(self, num_beams: int, scoring: SearchScoring) -> int:
        """Rows per batch that fit in memory."""
        longest = max(map(len, self.prompts), default=0)
        return max_batch_size(self.policy, self.tree, longest, num_beams, scoring, self.sizes)


def recommend(options: Recommend, model: Path, data: Path, seed: int, output: Path) -> None:
    """Write the predictions of the model in folder `model` for a data set's test split.

    Scores are log-probabilities of titles. Raises InputError if the model or the data are missing
    or malformed, a prompt is too long, or memory runs out.
    """
    task = load_ranking_task(options, model, data, seed)
    rank = make_beam_ranker(task, options.num_beams, options.scoring, options.length_penalty)
    batch_size = options.batch_size or task.max_batch_size(options.num_beams, options.scoring)
    write_rankings(output, task, batch_size, options.list_length, rank)


def make_beam_ranker(
    task: RankingTask, num_beams: int, scoring: Scoring, length_penalty: float = 0.0
) -> Callable[[list[int]], Iterable[Ranking]]:
    """A function that ranks a batch of rows by constrained beam search."""

    def rank(batch: list[int]) -> Iterable[Ranking]:
        with arithmetic(task.policy.device, task.dtype):
            beams = beam_search(
                task.policy,
                task.tree,
                [task.prompts[row] for row in batch],
                num_beams,
                scoring,
                length_penalty,
                sizes=task.sizes,
            )
        return rank_items(task, beams)

    return rank


def load_ranking_task(
    options: Recommend | Decoding, model: Path, data: Path, seed: int
) -> RankingTask:
    """The model in folder `model` and the test rows of `data` that the options select.

    Raises InputError if model, tokenizer or data are missing or malformed, a title has no tokens of
    its own, a prompt is too long, or the model does not fit into memory.
    """
    ranks, rows = join(), read_split(data, "test", options.rows)
    items = read_items(data)
    raw_ids = read_raw_ids(data, rows, items)
    policy = load_for_inference(model, options.dtype)
    dtype = choose_dtype(options.dtype, policy.device)
    encoder = PromptEncoder(load_tokenizer(model), items["title"].to_list())
    tree = load_or_build_tree(model, policy, encoder).to(policy.device)
    prompts = encoder.encode_prompts(rows["row_id"].to_list(), rows["history"].to_list(), seed)
    with arithmetic(policy.device, dtype):
        own_sizes = choose_sizes(policy, is_timed=ranks.is_first)
    sizes = SearchSizes(*map(int, ranks.first(*own_sizes)))
    return RankingTask(policy, encoder, tree, rows, prompts, raw_ids, dtype, sizes, ranks)


def rank_items(task: RankingTask, beams: Beams) -> Iterator[Ranking]:
    """Yield each row's ranking: the items of its beams, best beam first.

    A beam whose title belongs to several items yields all of them, ordered by item id.
    """
    titles, leaf_items = task.encoder.titles, task.tree.leaf_items
    for leaves, scores in zip(beams.leaf.tolist(), beams.score.tolist(), strict=True):
        yield rank_leaves(leaves, scores, lambda leaf: with_first_title(leaf_items[leaf], titles))


def write_rankings(
    output: Path,
    task: RankingTask,
    batch_size: int,
    length: int,
    rank: Callable[[list[int]], Iterable[Ranking]],
) -> None:
    """Write predictions of at most `length` items per row; `rank` ranks a batch of rows.

    Every rank ranks its share of the batches, as one process would, and the first one writes.
    """
    ranks, rows = task.ranks, range(len(task.prompts))
    ranked = rank_by_length(task.prompts, rows, batch_size, rank, " or num_beams", ranks)
    rankings: list[Ranking] = [([], []) for _ in rows]
    with progress(len(rows), "recommend", disable=not ranks.is_first) as bar:
        for row, (items, scores) in ranked:
            rankings[row] = items[:length], scores[:length]
            bar.update(ranks.size)
    rankings = gather_rankings(rankings, length, ranks)
    if ranks.is_first:
        items, scores = ([each[n] for each in rankings] for n in (0, 1))
        write_predictions(output, task.rows, items, scores, task.raw_ids)
    leave(ranks)


def gather_rankings(rankings: list[Ranking], length: int, ranks: Ranks) -> list[Ranking]:
    """The rankings of all rows, of which each rank has some and an empty one of the others."""
    if ranks.size == 1:
        return rankings
    shape = len(rankings), length
    count, item, score = np.zeros(shape[:1], np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    for row, (items, scores) in enumerate(rankings):
        count[row] = len(items)
        item[row, : len(items)], score[row, : len(items)] = items, scores
    # Adding up bits keeps even the sign of 0.
    parts = (torch.from_numpy(each) for each in (count, item, score.view(np.int64)))
    count, item, bits = (ranks.sum(part).numpy() for part in parts)
    score = bits.view(np.float64)
    return [(item[row, :n].tolist(), score[row, :n].tolist()) for row, n in enumerate(count)]


def load_or_build_tree(model: Path, policy: PreTrainedModel, encoder: PromptEncoder) -> PrefixTree:
    """The tree stored in folder `model` if it is of the encoder's titles, else a new one."""
    if (path := model / CATALOGUE).is_file():
        stored = Catalogue.load(path, policy.config.get_text_config().vocab_size)
        if stored.fingerprint == encoder.fingerprint():
            return stored.tree
    return with_titles(PrefixTree.build(encoder.encode_responses()), encoder.titles)
