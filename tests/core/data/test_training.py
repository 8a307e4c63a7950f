"""D_k: what may be combined and refined, and what of it is counted."""

from __future__ import annotations

import pytest
from datasets import Dataset

from distributions import offered, plugin
from ostinato import UserError, swapped
from ostinato.data.training import combine_data, refine_data


def active(kit, monkeypatch, *others, **hooks):
    """Active plugins with one that is made here."""
    offered(monkeypatch, plugin(**hooks))
    return kit.make("made", *others).plugins


def test_combined_data_without_rows_or_columns_is_refused(kit, comparisons, monkeypatch):
    data = comparisons(4)
    for change, message in (
        (lambda d: d.select([]), "answered no rows"),
        (lambda d: d.remove_columns(["weight"]), "lost the column weight"),
    ):
        given = change(data)

        def combine(self, datasets):
            return given  # noqa: B023

        one = active(kit, monkeypatch, combine_data=combine)
        with pytest.raises(UserError, match=f"plugin 'made': hook 'combine_data' {message}"):
            combine_data([data], one, kit.make().ctx)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.select([]), "answered no rows"),
        (lambda d: d.remove_columns(["label"]), "lost the column label"),
        (
            lambda d: Dataset.from_list([*d, {**d[1], "rejected_id": "1:0:0"}]),
            "answered a row 4: rejected_id '1:0:0' is another response's; a new response needs",
        ),
        (
            lambda d: Dataset.from_list([*d.select([0, 1, 2]), {**d[3], "chosen": "new"}]),
            r"answered a row 3: chosen_id '1:3:\d' is another response's; a new response needs",
        ),
        (
            lambda d: Dataset.from_list([*d, {**d[1], "group": 2}]),
            "answered a row 4: group 2 of iteration 1 is another prompt's",
        ),
        (
            lambda d: Dataset.from_list([*d, {k: v for k, v in d[1].items() if "_ids" not in k}]),
            "left chosen_ids out of a row",
        ),
        (
            lambda d: Dataset.from_dict(d.to_dict() | {"margin": [float("inf")] * 4}),
            "made margin not finite",
        ),
        (
            lambda d: Dataset.from_dict(d.to_dict() | {"weight": [0.0] * 4}),
            "made every weight 0",
        ),
        (
            lambda d: d.add_column("votes", [1, 2, 3, 4]),
            "added column 'votes', which the plugin does not declare in `provides`",
        ),
    ],
)
def test_refinements_are_checked(kit, comparisons, monkeypatch, change, message):
    one = active(kit, monkeypatch, refine_data=lambda self, data: change(data))
    with pytest.raises(UserError, match=f"plugin 'made': hook 'refine_data' {message}"):
        refine_data(comparisons(4), one, kit.make().ctx)


def test_the_magnitude_of_a_refinement_is_the_rows_that_it_changed(kit, comparisons, monkeypatch):
    def refine(self, data):
        return Dataset.from_dict(data.to_dict() | {"weight": [1.0, 2.0, 1.0, 3.0]})

    one = active(kit, monkeypatch, refine_data=refine)
    refine_data(comparisons(4), one, kit.make().ctx)
    assert one.taken_actions() == {"made.refine_data": 2.0}


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (lambda d: d, 0),
        (lambda d: d.select([3, 1, 0, 2]), 0),
        (lambda d: d.select([3, 1]), 2),
        (lambda d: Dataset.from_list([*d, *d.select([1, 2, 3])]), 3),
        (lambda d: swapped(d.select([0, 1, 2]), [True, False, False]), 2),
        (lambda d: d.add_column("votes", [1] * 4), 4),
    ],
)
def test_rows_that_came_or_went_count_as_those_that_changed(
    kit, comparisons, monkeypatch, change, moved
):
    made = plugin(refine_data=lambda self, data: change(data))
    made.provides = ("votes", "weight")
    offered(monkeypatch, made)
    one = kit.make("made").plugins
    refine_data(comparisons(4), one, kit.make().ctx)
    assert one.taken_actions() == {"made.refine_data": float(moved)}


def test_rows_may_come_with_responses_of_other_prompts_and_without_gold(
    kit, comparisons, monkeypatch
):
    """Each prompt's chosen response against the next one's: five rows more."""
    data = comparisons(5)

    def refine(self, data):
        rows = data.to_list()
        for place, row in enumerate(data):
            theirs = data[(place + 1) % len(data)]
            names = [name for name in row if name.startswith("chosen")]
            foreign = {name.replace("chosen", "rejected", 1): theirs[name] for name in names}
            rows.append(row | foreign | {"rejected_gold": None})
        return Dataset.from_list(rows)

    one = active(kit, monkeypatch, refine_data=refine)
    made = refine_data(data, one, kit.make().ctx)
    assert one.taken_actions() == {"made.refine_data": 5.0}
    batch = kit.make().batch(made, kit.make().initial())
    pairs = [[batch.response[i] for i in pair] for pair in batch.pairs.tolist()]
    prompts = [batch.prompt[i] for i in batch.pairs[:, 1].tolist()]
    words = data["chosen"][:]
    wanted = [
        (prompt, [chosen, other])
        for place, (prompt, chosen, rejected) in enumerate(
            zip(data["prompt"], words, data["rejected"], strict=True)
        )
        for other in (rejected, words[(place + 1) % 5])
    ]
    assert list(zip(prompts, pairs, strict=True)) == wanted
    assert len(batch.response) == 3 * 5  # its own two, and the other prompt's
