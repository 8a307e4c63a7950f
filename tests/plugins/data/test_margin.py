"""margin: the mean strength inside the sigmoid (Secrets of RLHF II, equation 6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import UserError, load_config
from ostinato.engine.session import check

STRENGTH = [0.5, -0.1, 2.0, -3.0, 0.0, 1.0, -0.2, 0.3]


def with_margin(kit, data, strength, *others):
    one = kit.make("strength", *others, "margin")
    data = data.add_column("strength_mean", strength)
    for name in (*others, "margin"):
        data = one.plugins.call(name, "refine_data", data=data, ctx=one.ctx)
    return data


def test_the_margin_is_the_mean_strength(kit, comparisons):
    data = comparisons(8)
    made = with_margin(kit, data, STRENGTH)
    assert made["margin"][:] == STRENGTH
    others = [c for c in data.column_names if c != "margin"]
    assert made.select_columns(others).to_dict() == data.select_columns(others).to_dict()


def test_margins_add_up(kit, comparisons):
    """A margin that the data has already, of a scale of ratings perhaps, is kept."""
    data = comparisons(8)
    data = data.from_dict(data.to_dict() | {"margin": [0.25] * 8}, features=data.features)
    assert with_margin(kit, data, STRENGTH)["margin"][:] == [0.25 + s for s in STRENGTH]


# --- Margins by rating (Book 7.4.1, Llama 2) ------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_by_ratings_it_is_the_difference_of_the_two_ratings_inside_the_sigmoid(
    kit, comparisons, scale
):
    """-log s(r_chosen - r_rejected - m(r)) in float64, with m counted from the texts themselves."""
    one = kit.make(("margin", {"of": "ratings", "scale": scale}), updates=1, batch=8)
    data = comparisons(8, noise=0.4)
    made, start = one.plugins.call("margin", "refine_data", data=data, ctx=one.ctx), one.initial()
    rating = [[t.count("a") - t.count("b") for t in data[side]] for side in ("chosen", "rejected")]
    margin = scale * np.subtract(*rating)
    assert made["margin"][:] == margin.tolist()
    assert margin.min() < 0 < margin.max()  # a wrong label asks the rating's other way
    one.trainer()(start, made)
    batch = one.batch(made, start)
    score = start(batch.input_ids, batch.mask).score[0].detach().double().numpy()
    z = score[batch.pairs[:, 0]] - score[batch.pairs[:, 1]] - margin
    expected = np.log1p(np.exp(-z)).mean()
    assert one.rows[0]["terms"]["bradley_terry"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first", ["flip", "margin"])
def test_by_ratings_the_order_of_it_and_flip_does_not_matter(kit, comparisons, first):
    one = kit.make("strength", "flip", ("margin", {"of": "ratings"}))
    data = comparisons(8).add_column("strength_mean", STRENGTH)
    for name in (first, "margin" if first == "flip" else "flip"):
        data = one.plugins.call(name, "refine_data", data=data, ctx=one.ctx)
    gold = data["chosen_gold"][:], data["rejected_gold"][:]
    assert data["margin"][:] == np.subtract(*gold).tolist()


def test_ratings_need_gold(kit, comparisons):
    given = ["plugins=[{margin: {of: ratings}}]"]
    config = load_config("toy", given)
    assert check(config, "toy").owners["preference_loss"] == "bradley_terry"  # and no votes
    with pytest.raises(UserError, match=r"plugins\.margin\.of: is ratings, which are gold's; set"):
        check(config.model_copy(update={"gold": None}), "toy")
    data = comparisons(4)
    unrated = data.from_dict(data.to_dict() | {"chosen_gold": [None] * 4}, features=data.features)
    one = kit.make(("margin", {"of": "ratings"}))
    with pytest.raises(UserError, match=r"plugins\.margin\.of: is ratings, but some pairs have no"):
        one.plugins.call("margin", "refine_data", data=unrated, ctx=one.ctx)


# --- With other plugins ---------------------------------------------------------------------------


def test_after_flip_it_is_the_absolute_strength(kit, comparisons):
    assert (
        with_margin(kit, comparisons(8), STRENGTH, "flip")["margin"][:] == np.abs(STRENGTH).tolist()
    )


def test_the_loss_is_equation_6_with_the_margin_inside(kit, comparisons):
    one = kit.make(updates=1, batch=8)
    made, start = with_margin(kit, comparisons(8), STRENGTH), one.initial()
    one.trainer()(start, made)
    batch = one.batch(made, start)
    score = start(batch.input_ids, batch.mask).score[0].detach().double().numpy()
    z = score[batch.pairs[:, 0]] - score[batch.pairs[:, 1]] - np.array(STRENGTH)
    expected = np.log1p(np.exp(-z)).mean()
    assert one.rows[0]["terms"]["bradley_terry"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_effect_strong_pairs_differ_more(kit, comparisons, seed):
    """Secrets of RLHF II, 2.4.2: more discrepant scores where the strength is higher.

    The strength is the gold difference, below 0 for the quarter of the labels that is wrong;
    the loss is then least where the score difference is the strength plus a constant. On held-out
    pairs it must grow, and more on the strong half of them than on the weak one.
    """
    data, held = comparisons(96, seed=seed, noise=0.25), comparisons(96, seed=seed + 50)
    gap = np.array(held["chosen_gold"]) - np.array(held["rejected_gold"])
    strong, found = gap > np.median(gap), []
    strength = np.array(data["chosen_gold"]) - np.array(data["rejected_gold"])
    for train in (data, with_margin(kit, data, strength.tolist())):
        one = kit.make(batch=32, updates=60, lr=1e-2)
        model = one.trainer()(one.initial(seed), train)
        batch = one.batch(held, model)
        with torch.no_grad():
            score = model(batch.input_ids, batch.mask).score[0][batch.pairs].numpy()
        z = score[:, 0] - score[:, 1]
        found.append((z[strong].mean(), z[~strong].mean()))
    (strong_before, weak_before), (strong_after, weak_after) = found
    assert strong_after > 1.4 * strong_before, found
    assert strong_after - weak_after > 1.3 * (strong_before - weak_before), found


def test_a_loss_without_margins_refuses_it(kit):
    with pytest.raises(UserError, match="'margin' provides column 'margin', which nothing con"):
        kit.make("strength", "margin", "k_wise")
