"""Other ways to recommend with a trained language model: BIGRec and D3.

`bigrec` (Bao et al. 2023, arXiv 2308.08434) lets the model write what it likes, and grounds it:
items are ranked by how near their titles' embeddings are to that of what was written. An embedding
is the last layer's state after the last token of a title alone, without prompt and quotes, in this
very model. The released code has it from the model before its fine-tuning, grounds the best of
several beams where the likeliest token is taken each time here, and may weigh distances by
popularity.

`d3` (Bao et al. 2024, arXiv 2406.14900) searches the catalogue without length normalisation, and
forced tokens, its ghost tokens, count for nothing. A sequential model, which knows no text, may
have a share of each decision: how likely the items are that a token leaves, among those that were
left before it. Its logarithms add up to that of the item. The released code keeps the forced
tokens' own log-probabilities, which are next to 0, and has the likeliest item stand for those that
a token leaves. Beams are compared by decisions made here, by tokens there.

B rows of a batch, I items, T titles that differ, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rere.catalogue import PrefixTree
from rere.config.decoding import D3, Bigrec
from rere.config.evaluation import Decoding
from rere.data.factors import Factors
from rere.engine.model.decoder import eval_mode
from rere.engine.model.padding import right_pad
from rere.engine.search.beam import beam_search
from rere.engine.search.path_scorer import AuxiliaryScorer
from rere.engine.search.unconstrained import generate_greedy
from rere.errors import InputError
from rere.evaluation.recommend import Ranked, TestRun, items_of, load_run, write_ranked

TITLES_A_PASS = 256


def decode(
    options: Bigrec | D3,
    evaluation: Decoding,
    model: Path,
    data: Path,
    seed: int,
    output: Path,
    factors: Path | None = None,
) -> None:
    """Write the predictions of the model in a folder on the test split of a data set.

    `factors` are a sequential model's of the test rows (`rere.data.factors`), which `d3` asks where
    alpha is below 1. Scores are log-probabilities, of `bigrec` minus distances.
    """
    run = load_run(evaluation, model, data, seed)
    match options:
        case D3():
            rank = d3(options, run, factors)
            fitting = run.max_batch_size(options.num_beams, "decisions")
        case Bigrec():
            rank = bigrec(run)
            fitting = run.max_batch_size(1, "vocabulary")
    write_ranked(output, run, evaluation.batch_size or fitting, evaluation.list_length, rank)


def d3(options: D3, run: TestRun, factors: Path | None) -> Callable[[list[int]], Iterable[Ranked]]:
    """What ranks a batch of rows by D3."""
    asked = None
    if factors is not None:
        row_ids = run.rows["row_id"]
        asked = Factors.load(factors, row_ids.to_numpy(), len(run.encoder.titles))
        asked = asked.to(run.policy.device)

    def rank(batch: list[int]) -> Iterable[Ranked]:
        auxiliary = None
        if asked is not None:
            states = asked.states(
                torch.tensor(row_ids[batch].to_list(), device=asked.row_id.device)
            )
            auxiliary = AuxiliaryScorer(
                node_log_probs(run.tree, states @ asked.item.T), options.alpha
            )
        prompts = [run.prompts[row] for row in batch]
        beams = beam_search(
            run.policy, run.tree, prompts, options.num_beams, "decisions", auxiliary=auxiliary
        )
        return items_of(run.tree, beams)

    return rank


def node_log_probs(tree: PrefixTree, logits: Tensor) -> Tensor:
    """How likely each node's items are in all, by a softmax over the `logits` (B, I) of all items.

    Logarithms (B, N) f32, nowhere -inf. `tree` lies on the logits' device.
    """
    mass = torch.zeros(len(logits), len(tree.depth), device=logits.device)
    share, node = logits.float().softmax(-1), tree.leaf_of_item
    for _ in range(tree.num_levels):
        mass.index_add_(1, node, share)
        share, node = share * (node > 0), tree.parent[node]  # the root is above itself
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


def bigrec(run: TestRun) -> Callable[[list[int]], Iterable[Ranked]]:
    """What ranks a batch of rows by BIGRec; raises InputError where embeddings are not numbers."""
    policy, encoder = run.policy, run.encoder
    codes = {title: code for code, title in enumerate(dict.fromkeys(encoder.titles))}
    vectors = embed(policy, encoder.titles_alone(list(codes)))  # (T, D)
    if not vectors.isfinite().all():
        raise InputError("the model's states are not numbers; its weights are broken")
    title_of_item = torch.tensor([codes[title] for title in encoder.titles], device=policy.device)

    def rank(batch: list[int]) -> Iterator[Ranked]:
        ids = generate_greedy(policy, run.tree, [run.prompts[row] for row in batch])
        written = encoder.written_titles([[i for i in row if i >= 0] for row in ids.tolist()])
        distance = distances(embed(policy, encoder.titles_alone(written)), vectors)
        # Of one distance, as items of one title are, the first in the order of item id.
        ranked = distance[:, title_of_item].sort(dim=-1, stable=True)
        return zip(ranked.indices.tolist(), (-ranked.values).tolist(), strict=True)

    return rank


@torch.no_grad()
def embed(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The last layer's state after the last token of each sequence, (N, D) f32."""
    states: dict[int, Tensor] = {}
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    with eval_mode(model):
        for start in range(0, len(order), TITLES_A_PASS):
            numbers = order[start : start + TITLES_A_PASS]
            some = [list(sequences[number]) for number in numbers]
            # Nothing that comes later is seen, padding neither.
            output = model.base_model(
                input_ids=right_pad(some, 0).to(model.device), use_cache=False
            )
            last = [len(ids) - 1 for ids in some]
            found = output.last_hidden_state[range(len(some)), last].float()
            states |= dict(zip(numbers, found, strict=True))
    return torch.stack([states[number] for number in range(len(sequences))])


def distances(vectors: Tensor, others: Tensor) -> Tensor:
    """L2 distances (B, T) of vectors (B, D) and others (T, D), 0 where they are the same."""
    return torch.cdist(vectors, others, compute_mode="donot_use_mm_for_euclid_dist")
