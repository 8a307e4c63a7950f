"""UA, section 5: one policy a reward head, plain and with both forms of sharpe."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

import ten_policies as experiment

# two heads, one prompt, two responses: variances 2 and 1/2
HEADS = np.array([[[1.0, 0.0]], [[-1.0, 1.0]]])


def test_the_heads_are_the_truth_with_errors_of_their_own_and_shared_ones():
    """Over 400 draws: the std of an error is sigma, the correlation of two heads' is the share."""
    for world, (scatter, share) in experiment.WORLDS.items():
        errors = []
        for seed in range(400):
            true, heads = experiment.problem(world, np.random.default_rng(seed))
            np.testing.assert_allclose(true.mean(1), 0, atol=1e-12)
            errors.append(heads - true)
        found = np.array(errors).transpose(1, 0, 2, 3).reshape(experiment.HEADS, -1)
        assert (found**2).mean() == pytest.approx(experiment.NOISE**2, rel=0.02)
        pairs = np.corrcoef(found)[~np.eye(experiment.HEADS, dtype=bool)]
        assert pairs.mean() == pytest.approx(share, abs=0.03)
        sigma = np.array(errors).std(1, ddof=1).flatten() / np.sqrt(1 - share)
        noise = 0.25  # of the log of a std over ten heads
        assert np.log(sigma).std() == pytest.approx(np.hypot(scatter, noise), rel=0.2)


def test_closed_forms_by_hand():
    plain = experiment.closed_form(HEADS, "plain", 0.5)
    np.testing.assert_allclose(plain[0, 0, 0], 1 / (1 + np.exp(-2)), rtol=1e-9)
    np.testing.assert_allclose(plain[1, 0, 0], 1 / (1 + np.exp(4)), rtol=1e-9)
    fixed = experiment.closed_form(HEADS, "reward", 0.5)
    level = HEADS - 0.5 * np.array([2.0, 0.5]) * np.log(2 * fixed)
    np.testing.assert_allclose(level[..., 0], level[..., 1], rtol=1e-9)
    best = experiment.closed_form(HEADS, "objective", 0.5)
    for head in (0, 1):

        def loss(p, reward=HEADS[head, 0]):
            pi = np.array([p[0], 1 - p[0]])
            return -pi @ (reward - 0.5 * np.array([2.0, 0.5]) * np.log(2 * pi))

        solved = minimize(loss, [0.5], bounds=[(1e-6, 1 - 1e-6)], options={"ftol": 1e-14})
        assert best[head, 0, 0] == pytest.approx(solved.x[0], abs=1e-5)
    assert (best[..., 0] < fixed[..., 0]).all()


def test_kl_by_hand():
    pi = np.array([[[0.75, 0.25], [1.0, 0.0]]])
    by_hand = (0.75 * np.log(1.5) + 0.25 * np.log(0.5) + np.log(2)) / 2
    assert experiment.kl_of(pi).tolist() == pytest.approx([by_hand])


@pytest.mark.parametrize("policy", experiment.POLICIES)
def test_one_beta_for_ten_policies_whose_mean_kl_is_the_one_asked_for(policy):
    heads = experiment.problem("own", np.random.default_rng(0))[1]
    beta = experiment.at_kl(heads, policy)
    reached = experiment.closed_form(heads, policy, beta)
    assert experiment.kl_of(reached).mean() == pytest.approx(experiment.KL, abs=1e-5)
    wider = experiment.closed_form(heads, policy, 1.2 * beta)
    assert experiment.kl_of(wider).mean() < experiment.KL


@pytest.mark.parametrize("policy", experiment.POLICIES)
def test_each_policy_learns_from_its_own_head(policy):
    wanted = experiment.closed_form(HEADS, policy, 0.8)
    found = experiment.trained(HEADS, policy, 0.8, 0, rollouts=60, each=64)
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert found[0, 0, 0] > found[1, 0, 0] + 0.2


def test_effect_the_weighted_penalty_lessens_the_scatter_and_the_harm(monkeypatch):
    monkeypatch.setattr(experiment, "WORLDS", {"own": experiment.WORLDS["own"]})
    rows = experiment.repetition(0, rollouts=100, each=16)
    of = {p: [r for r in rows if r["policy"] == p] for p in experiment.POLICIES}
    mean = {p: {k: np.mean([r[k] for r in of[p]]) for k in ("true", "below", "kl")} for p in of}
    assert [len(found) for found in of.values()] == [experiment.HEADS] * 3
    assert mean["reward"]["true"] > mean["plain"]["true"] + 0.2
    assert mean["reward"]["below"] < mean["plain"]["below"]
    spread = {p: np.std([r["true"] for r in of[p]]) for p in of}
    assert spread["objective"] < 0.6 * spread["plain"]
    assert all(abs(r["true"] - r["computed"]) < 0.06 for r in rows)
