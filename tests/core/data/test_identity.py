"""One id is one response and one group is one prompt: rows that say otherwise are found."""

from __future__ import annotations

import pytest
from datasets import Dataset, concatenate_datasets

from ostinato import swapped
from ostinato.data.identity import contradiction, response_id


def pair(group, first, second):
    """Two responses to one of three prompts, by their numbers."""
    row = {"iteration": 2, "group": group, "prompt": f"prompt {group}", "prompt_ids": [group]}
    for side, number in (("chosen", first), ("rejected", second)):
        row |= {side: f"response {group} {number}", f"{side}_ids": [group, number, 1]}
        row |= {f"{side}_finished": True, f"{side}_id": response_id(2, 10 + group, number)}
    return row


PAIRS = [pair(0, 0, 1), pair(0, 2, 1), pair(1, 1, 0), pair(1, 1, 2), pair(2, 0, 1)]


def test_what_was_drawn_agrees_with_itself(comparisons):
    first, second = (comparisons(5, seed=k, responses=3, iteration=k) for k in (1, 2))
    assert contradiction(concatenate_datasets([first, second])) is None
    assert contradiction(second, [first]) is None
    assert contradiction(swapped(first, [True, False, True] * 5), [first]) is None


def test_a_response_may_stand_beside_another_prompts():
    """As itself: the tokens, and the name that it has there."""
    foreign = {key: value for key, value in PAIRS[2].items() if key.startswith("chosen")}
    assert contradiction(Dataset.from_list([*PAIRS, PAIRS[0] | foreign])) is None


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (1, {"rejected_id": "2:10:0"}, "row 1: rejected_id '2:10:0' is another response's"),
        (1, {"rejected_id": "2:11:0"}, "row 2: rejected_id '2:11:0' is another response's"),
        (3, {"chosen": "other"}, "row 3: chosen_id '2:11:1' is another response's"),
        (3, {"chosen_ids": [9]}, "row 3: chosen_id '2:11:1' is another response's"),
        (3, {"chosen_finished": False}, "row 3: chosen_id '2:11:1' is another response's"),
        (4, {"group": 0}, "row 4: group 0 of iteration 2 is another prompt's"),
        (3, {"prompt_ids": [9]}, "row 3: group 1 of iteration 2 is another prompt's"),
        (3, {"prompt": "other"}, "row 3: group 1 of iteration 2 is another prompt's"),
    ],
)
def test_a_row_that_names_something_else_than_one_before_it_is_found(row, columns, message):
    rows = [{**pair} for pair in PAIRS]
    rows[row] |= columns
    found = contradiction(Dataset.from_list(rows))
    assert found is not None
    assert found.startswith(f"{message}; ")


def test_a_name_is_known_from_data_whose_row_has_gone():
    """A plugin that takes a row out may not give its name to another response."""
    rows = [PAIRS[4] | {"chosen": "other", "chosen_ids": [9]}]
    assert contradiction(Dataset.from_list(rows)) is None
    assert contradiction(Dataset.from_list(rows), [Dataset.from_list(PAIRS)]) == (
        "row 0: chosen_id '2:12:0' is another response's; a new response needs an id of its own"
    )
