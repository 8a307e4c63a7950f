"""UA, figure 2: PPO with and without sharpe on three arms."""

from __future__ import annotations

import numpy as np
import pytest

import three_arms as experiment


def test_closed_forms_of_the_three_policies():
    reward, variance = np.array([3.0, 2.0, 2.5]), np.array([9.0, 0.1, 0.2])
    plain = experiment.closed_form(reward, np.ones(3), "plain", 0.5)
    np.testing.assert_allclose(plain, np.exp(2 * reward) / np.exp(2 * reward).sum(), rtol=1e-6)
    aware = experiment.closed_form(reward, variance, "aware", 0.5)
    level = reward - 0.5 * variance * np.log(3 * aware)
    np.testing.assert_allclose(level, level[0], rtol=1e-6)
    theorem = experiment.closed_form(reward, variance, "theorem", 5.0)
    tilt = np.exp(reward / (5 * variance))
    np.testing.assert_allclose(theorem, tilt / tilt.sum())
    # the offset of the rewards moves theorem 3.6, and nothing else
    shifted = experiment.closed_form(reward - 3, variance, "aware", 0.5)
    np.testing.assert_allclose(shifted, aware, rtol=1e-6)
    assert (
        np.abs(experiment.closed_form(reward - 3, variance, "theorem", 5.0) - theorem).max() > 0.1
    )


@pytest.mark.parametrize("policy", ["plain", "aware", "theorem"])
def test_policies_are_matched_in_kl(policy):
    pi = experiment.at_kl(np.array([3.0, 2.0, 2.5]), np.array([2.0, 0.1, 0.2]), policy)[1]
    assert experiment.kl_of(pi) == pytest.approx(experiment.KL, abs=1e-6)


def test_ppo_reaches_the_closed_forms_and_sharpe_resists_the_overestimated_arm():
    plain, aware, theorem, _ = experiment.repetition(0, rollouts=120)
    assert plain["head_1"] > max(plain["head_2"], plain["head_3"])
    assert max(plain["distance"], aware["distance"]) < 0.05
    assert plain["arm_1"] > 0.5 > aware["arm_1"]
    assert aware["true"] > plain["true"] + 0.2
    assert theorem["arm_1"] < 1 / 3 < theorem["arm_3"]
