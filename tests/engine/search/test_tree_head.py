"""Under `catalogue` scoring a search computes the logits of the tree's tokens alone."""

import pytest
import torch
from search_oracles import SCORINGS, random_catalogue
from tiny_models import FAMILIES, MASK_IGNORING, causal_lm

from rere.engine.model.precision import arithmetic
from rere.engine.search import path_scorer
from rere.engine.search.beam import beam_search
from rere.engine.search.best_first import best_first_search
from rere.engine.search.path_scorer import PathScorer
from rere.engine.search.sampling import sample_candidates, stochastic_beam_search
from rere.prefix_tree import PrefixTree
from rere.pruning import prune_rows

VOCAB_SIZE = 100
TREE = PrefixTree.build(random_catalogue(60, seed=2, tokens=20))
PROMPTS = [[9, 8, 7], [30, 31], [5]]
SEEDS = torch.arange(3)
SEARCHES = {
    "beam": lambda model: beam_search(model, TREE, PROMPTS, 6, "catalogue", temperature=0.7),
    "iid": lambda model: sample_candidates(model, TREE, PROMPTS, 6, SEEDS),
    "stochastic_beam": lambda model: stochastic_beam_search(model, TREE, PROMPTS, 6, SEEDS),
    "best_first": lambda model: best_first_search(model, TREE, PROMPTS, 6, "catalogue"),
}


def widths(monkeypatch, search, share):
    """What a search finds under a share, and the widths of its logits."""
    seen, score = set(), PathScorer._score_children

    def spy(self, logits, *more):
        seen.add(logits.shape[-1])
        return score(self, logits, *more)

    with monkeypatch.context() as patch:
        patch.setattr(PathScorer, "_score_children", spy)
        patch.setattr(path_scorer, "MAX_HEAD_SHARE", share)
        return search(), seen


def test_first_tokens_by_hand():
    #  root 9 -+- 5 0
    #          +- 2 -+- 7 0
    #                +- 0
    tree = PrefixTree.build([[9, 5, 0], [9, 2, 7, 0], [9, 2, 0]])
    token, index = tree.first_tokens
    assert token.tolist() == [0, 2, 5, 7, 9]
    assert token[index][1:].tolist() == [2, 5, 0, 7]
    # Without tokens that all sequences begin with, the root's edge is empty.
    token, index = PrefixTree.build([[5, 0], [2, 0]]).first_tokens
    assert token[index][1:].tolist() == [2, 5]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("search", SEARCHES)
def test_searches_find_what_the_whole_head_finds(search, dtype, monkeypatch):
    model, num_tokens = causal_lm("qwen2", VOCAB_SIZE), len(TREE.first_tokens[0])
    with arithmetic(model.device, dtype):
        few, narrow = widths(monkeypatch, lambda: SEARCHES[search](model), 0.25)
        whole, wide = widths(monkeypatch, lambda: SEARCHES[search](model), 0)
    assert (narrow, wide) == ({num_tokens}, {VOCAB_SIZE})
    for actual, expected in zip(few, whole, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("family", [*FAMILIES, *MASK_IGNORING])
def test_families(family, monkeypatch):
    model, search = causal_lm(family, VOCAB_SIZE), SEARCHES["beam"]
    few, narrow = widths(monkeypatch, lambda: search(model), 0.25)
    whole, _ = widths(monkeypatch, lambda: search(model), 0)
    assert len(narrow) == 1
    assert (narrow == {VOCAB_SIZE}) == (family in MASK_IGNORING)
    assert torch.equal(few.leaf, whole.leaf)
    torch.testing.assert_close(few.score, whole.score)


def test_the_head_stays_whole_where_it_must_or_saves_little(monkeypatch):
    model = causal_lm("qwen2", VOCAB_SIZE)

    def head(tree, scoring):
        return PathScorer(model, tree, PROMPTS, scoring).head

    assert {name: head(TREE, name) is None for name in SCORINGS} == {
        "vocabulary": True,
        "catalogue": False,
        "decisions": True,
    }
    assert head(prune_rows(TREE, [[]] * 3), "catalogue") is None
    share = len(TREE.first_tokens[0]) / VOCAB_SIZE
    for limit, is_whole in ((share, False), (share - 0.001, True)):
        monkeypatch.setattr(path_scorer, "MAX_HEAD_SHARE", limit)
        assert (head(TREE, "catalogue") is None) == is_whole
