"""The numbers of audit.json, by hand."""

import polars as pl
import pytest

from rere.data.audit import audit, audit_table
from rere.data.dataset import SPLIT_SCHEMA
from rere.data.splitting import chronological_split, leave_one_out_split, make_samples
from rere.errors import InputError

ITEMS = pl.DataFrame({"item_id": [0, 1, 2, 3, 4], "title": ["A", "B", "B", "C", "D"]})
DAY = 86_400


def split(*rows: tuple, start: int = 0) -> pl.DataFrame:
    """Rows of (user, history, target, timestamp, previous)."""
    schema = SPLIT_SCHEMA | {"previous": pl.Int64}
    numbered = [(start + n, *row) for n, row in enumerate(rows)]
    return pl.DataFrame(numbered, schema=schema, orient="row")


SPLITS = {
    "train": split((0, [0], 1, 10, 5), (1, [0], 1, 20, 20), (0, [0, 1], 0, 30, 10)),
    "valid": split((1, [0, 1], 3, 40, 20), (2, [0], 3, 50, 50), start=3),
    "test": split(
        (0, [0, 1, 0], 0, 60, 60),  # repeats its last item, in the same second
        (1, [0, 1], 4, DAY + 5, DAY),  # unknown; the history of a train row with target 0
        (3, [2], 2, 2 * DAY, 2 * DAY - 1),  # unknown, its title is another's; the day before
        (3, [0], 3, 2 * DAY, 2 * DAY),  # the history of valid's last row, with the same target
        start=5,
    ),
}


def test_audit_by_hand():
    found = audit(ITEMS, SPLITS, core=2, num_unlisted=7)
    assert found == {
        "events_of_unlisted_items": 7,
        "test_rows": 4,
        "share_of_test_targets_equal_to_their_last_item": 0.5,
        "share_of_test_targets_in_their_history": 0.5,
        "share_of_test_targets_in_the_second_of_their_last_item": 0.5,
        "share_of_test_targets_on_the_day_of_their_last_item": 0.75,
        # Train knows items 0 and 1; targets are 0, 4, 2, 3.
        "share_of_test_targets_that_train_does_not_know": 0.75,
        "share_of_test_targets_whose_title_others_have": 0.25,
        # Earlier targets after [0, 1] are 0 and 3; after [0] they are 1 twice and 3.
        "share_of_test_rows_with_a_history_of_train_or_valid_and_another_target": 0.5,
        # [0, 1] with 3, train: 0. [0] with 3, train: 1.
        "share_of_valid_rows_with_a_history_of_train_and_another_target": 1.0,
        "share_of_test_rows_of_users_in_train": 0.5,
        "valid_and_test_targets_of_users_in_train": 3,
        "train_targets_after_the_first_valid_target": 0,
        "train_targets_after_the_first_test_target": 0,
        # Train's events: user 0 has 0, 1, 0, user 1 has 0, 1; each user and item has two.
        "share_of_train_users_that_the_core_of_train_lacks": 0.0,
        "share_of_train_items_that_the_core_of_train_lacks": 0.0,
        "share_of_train_rows_that_the_core_of_train_lacks": 0.0,
    }
    # With three, item 1 is dropped, then user 1, then item 0: nothing is left.
    found = audit(ITEMS, SPLITS, core=3, num_unlisted=None)
    assert [value for key, value in found.items() if "core" in key] == [1.0, 1.0, 1.0]


def test_numbers_without_timestamps_or_core_are_null():
    bare = {
        name: frame.drop("previous").with_columns(timestamp=pl.lit(None, pl.Int64))
        for name, frame in SPLITS.items()
    }
    found = audit(ITEMS, bare, core=None, num_unlisted=None)
    unknown = [key for key, value in found.items() if value is None]
    assert len(unknown) == 8
    assert {key for key in unknown if "core" not in key and "second" not in key} == {
        "events_of_unlisted_items",
        "share_of_test_targets_on_the_day_of_their_last_item",
        "train_targets_after_the_first_valid_target",
        "train_targets_after_the_first_test_target",
    }


def test_leave_one_out_trains_on_the_future():
    # Users 0 and 1 see items 0 .. 4 in turn, user 1 a hundred seconds later.
    events = [(user, item, 100 * user + 10 * item) for user in (0, 1) for item in range(5)]
    names = ("user_id", "item_id", "timestamp")
    rows = make_samples(
        pl.DataFrame(events, schema=dict.fromkeys(names, pl.Int64), orient="row"), 10
    )
    left, cut = leave_one_out_split(rows), chronological_split(rows)
    assert [frame["target"].to_list() for frame in left.values()] == [[1, 2, 1, 2], [3, 3], [4, 4]]
    # User 0's test target is at 40, before both train targets of user 1.
    key = "train_targets_after_the_first_test_target"
    assert audit(ITEMS, left, 1, 0)[key] == 2
    assert audit(ITEMS, cut, 1, 0)[key] == 0


def test_audit_table(tmp_path):
    for name in ("a", "longer-name"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "audit.json").write_text('{"test_rows": 12, "share_of_x": 0.12345}')
    (tmp_path / "longer-name" / "audit.json").write_text('{"test_rows": 3, "share_of_x": null}')
    assert audit_table([tmp_path / "a", tmp_path / "longer-name"]).splitlines() == [
        "                     a  longer-name",
        "test rows           12            3",
        "share of x      0.1235            -",
    ]


@pytest.mark.parametrize("content", [None, "{"])
def test_a_folder_without_an_audit_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "audit.json").write_text(content)
    with pytest.raises(
        InputError, match=r"audit\.json: (no such file|not readable as JSON).*`rere preprocess`"
    ):
        audit_table([tmp_path])
