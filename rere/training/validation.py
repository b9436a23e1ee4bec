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

    Batches hold "prompts" and "target" (B,), item ids. `tree` is on the model's device.
    """
    ranked, targets = [], []
    for inputs in trainer.get_eval_dataloader():
        with trainer.autocast():
            leaf, _ = beam_search(
                trainer.language_model,
                tree,
                inputs["prompts"],
                num_beams,
                scoring,
                sizes=sizes,
            )
        ranked.append(leaf)
        targets.append(tree.hit_leaf[inputs["target"]])
    ranks = target_ranks(torch.cat(ranked).cpu().numpy(), torch.cat(targets).cpu().numpy())
    means = metrics_from_ranks(ranks).mean(axis=0)
    return {SELECTION_METRIC: float(means[METRICS.index("NDCG@10")])}
