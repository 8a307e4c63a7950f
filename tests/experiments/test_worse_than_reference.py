"""UA, theorem 3.3: the chance to be worse than the reference, counted and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

import worse_than_reference as experiment


def test_closed_forms_against_hand_numbers():
    reward, variance = np.array([1.0, 2.0]), np.array([4.0, 1.0])
    closed = experiment.closed_forms(reward, variance)
    assert closed["plain"] == pytest.approx(norm.cdf(-5 / np.sqrt(8)))
    assert closed["aware"] == pytest.approx(norm.cdf(-np.sqrt(4.25)))


def test_steps_solve_the_two_constrained_problems():
    """Definitions 3.1 and 3.2 by a general solver."""
    draw = np.random.default_rng(0)
    reward, variance, estimate = draw.normal(size=4), draw.uniform(0.5, 3, 4), draw.normal(size=4)
    found = experiment.gains(estimate[None], reward, variance)
    for policy, weight, size in (
        ("plain", np.ones(4), 1.0),
        ("aware", variance, float(variance.min())),
    ):
        bound = {"type": "ineq", "fun": lambda x, w=weight, s=size: s - x**2 @ w}
        solved = minimize(lambda x: -estimate @ x, np.zeros(4), constraints=[bound], tol=1e-12)
        assert found[policy][0] == pytest.approx(reward @ solved.x, abs=1e-4)


def test_policies_of_one_kl_are_distributions_that_equalise_the_penalised_reward():
    draw = np.random.default_rng(1)
    estimate, variance = draw.normal(size=(3, 6)), draw.uniform(0.5, 2, 6)
    pi = experiment.at_kl(estimate, variance, 0.2)
    np.testing.assert_allclose(pi.sum(1), 1)
    np.testing.assert_allclose((pi * np.log(6 * pi)).sum(1), 0.2, atol=1e-4)
    # r - beta sigma^2 log(pi / pi_0) = nu: two unknowns a draw, so residuals of a linear fit
    for r, p in zip(estimate, pi, strict=True):
        columns = np.stack([variance * np.log(6 * p), np.ones(6)], axis=1)
        _, residual, *_ = np.linalg.lstsq(columns, r, rcond=None)
        assert residual[0] < 1e-8


def test_counted_chances_meet_the_closed_forms_and_aware_is_safer():
    rows = [row for s in range(2) for row in experiment.repetition(s, 200, draws=2000, kl_draws=0)]
    assert max(abs(row["z"]) for row in rows) < 4  # binomial errors
    for seed in range(2):
        of = {(r["setting"], r["policy"]): r for r in rows if r["seed"] == seed}
        assert of["equal", "plain"]["counted"] == of["equal", "aware"]["counted"]
        assert of["strong", "aware"]["counted"] < of["strong", "plain"]["counted"] - 0.05
        assert of["strong", "aware"]["gain_std"] < of["strong", "plain"]["gain_std"]
        assert all(0.05 < r["closed"] < 0.4 for r in of.values())
