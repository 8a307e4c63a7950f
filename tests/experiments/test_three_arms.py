"""UA, figure 2: PPO without and with both forms of sharpe on three arms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

import three_arms as experiment

REWARD, VARIANCE = np.array([3.0, 2.0, 2.5]), np.array([9.0, 0.1, 0.2])


def test_closed_forms_of_the_policies():
    plain = experiment.closed_form(REWARD, VARIANCE, "plain", 0.5)
    np.testing.assert_allclose(plain, np.exp(2 * REWARD) / np.exp(2 * REWARD).sum(), rtol=1e-6)
    fixed = experiment.closed_form(REWARD, VARIANCE, "fixed point", 0.5)
    level = REWARD - 0.5 * VARIANCE * np.log(3 * fixed)
    np.testing.assert_allclose(level, level[0], rtol=1e-6)
    theorem = experiment.closed_form(REWARD, VARIANCE, "theorem", 5.0)
    tilt = np.exp(REWARD / (5 * VARIANCE))
    np.testing.assert_allclose(theorem, tilt / tilt.sum())
    # the offset of the rewards moves theorem 3.6, and nothing else
    for policy in ("fixed point", "optimum"):
        shifted = experiment.closed_form(REWARD - 3, VARIANCE, policy, 0.5)
        kept = experiment.closed_form(REWARD, VARIANCE, policy, 0.5)
        np.testing.assert_allclose(shifted, kept, rtol=1e-6)
    moved = experiment.closed_form(REWARD - 3, VARIANCE, "theorem", 5.0)
    assert np.abs(moved - theorem).max() > 0.1


@pytest.mark.parametrize("beta", [0.3, 1.5, 40.0])
def test_the_optimum_against_a_general_solver(beta):
    """max E[r] - beta E[sigma^2 log(pi / pi_0)] over the simplex, nothing derived by hand."""

    def loss(pi):
        return -pi @ (REWARD - beta * VARIANCE * np.log(3 * pi)) / (1 + beta)

    total = {"type": "eq", "fun": lambda pi: pi.sum() - 1}
    settings = {"bounds": [(1e-9, 1)] * 3, "constraints": [total], "method": "SLSQP"}
    solved = minimize(loss, np.ones(3) / 3, options={"ftol": 1e-15, "maxiter": 1000}, **settings)
    found = experiment.closed_form(REWARD, VARIANCE, "optimum", beta)
    np.testing.assert_allclose(found, solved.x, atol=1e-4)
    assert loss(found) < loss(experiment.closed_form(REWARD, VARIANCE, "fixed point", beta)) - 1e-3


@pytest.mark.parametrize("policy", ["plain", *experiment.COMPUTED])
def test_policies_are_matched_in_kl_at_the_largest_beta_that_reaches_it(policy):
    variance = np.array([2.0, 0.1, 0.2])
    beta, pi = experiment.at_kl(REWARD, variance, policy)
    assert experiment.kl_of(pi) == pytest.approx(experiment.KL, abs=1e-6)
    wide = [experiment.closed_form(REWARD, variance, policy, beta * f) for f in (1.05, 1.5, 4, 100)]
    assert all(experiment.kl_of(other) < experiment.KL for other in wide)


def test_ppo_reaches_what_is_computed_and_sharpe_resists_the_overestimated_arm():
    of = {row["policy"]: row for row in experiment.repetition(0, rollouts=200)}
    plain, reward, objective = (of[policy] for policy in experiment.TRAINED)
    assert plain["head_1"] > max(plain["head_2"], plain["head_3"])
    assert max(plain["distance"], reward["distance"], objective["distance"]) < 0.05
    assert plain["arm_1"] > 0.5 > reward["arm_1"] > 0.3 > 0.2 > objective["arm_1"]
    assert objective["true"] > reward["true"] + 0.2 > plain["true"] + 0.4
    fixed, optimum = of["fixed point"], of["optimum"]
    for arm in ("arm_1", "arm_2", "arm_3"):  # each form reaches its own, not the other's
        assert reward[arm] == pytest.approx(fixed[arm], abs=0.05)
        assert objective[arm] == pytest.approx(optimum[arm], abs=0.05)
    assert fixed["arm_1"] > optimum["arm_1"] + 0.2
    assert of["theorem"]["arm_1"] < 1 / 3 < of["theorem"]["arm_3"]


def test_over_all_draws_the_objective_turns_from_the_uncertain_arm_even_where_it_is_best():
    worst = experiment.every_draw(6)
    best = experiment.every_draw(6, experiment.TRUE[::-1])
    uniform = experiment.TRUE.mean()
    assert worst["optimum"].mean() > worst["fixed point"].mean() > uniform
    assert best["optimum"].mean() < best["fixed point"].mean()
