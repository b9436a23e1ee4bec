"""Validation NDCG@10, used to select the checkpoint."""

import torch

from rere.catalogue import PrefixTree
from rere.engine.search.beam import beam_search
from rere.evaluation.metrics import METRICS, metrics_from_ranks, target_ranks
from rere.training.trainer import Trainer

SELECTION_METRIC = "ndcg@10"


def validate_ndcg(trainer: Trainer, tree: PrefixTree, num_beams: int) -> dict[str, float]:
    """{"ndcg@10": value} of a beam search over the trainer's validation rows.

    Batches hold "prompts" and "target" (B,), item ids. `tree` lies on the model's device.
    """
    ranked, targets = [], []
    for inputs in trainer.get_eval_dataloader():
        with trainer.autocast():
            leaf, _ = beam_search(
                trainer.language_model, tree, inputs["prompts"], num_beams, trainer.options.scoring
            )
        pair = (leaf, tree.leaf_of_item[inputs["target"]])
        leaf, target = trainer.accelerator.gather_for_metrics(pair)
        ranked.append(leaf.cpu())
        targets.append(target.cpu())
    ranks = target_ranks(torch.cat(ranked).numpy(), torch.cat(targets).numpy())
    return {
        SELECTION_METRIC: float(metrics_from_ranks(ranks).mean(axis=0)[METRICS.index("NDCG@10")])
    }
