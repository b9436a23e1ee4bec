"""Validation NDCG@10, used to select the checkpoint."""

import torch

from rere.config.evaluation import METRICS
from rere.config.options import Scoring
from rere.engine.search.beam import beam_search
from rere.engine.search.sizes import SearchSizes
from rere.evaluation.metrics import metrics_from_ranks, target_ranks
from rere.prefix_tree import PrefixTree
from rere.training.trainer import Trainer

SELECTION_METRIC = "ndcg@10"


def validate_ndcg(
    trainer: Trainer,
    tree: PrefixTree,
    num_beams: int,
    scoring: Scoring,
    sizes: SearchSizes | None = None,
) -> dict[str, float]:
    """{"ndcg@10": value} of a beam search over the trainer's validation rows.

    Batches hold "prompts" and "target" (B,), item ids. They are dealt out to the ranks. `tree` is
    on the model's device.
    """
    every, size = torch.arange(len(trainer.eval_dataset)), trainer.args.eval_batch_size
    rows, ranked, targets = [every[:0]], [], []
    for part, inputs in trainer.ranks.deal(
        zip(every.split(size), trainer.get_eval_dataloader(), strict=True)
    ):
        with trainer.autocast():
            leaf, _ = beam_search(
                trainer.language_model,
                tree,
                inputs["prompts"],
                num_beams,
                scoring,
                sizes=sizes,
            )
        rows.append(part)
        ranked.append(leaf)
        targets.append(tree.hit_leaf[inputs["target"]])
    ranks = torch.zeros_like(every)
    if ranked:
        found = target_ranks(torch.cat(ranked).cpu().numpy(), torch.cat(targets).cpu().numpy())
        ranks[torch.cat(rows)] = torch.from_numpy(found)
    means = metrics_from_ranks(trainer.ranks.sum(ranks).numpy()).mean(axis=0)
    return {SELECTION_METRIC: float(means[METRICS.index("NDCG@10")])}
