"""The unit of a reward: three ways to choose it, each against NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from scipy.optimize import minimize_scalar

from ostinato.engine import calibration
from ostinato.engine.calibration import calibrate, over_training


def session(one, ruler, unit):
    """What calibrating asks of a run."""
    section = one.ctx.config.reward_model.model_copy(update={"unit": unit})
    config = one.ctx.config.model_copy(update={"reward_model": section})
    return SimpleNamespace(ruler=ruler, config=config, tokenizer=one.trainer().policy_tokenizer)


def heads_score(model, samples):
    """Raw means over heads, float64."""
    return model.logits(samples).double().numpy().mean(1)


@pytest.fixture
def made(kit, comparisons):
    """(kit, model of two heads, ruler, training data, held-out data)."""
    one = kit.make()
    return one, one.initial(outputs=2), one.ruler(comparisons(10)), comparisons(14, seed=3), one


def test_sft_std_is_the_spread_on_the_ruler(kit, comparisons, made):
    one, model, ruler, data, _ = made
    calibrate(session(one, ruler, "sft_std"), model, data, None)
    raw = np.concatenate([heads_score(model, s) for s in (ruler.evaluation, ruler.rl)])
    assert model.calibration.unit == pytest.approx(raw.std(ddof=1), rel=1e-5)


def test_training_std_is_the_spread_of_training_responses_with_the_ruler_s_zero(made):
    one, model, ruler, data, _ = made
    calibrate(session(one, ruler, "training_std"), model, data, None)
    own = one.ruler(data)
    raw = np.concatenate([heads_score(model, s) for s in (own.evaluation, own.rl)])
    assert model.calibration.unit == pytest.approx(raw.std(ddof=1), rel=1e-5)
    there = np.concatenate([heads_score(model, s) for s in (ruler.evaluation, ruler.rl)])
    assert np.mean(model.calibration.zeros) == pytest.approx(there.mean(), abs=1e-6)
    score = over_training(model, data, own.rl.tokenizer, "cpu").double().numpy()
    np.testing.assert_allclose(score, (raw - there.mean()) / raw.std(ddof=1), atol=1e-4)


def test_nats_make_held_out_preferences_calibrated(made, comparisons):
    one, model, ruler, data, _ = made
    held = comparisons(20, seed=9).to_dict()
    held["label"] = [1.0, 0.8, 0.6, 0.5] * 5
    held = Dataset.from_dict(held)
    calibrate(session(one, ruler, "nats"), model, data, held)
    own = one.ruler(held)
    difference = heads_score(model, own.evaluation) - heads_score(model, own.rl)
    target = (20 * np.array(held["label"]) + 1) / 22

    def likelihood(t):
        z = difference / t
        return (target * np.logaddexp(0, -z) + (1 - target) * np.logaddexp(0, z)).sum()

    best = minimize_scalar(likelihood, bounds=(1e-3, 50), method="bounded", options={"xatol": 1e-9})
    most = calibration.SOFTEST * np.concatenate(
        [heads_score(model, s) for s in (ruler.evaluation, ruler.rl)]
    ).std(ddof=1)
    assert model.calibration.unit == pytest.approx(min(best.x, most), rel=1e-3)


def test_only_an_even_spread_of_much_data_is_scored(made, monkeypatch):
    one, model, _, data, _ = made
    monkeypatch.setattr(calibration, "TRAINING_RESPONSES", 8)
    tokenizer = one.trainer().policy_tokenizer
    found = over_training(model, data, tokenizer, "cpu")
    part = data.select([0, 3, 7, 10])
    own = one.ruler(part)
    wanted = np.concatenate([heads_score(model, s) for s in (own.evaluation, own.rl)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
