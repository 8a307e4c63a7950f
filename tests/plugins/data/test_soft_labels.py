"""soft_labels: smoothed labels where the votes doubt or overstate (Secrets II, equation 5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from ostinato import UserError
from ostinato.engine.calibration import held_out_accuracy

STRENGTH = [0.5, -0.1, 2.0, -3.0, 0.0, 1.0, -0.2, 0.3]


def softened(kit, data, strength=STRENGTH, **settings):
    one = kit.make("strength", ("soft_labels", settings))
    data = data.add_column("strength_mean", strength)
    made = one.plugins.call("soft_labels", "refine_data", data=data, ctx=one.ctx)
    changed = np.array(made["label"]) != np.array(data["label"])
    assert one.ctx.logged.pop("soft_labels/share") == pytest.approx(changed.mean())
    others = [c for c in data.column_names if c != "label"]
    assert made.select_columns(others).to_dict() == data.select_columns(others).to_dict()
    return made


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_negative_strength_is_smoothed(kit, comparisons, alpha):
    made = softened(kit, comparisons(8), alpha=alpha)
    expected = [1 - alpha if s < 0 else 1.0 for s in STRENGTH]
    assert made["label"][:] == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_strongest_share_is_smoothed(kit, comparisons, share):
    made = softened(kit, comparisons(8), on="strongest", share=share)
    top = sorted(STRENGTH)[-int(8 * share)]
    assert made["label"][:] == pytest.approx([0.9 if s >= top else 1.0 for s in STRENGTH])


def test_the_strongest_are_a_tenth_by_default(kit, comparisons):
    strength = np.random.default_rng(0).normal(size=40).tolist()
    made = softened(kit, comparisons(40), strength, on="strongest")
    soft = np.flatnonzero(np.array(made["label"]) < 1)
    assert sorted(soft) == sorted(np.argsort(strength)[-4:])


def test_a_label_that_is_soft_already_moves_towards_one_half(kit, comparisons):
    """Smoothing is a label that is turned round with chance alpha: p (1 - a) + (1 - p) a."""
    data = comparisons(8)
    table = data.to_dict() | {"label": [0.52, 0.6, 0.7, 0.8, 0.9, 1.0, 0.75, 0.55]}
    data = data.from_dict(table, features=data.features)
    made = softened(kit, data, [-1.0, -1, -1, -1, 1, 1, -1, 1], alpha=0.2)
    expected = [0.512, 0.56, 0.62, 0.68, 0.9, 1.0, 0.65, 0.55]
    assert made["label"][:] == pytest.approx(expected)


def test_the_loss_is_equation_5(kit, comparisons):
    """-[(1 - a) log p + a log(1 - p)] in float64, for the smoothed comparisons alone."""
    one = kit.make(updates=1, batch=8)
    made = softened(kit, comparisons(8), alpha=0.3)
    start = one.initial()
    one.trainer()(start, made)
    batch = one.batch(made, start)
    score = start(batch.input_ids, batch.mask).score[0].detach().double().numpy()
    p = 1 / (1 + np.exp(-(score[batch.pairs[:, 0]] - score[batch.pairs[:, 1]])))
    a = np.where(np.array(STRENGTH) < 0, 0.3, 0.0)
    expected = -((1 - a) * np.log(p) + a * np.log(1 - p)).mean()
    assert one.rows[0]["terms"]["bradley_terry"] == pytest.approx(expected, rel=1e-5)


def test_effect_under_noise(kit, comparisons):
    """Secrets of RLHF II, 2.4.3: soft labels lessen the harm of noise that was found.

    A quarter of the labels is wrong, and the votes know which: with soft labels there the held-out
    accuracy is higher than with hard ones, and the log-likelihood too, which punishes confidence.
    """
    accuracy, nll = np.zeros((2, 2)), np.zeros((2, 2))
    for seed in range(2):
        data, held = comparisons(160, seed=seed, noise=0.25), comparisons(96, seed=seed + 50)
        soft = softened(kit, data, [-1.0 if w else 1.0 for w in data["wrong"]], alpha=0.4)
        for place, train in enumerate((data, soft)):
            one = kit.make(batch=32, updates=60, lr=1e-2)
            fit = one.trainer()
            model = fit(one.initial(seed), train)
            accuracy[place, seed] = held_out_accuracy(model, held, fit.policy_tokenizer)["accuracy"]
            nll[place, seed] = softplus(-differences(one, model, held)).mean()
    assert (nll[1] < nll[0] - 0.05).all(), nll
    assert accuracy[1].mean() > accuracy[0].mean() + 0.02, accuracy


def test_effect_on_the_strongest(kit, comparisons):
    """Secrets II, figure 6: with soft labels the loss of the strongest cannot fall to 0."""
    data, sizes = comparisons(16), []
    for train in (data, softened(kit, data, [1.0] * 16, on="strongest", share=1.0)):
        one = kit.make(batch=16, updates=80, lr=1e-2)
        model = one.trainer()(one.initial(), train)
        sizes.append(differences(one, model, data).mean())
    assert sizes[0] > 1.5 * np.log(0.9 / 0.1)  # hard labels grow without bound
    assert sizes[1] == pytest.approx(np.log(0.9 / 0.1), rel=0.3)  # soft ones have an optimum


def differences(one, model, data):
    """r_chosen - r_rejected of each comparison."""
    batch = one.batch(data, model)
    with torch.no_grad():
        score = model(batch.input_ids, batch.mask).score[0][batch.pairs]
    return score[:, 0] - score[:, 1]


@pytest.mark.parametrize("settings", [{"alpha": 0.6}, {"on": "weakest"}, {"share": 0.0}])
def test_settings_out_of_range_are_refused(kit, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        kit.make("strength", ("soft_labels", settings))
