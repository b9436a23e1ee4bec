"""The keys of log.jsonl, for the documentation."""

LOG_KEYS = {
    "baseline": {
        "epoch": "epochs so far",
        "loss": "mean of the epoch",
        "valid_NDCG@10": "validation NDCG@10, which selects the epoch",
    },
    "sft, preference, rl": {
        "step, epoch": "steps and epochs so far",
        "seconds": "since the run began, with those before a kill",
        "loss": "of the step",
        "grad_norm": "L2 norm of the step's gradient, before it is scaled down",
        "learning_rate": "of the step",
        "peak_memory_mb": "memory of the process, the most so far",
        "peak_device_memory_mb": "the same on a GPU",
    },
    "sft": {"eval_loss": "validation loss"},
    "preference": {
        "eval_ndcg@10": "validation NDCG@10",
        "margin": "how far the target is ahead of the closest negative: beta times the difference "
        "of their log-ratios",
        "accuracy": "share of rows whose target is ahead of all negatives",
    },
    "rl": {
        "eval_ndcg@10": "validation NDCG@10",
        "reward": "sum over a group, mean over groups",
        "reward_{name}": "the same of each reward, without its weight",
        "hit_rate": "share of groups that hold the target, of any rank; not HR@K of validation",
        "distinct": "different items per group",
        "invalid": "share of candidates that are non-items",
        "kl, entropy": "means per scored token; `kl` with `beta` above 0",
        "kl_linear": "scored tokens, of all updates, with a log-ratio beyond 20, where `k3` is "
        "linear",
        "zero_advantage": "share of groups, after dynamic sampling, that add nothing to the policy "
        "gradient",
        "skipped": "share of groups left out of the update",
        "extra_prompts": "prompts rolled out by dynamic sampling",
        "candidates_per_second": "candidates rolled out, over the step's seconds",
    },
}
"""What the keys of each stage's log mean. Names with the same meaning share an entry."""
