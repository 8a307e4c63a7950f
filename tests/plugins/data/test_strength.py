"""strength: mean and std of the voters' differences (Secrets of RLHF II, equation 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import UserError
from ostinato.data.training import refine_data

EFFECT = {"batch": 16, "epochs": 6, "lr": 1e-2}  # small models need more than the default epoch


class Voter:
    """A reward model that scores by a table of its own."""

    def __init__(self, seed):
        self.table = {}
        self.draw = np.random.default_rng(seed)

    def score(self, prompts, responses, finished):
        for pair in zip(prompts, responses, strict=True):
            self.table.setdefault(pair, self.draw.normal())
        return torch.tensor([self.table[p] for p in zip(prompts, responses, strict=True)])


def test_mean_and_population_std_over_the_models(kit, comparisons):
    one = kit.make(("strength", {"models": 4, "epochs": 0.5}), "flip")
    data, calls, voters = comparisons(6), [], []

    def fit(trained_on, purpose, **changes):
        calls.append((trained_on, purpose, changes))
        voters.append(Voter(len(voters)))
        return voters[-1]

    ctx = one.ctx.at(fit=fit, cached=lambda name, make: make())
    made = one.plugins.call("strength", "refine_data", data=data, ctx=ctx)
    d = np.array(
        [
            [v.table[r["prompt"], r["chosen"]] - v.table[r["prompt"], r["rejected"]] for r in data]
            for v in voters
        ]
    )
    np.testing.assert_allclose(made["strength_mean"], d.sum(0) / 4, rtol=1e-6)
    deviation = np.sqrt(((d - d.mean(0)) ** 2).sum(0) / 4)
    np.testing.assert_allclose(made["strength_std"], deviation, rtol=1e-6)
    assert made.select_columns(data.column_names).to_dict() == data.to_dict()
    assert [c[0] is data for c in calls] == [True] * 4  # the votes are in-sample
    assert len({c[1] for c in calls}) == 4  # an order and a head of its own each
    assert {c[2]["epochs"] for c in calls} == {0.5}


def test_a_strength_that_nobody_uses_is_refused(kit):
    with pytest.raises(UserError, match=r"'strength' provides .* which nothing consumes"):
        kit.make("strength")


def test_flip_needs_a_strength_before_it(kit):
    with pytest.raises(UserError, match="'flip' consumes column 'strength_mean'"):
        kit.make("flip", "strength")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_effect_wrong_labels_have_the_lowest_strength(kit, comparisons, seed):
    """Secrets of RLHF II, 2.2: data of low mean strength is mostly incorrectly labelled.

    A fifth of the labels is turned round; the votes must rank those below the others, and
    turning round what is below 0 must leave fewer wrong ones.
    """
    one = kit.make(("strength", {"models": 4, "epochs": 6}), "flip", **EFFECT)
    data = comparisons(192, seed=seed, noise=0.2)

    def fit(data, purpose, **changes):
        return one.trainer(plain=True)(one.initial(seed), data, purpose=purpose, **changes)

    ctx = one.ctx.at(fit=fit, cached=lambda name, make: make())
    made = refine_data(data, one.plugins, ctx)
    wrong = np.array(data["wrong"])
    votes = np.array(made["strength_mean"])
    flipped = np.array(made["chosen"]) != np.array(data["chosen"])
    strength = np.where(flipped, -votes, votes)  # as it was before flip negated it
    below = (strength[wrong][:, None] < strength[~wrong][None, :]).mean()
    assert below > 0.85  # the chance that a wrong label ranks below a right one
    assert (wrong ^ flipped).mean() < 0.5 * wrong.mean()
    assert one.plugins.taken_actions()["flip.refine_data"] == flipped.sum()
