"""What chooses the weights of a run that ends in rankings."""

import torch

from rere.catalogue import PrefixTree
from rere.engine.search.beam import beam_search
from rere.evaluation.metrics import METRICS, gains, target_ranks
from rere.training.trainer import Trainer

SELECTION = "ndcg@10"


def search_ndcg(trainer: Trainer, tree: PrefixTree, num_beams: int) -> dict[str, float]:
    """NDCG@10 of a beam search with the trainer's model, on its validation sample.

    Batches hold the rows' "prompts" and, as item ids, their "target" (B,); `tree` lies on the
    model's device.
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
    return {SELECTION: float(gains(ranks).mean(axis=0)[METRICS.index("NDCG@10")])}
