"""How many operations a GPU is given, and how often the host waits for it."""

import pytest
from fake_gpu import fake_gpu
from ranking_data import ITEM_TITLES, SEED, TEST_ROWS
from search_oracles import random_catalogue
from tiny_models import causal_lm, write_data
from training_runs import SHORT

from rere.config.evaluation import Recommend
from rere.engine.model.decoder import supports_shared_prompt
from rere.engine.model.head import computes_logits_by_token
from rere.engine.search.beam import beam_search
from rere.evaluation import recommend as recommend_module
from rere.evaluation.recommend import recommend
from rere.prefix_tree import PrefixTree
from rere.training.rl import RlTrainer, rl

MOST = {
    "rollout": (2860, 15),
    "catalogue_rollout": (1660, 6),
    "update": (1140, 0),
    "step": (3910, 16),
    "validation": (5150, 32),
    "evaluation": (1670, 11),
}
"""The most operations and host reads.

A GPU waits 5 to 10 microseconds for each operation of a small model, and longer for each read. If
a count grows, look at `gpu.by_name` before and after the change: an operation within a loop over
tokens, steps or rows can often move out of it, and a read can often wait for the next one. Raise a
bound only for what is worth that time; lower it when a count falls.
"""


def check(name, operations, host_reads):
    assert operations <= MOST[name][0], f"{name}: {operations} operations"
    assert host_reads <= MOST[name][1], f"{name}: {host_reads} host reads"


@pytest.mark.parametrize(
    ("name", "scoring"), [("rollout", "vocabulary"), ("catalogue_rollout", "catalogue")]
)
def test_a_rollout(name, scoring):
    """Beam search of 8 beams for 8 prompts."""
    tree = PrefixTree.build(random_catalogue(200, seed=3))
    prompts = [list(range(2, 6 + length)) for length in range(8)]
    with fake_gpu() as gpu:
        model, tree = causal_lm("qwen2", 24).to("meta"), tree.to("meta")
        beam_search(model, tree, prompts, 8, scoring)  # finds out about model and tree, once
        gpu.reset()
        beam_search(model, tree, prompts, 8, scoring)
    check(name, gpu.operations, gpu.host_reads)


def test_a_step_of_rl(fixed_model, cycle, tmp_path, monkeypatch):
    """8 prompts with 4 candidates each in one pass, with a reference; two batches to validate."""

    def counted(name, function):
        def run(*args):
            operations, host_reads = gpu.operations, gpu.host_reads
            result = function(*args)
            check(name, gpu.operations - operations, gpu.host_reads - host_reads)
            return result

        return run

    monkeypatch.setattr(RlTrainer, "update", counted("update", RlTrainer.update))
    monkeypatch.setattr(RlTrainer, "training_step", counted("step", RlTrainer.training_step))
    monkeypatch.setattr(RlTrainer, "validate", counted("validation", RlTrainer.validate))
    with fake_gpu() as gpu:
        options = SHORT["rl"].model_copy(update={"steps": 2, "valid_rows": 16})
        rl(options, fixed_model, cycle, 0, tmp_path)


def test_a_batch_of_an_evaluation(fixed_model, tmp_path, monkeypatch):
    """8 beams for 12 test rows."""
    data = write_data(tmp_path / "data", ITEM_TITLES, test=TEST_ROWS)
    options = Recommend(rows=None, num_beams=8, batch_size=12)
    write_rankings = recommend_module.write_rankings

    def counted(output, task, *more):
        supports_shared_prompt(task.policy)  # finds out about model and tree, once
        computes_logits_by_token(task.policy)
        assert len(task.tree.first_tokens) == 2
        gpu.reset()
        write_rankings(output, task, *more)
        check("evaluation", gpu.operations, gpu.host_reads)

    monkeypatch.setattr(recommend_module, "write_rankings", counted)
    with fake_gpu() as gpu:
        recommend(options, fixed_model, data, SEED, tmp_path / "predictions.parquet")
