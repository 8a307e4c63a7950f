"""flip: labels of low preference strength are turned round (Secrets of RLHF II, 2.4.1)."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato import UserError

STRENGTH = [0.5, -0.1, 2.0, -3.0, 0.0, 1.0, -0.2, 0.3]


def flipped(kit, data, strength=STRENGTH, **settings):
    """(the data after flip, which rows were turned round)."""
    one = kit.make("strength", ("flip", settings))
    data = data.add_column("strength_mean", strength)
    made = one.plugins.call("flip", "refine_data", data=data, ctx=one.ctx)
    assert one.ctx.logged == {"flip/share": pytest.approx(_moved(made, data).mean())}
    one.ctx.logged.clear()
    return made, _moved(made, data)


def _moved(made, data):
    return np.array(made["chosen"]) != np.array(data["chosen"])


@pytest.mark.parametrize("threshold", [0.0, -1.0, 0.4])
def test_flips_what_is_below_the_threshold(kit, comparisons, threshold):
    _, rows = flipped(kit, comparisons(8), threshold=threshold)
    assert rows.tolist() == [s < threshold for s in STRENGTH]


@pytest.mark.parametrize("lowest", [0.25, 0.5])
def test_flips_the_lowest_share(kit, comparisons, lowest):
    _, rows = flipped(kit, comparisons(8), lowest=lowest)
    order = np.argsort(STRENGTH, kind="stable")[: int(8 * lowest)]
    assert sorted(np.flatnonzero(rows)) == sorted(order)


def test_every_column_of_the_sides_moves_and_strength_is_negated(kit, comparisons):
    data = comparisons(8)
    made, rows = flipped(kit, data)
    for row, before, flip, strength in zip(made, data, rows, STRENGTH, strict=True):
        assert row["strength_mean"] == (-strength if flip else strength)
        for column in (c for c in data.column_names if c.startswith("chosen")):
            other = column.replace("chosen", "rejected")
            expected = (before[other], before[column]) if flip else (before[column], before[other])
            assert (row[column], row[other]) == expected
        for column in ("label", "margin", "weight", "prompt", "group"):
            assert row[column] == before[column]


@pytest.mark.parametrize("seed", range(2))
def test_effect_flipping_restores_accuracy(kit, comparisons, seed):
    """Secrets of RLHF II, figures 4 and 5: labels that are turned back restore the reward model.

    With two fifths of the labels wrong and the true strength known, the model trained on flipped
    data beats the one trained on the data as it is.
    """
    from ostinato.engine.calibration import held_out_accuracy

    data = comparisons(160, seed=seed, noise=0.4)
    strength = [-1.0 if wrong else 1.0 for wrong in data["wrong"]]
    clean, rows = flipped(kit, data, strength)
    assert rows.tolist() == data["wrong"][:]
    held, accuracy = comparisons(96, seed=seed + 50), []
    for train in (data, clean):
        one = kit.make(batch=32, updates=60, lr=1e-2)
        fit = one.trainer()
        model = fit(one.initial(seed), train)
        accuracy.append(held_out_accuracy(model, held, fit.policy_tokenizer)["accuracy"])
    assert accuracy[1] > accuracy[0] + 0.03
    assert accuracy[1] > 0.9


def test_settings_out_of_range_are_refused(kit):
    with pytest.raises(UserError, match="lowest"):
        kit.make("strength", ("flip", {"lowest": 1.5}))
