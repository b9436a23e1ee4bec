"""The rows of each kind of work, by hand."""

from typing import Any

import pytest
from planned_work import SHAPE, UNIT

from rere.config.evaluation import Recommend
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.planning.operations import Operations
from rere.planning.sample import Search, Unit
from rere.planning.work import Work, Writing, job_work


class FakeSample:
    """A sample of 100 training, 30 validation and 20 test rows; notes which units are asked for."""

    shape = SHAPE

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def num_rows(self, split: str) -> int:
        return {"train": 100, "valid": 30, "test": 20}[split]

    def search(self, search: Search) -> Unit:
        self.asked.append(search)
        return UNIT

    def score(self, options: Any, num_candidates: int, scoring: str, is_update: bool) -> Unit:
        self.asked.append((num_candidates, scoring, is_update))
        return UNIT


def planned(options: Any) -> tuple[dict[str, Work], list[tuple[Any, ...]]]:
    """The works of a job by name, and the units that they are made of."""
    sample = FakeSample()
    work = {each.name: each for each in job_work(options, sample)}  # type: ignore[arg-type]
    return work, sample.asked


def rows(work: dict[str, Work]) -> dict[str, float]:
    return {name: each.rows for name, each in work.items()}


def test_sft_takes_whole_steps_and_validates_the_initial_model_too():
    options = SftOptions(batch_size=8, rows_per_pass=4, epochs=1.5, validations=2, valid_rows=50)
    work, asked = planned(options)
    assert rows(work) == {"update": 19 * 8, "validation": 3 * 30}  # 18.75 steps
    assert asked == [(1, "vocabulary", False), (1, "vocabulary", True)]
    assert (work["update"].layers, work["update"].head_gradient) == (3, 2)
    assert (work["validation"].layers, work["validation"].head_gradient) == (1, 0)
    assert (work["update"].rows_at_once, work["validation"].rows_at_once) == (4, 4)


@pytest.mark.parametrize(
    ("options", "layers", "head_gradient"),
    [({"lora_rank": 4}, 2, 1), ({"gradient_checkpointing": True}, 4, 2)],
)
def test_what_a_backward_pass_computes(options, layers, head_gradient):
    update = planned(SftOptions(**options))[0]["update"]
    assert (update.layers, update.head_gradient) == (layers, head_gradient)


def test_s_dpo_scores_each_row_with_policy_and_reference():
    options = PreferenceOptions(
        batch_size=10, rows_per_pass=5, steps=6, negatives=3, validations=2, valid_rows=7
    )
    work, asked = planned(options)
    assert rows(work) == {"update": 60, "reference": 60, "validation": 3 * 7}
    assert (4, "vocabulary", True) in asked
    assert ("valid", 5, "beam", 16, "vocabulary", "auto") in asked


def test_sprec_takes_half_of_its_steps_for_sft():
    options = PreferenceOptions(
        algorithm="sprec", batch_size=10, rows_per_pass=5, steps=20, scoring="catalogue"
    )
    work, asked = planned(options)
    half = dict.fromkeys(["update of SFT", "search for negatives", "update", "reference"], 100)
    assert rows(work) == {**half, "validation": 6 * 30}
    assert {key for key in asked if key[-1] is True} == {
        (1, "catalogue", True),
        (2, "catalogue", True),
    }


def test_rl_rolls_out_extra_batches_and_scores_the_reference_once():
    options = RlOptions(
        prompts=4,
        rows_per_pass=2,
        steps=5,
        group_size=3,
        updates=2,
        dynamic_sampling=4,
        scoring="catalogue",
        validations=1,
    )
    work, asked = planned(options)
    assert rows(work) == {"rollout": 100, "update": 40, "reference": 20, "validation": 60}
    assert ("train", 4, "beam", 3, "catalogue", "auto") in asked
    assert "reference" not in planned(options.model_copy(update={"beta": 0.0}))[0]


@pytest.mark.parametrize(("rollout", "size"), [("beam", 4), ("unconstrained", 2)])
def test_rollouts_without_a_catalogue_take_the_rows_of_a_pass(rollout, size):
    options = RlOptions(prompts=4, rows_per_pass=2, steps=5, group_size=3, rollout=rollout)
    work, asked = planned(options)
    assert work["rollout"].rows_at_once == size
    assert ("train", size, rollout, 3, "vocabulary", "auto") in asked


def test_rl_takes_the_epochs_of_its_part_of_the_rows():
    options = RlOptions(prompts=4, rows_per_pass=2, epochs=2.0, train_part=[0.5, 1.0])
    assert planned(options)[0]["rollout"].rows == 100


@pytest.mark.parametrize(("options", "count", "size"), [({}, 20, 32), ({"rows": 9}, 9, 32)])
def test_an_evaluation_searches_its_rows(options, count, size):
    work, asked = planned(Recommend(num_beams=5, **options))
    assert rows(work) == {"search": count}
    assert asked == [("test", size, "beam", 5, "catalogue", "auto")]


def test_bigrec_writes_a_title_for_each_row():
    options = Writing(num_beams=1, scoring="vocabulary", batch_size=4)
    work, asked = planned(options)
    assert rows(work) == {"search": 20}
    assert asked == [("test", 4, "greedy", 1, "vocabulary", "auto")]


def test_the_operations_of_work_by_hand():
    work = Work("update", rows=7, rows_at_once=2, unit=UNIT, layers=3, head_gradient=2)
    layers, head = 2 * 100 * 10 + 4 * 8 * 50, 2 * 4 * 24
    assert work.operations(SHAPE) == Operations(7 * 3 * layers, 7 * head, 7 * 2 * head)
    apart = work.operations(SHAPE, is_shared=False)
    assert apart.layers == 7 * 3 * (2 * 100 * 30 + 4 * 8 * 90)
    assert work.tokens == 70
    assert work.passes == 3 * 7 / 2 * 2
