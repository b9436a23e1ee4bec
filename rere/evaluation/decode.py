"""Rankings by a language model without training it: beam search, BIGRec and D3.

`beam` is the search of `rere.evaluation.recommend`, for a model that nothing trained.

`bigrec` (Bao et al. 2023, arXiv 2308.08434) lets the model write a title freely. Items are ranked
by the distance between the embedding of their title and that of the written one. An embedding is
this model's last-layer state after the last token of a title, encoded without prompt and quotes.
The released code takes embeddings from the model before fine-tuning and writes with beam search;
here decoding is greedy. It may also weigh distances by popularity, which is left out.

`d3` (Bao et al. 2024, arXiv 2406.14900) is a beam search without length normalisation in which
forced tokens ("ghost tokens") do not count. A sequential model may contribute a share of each
score: the probability of the items below a token, among the items below the path so far. The
logarithms of these add up to the log-probability of the item. The released code keeps the
log-probabilities of forced tokens, which are near 0, and represents the items below a token by the
most probable one. Beams are compared by number of decisions here, and by number of tokens there.

B rows of a batch, I items, N nodes of the tree, T distinct titles, D hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.config.decoding import D3, Beam, Bigrec
from rere.config.evaluation import Decoding
from rere.data.factors import Factors
from rere.engine.model.decoder import eval_mode
from rere.engine.model.padding import right_pad
from rere.engine.model.precision import arithmetic
from rere.engine.search.beam import beam_search
from rere.engine.search.paths import AuxiliaryScorer
from rere.engine.search.unconstrained import generate_greedy
from rere.evaluation.ranking import Ranking
from rere.evaluation.recommend import (
    RankingTask,
    load_ranking_task,
    make_beam_ranker,
    rank_items,
    write_rankings,
)
from rere.prefix_tree import PrefixTree

TITLES_PER_BATCH = 256


def decode(
    options: Beam | Bigrec | D3,
    evaluation: Decoding,
    model: Path,
    data: Path,
    seed: int,
    output: Path,
    factors: Path | None = None,
) -> dict[str, Any]:
    """Write the predictions of the model in folder `model` for a data set's test split.

    `factors` are a sequential model's factors of the test rows (`rere.data.factors`), which `d3`
    needs where alpha is below 1. Scores are log-probabilities, for `bigrec` negative distances.
    Returns what was chosen for the device: precision and sizes.
    """
    task = load_ranking_task(evaluation, model, data, seed)
    match options:
        case Beam():
            rank = make_beam_ranker(task, options.num_beams, options.scoring)
            batch_size = task.max_batch_size(options.num_beams, options.scoring)
        case D3():
            rank = make_d3_ranker(options, task, factors)
            batch_size = task.max_batch_size(options.num_beams, "decisions")
        case Bigrec():
            rank = make_bigrec_ranker(task)
            batch_size = task.max_batch_size(1, "vocabulary")
    write_rankings(output, task, evaluation.batch_size or batch_size, evaluation.list_length, rank)
    return {"dtype": task.dtype, **task.sizes._asdict()}


def make_d3_ranker(
    options: D3, task: RankingTask, path: Path | None
) -> Callable[[list[int]], Iterable[Ranking]]:
    """A function that ranks a batch of rows by D3, with the factors in `path` if there are any."""
    factors = None
    if path is not None:
        row_ids = task.rows["row_id"]
        factors = Factors.load(path, row_ids.to_numpy(), len(task.encoder.titles))
        factors = factors.to(task.policy.device)

    def rank(batch: list[int]) -> Iterable[Ranking]:
        auxiliary = None
        if factors is not None:
            states = factors.states(
                torch.tensor(row_ids[batch].to_list(), device=factors.row_id.device)
            )
            auxiliary = AuxiliaryScorer(
                node_log_probs(task.tree, states @ factors.item.T), options.alpha
            )
        prompts = [task.prompts[row] for row in batch]
        with arithmetic(task.policy.device, task.dtype):
            beams = beam_search(
                task.policy,
                task.tree,
                prompts,
                options.num_beams,
                "decisions",
                auxiliary=auxiliary,
                sizes=task.sizes,
            )
        return rank_items(task, beams)

    return rank


def node_log_probs(tree: PrefixTree, logits: Tensor) -> Tensor:
    """Log-probability of the items below each node: (B, I) item logits -> (B, N) f32, finite.

    Item probabilities are the softmax of `logits`. `tree` lies on the logits' device.
    """
    total = torch.zeros(len(logits), len(tree.depth), device=logits.device)
    share, node = logits.float().softmax(-1), tree.leaf_of_item
    for _ in range(tree.num_levels):
        total.index_add_(1, node, share)
        share, node = share * (node > 0), tree.parent[node]  # the root is its own parent
    return total.clamp(min=torch.finfo(total.dtype).tiny).log()


def make_bigrec_ranker(task: RankingTask) -> Callable[[list[int]], Iterable[Ranking]]:
    """A function that ranks a batch of rows by BIGRec."""
    policy, encoder = task.policy, task.encoder
    codes = {title: code for code, title in enumerate(dict.fromkeys(encoder.titles))}
    with arithmetic(policy.device, task.dtype):
        vectors = embed(policy, encoder.encode_titles(list(codes)))  # (T, D)
    title_of_item = torch.tensor([codes[title] for title in encoder.titles], device=policy.device)

    def rank(batch: list[int]) -> Iterator[Ranking]:
        with arithmetic(policy.device, task.dtype):
            ids = generate_greedy(policy, task.tree, [task.prompts[row] for row in batch])
            written = encoder.decode_titles([[i for i in row if i >= 0] for row in ids.tolist()])
            embedded = embed(policy, encoder.encode_titles(written))
        distances = l2_distances(embedded, vectors)
        # Stable: items with equal distances, such as those that share a title, stay ordered by id.
        ranked = distances[:, title_of_item].sort(dim=-1, stable=True)
        return zip(ranked.indices.tolist(), (-ranked.values).tolist(), strict=True)

    return rank


@torch.no_grad()
def embed(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The last layer's state after the last token of each sequence, (sequences, D) f32."""
    states: dict[int, Tensor] = {}
    by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    with eval_mode(model):
        for start in range(0, len(by_length), TITLES_PER_BATCH):
            indices = by_length[start : start + TITLES_PER_BATCH]
            batch = [list(sequences[index]) for index in indices]
            # Attention is causal, so padding on the right changes nothing.
            output = model.base_model(
                input_ids=right_pad(batch, 0).to(model.device), use_cache=False
            )
            last = [len(ids) - 1 for ids in batch]
            last_states = output.last_hidden_state[range(len(batch)), last].float()
            states |= dict(zip(indices, last_states, strict=True))
    return torch.stack([states[index] for index in range(len(sequences))])


def l2_distances(vectors: Tensor, others: Tensor) -> Tensor:
    """L2 distances of (B, D) and (T, D) vectors, (B, T); exactly 0 between equal vectors."""
    return torch.cdist(vectors, others, compute_mode="donot_use_mm_for_euclid_dist")
