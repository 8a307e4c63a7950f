"""Comparisons that are made have the columns of a run, and batches of them are the engine's."""

from __future__ import annotations

import pytest
import torch

from ostinato.data.preferences import load_data
from ostinato.testing import comparisons, preferences, rm_outputs, run, tiny_reward_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """D_1 of a run."""
    made = run([], tmp_path_factory.mktemp("run") / "run", iterations=1)
    return load_data(made.directory / "iteration-1" / "data")


def test_columns_and_their_kinds_are_those_of_a_run(data):
    assert comparisons().features == data.features


def test_the_better_response_is_chosen():
    made = comparisons(6, responses=3)
    assert len(made) == 6 * 3
    for row in made:
        assert row["chosen_gold"] >= row["rejected_gold"]


def test_texts_bring_their_tokens_and_golds_along():
    made = comparisons(chosen=["good soup", "tea"], rejected=["bad", "cold tea"], label=[0.9, 0.6])
    assert made["label"][:] == [0.9, 0.6]
    assert made["chosen_gold"][:] == pytest.approx([1.2, 0.1])
    assert made["rejected_gold"][:] == pytest.approx([-0.9, -0.8])
    assert [len(ids) for ids in made["chosen_ids"]] == [3, 2]  # with the stop token
    assert made.features == comparisons().features


def test_unlabelled_comparisons_are_what_a_labeller_sees():
    made = comparisons(labelled=False, first=["good"], second=["bad"])
    assert made["first_gold"][0] > made["second_gold"][0]
    assert "label" not in made.column_names
    assert "chosen" not in made.column_names


def test_a_batch_holds_the_rows_and_the_columns_that_plugins_added():
    made = preferences(comparisons(3, strength_mean=[0.1, 0.2, 0.3]))
    assert made.extra["strength_mean"] == [0.1, 0.2, 0.3]
    assert made.pairs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert made.rank.tolist() == [0, 1, 0, 1, 0, 1]
    assert preferences(label=[0.5] * 4).label.tolist() == [0.5] * 4


def test_outputs_are_a_reward_models_with_their_gradient():
    batch, model = preferences(), tiny_reward_model(3)
    made = rm_outputs(batch, model=model)
    assert torch.equal(made.score, model(batch.input_ids, batch.mask).score)
    made.score.sum().backward()
    assert model.model.score.weight.grad.abs().sum() > 0


def test_views_differ_under_dropout_alone():
    for p in (0.0, 0.3):
        made = rm_outputs(views=2, dropout=p)
        assert made.hidden.shape[0] == 2
        assert torch.equal(made.hidden[0], made.hidden[1]) == (p == 0)
    assert torch.equal(rm_outputs().score, rm_outputs().score)


def test_a_given_score_is_one_view():
    assert rm_outputs(score=[1.0, 2.0]).score.tolist() == [[1.0, 2.0]]
