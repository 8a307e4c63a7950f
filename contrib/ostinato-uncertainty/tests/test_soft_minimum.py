"""The soft minimum against its definition, its limits, and an ensemble that disagrees."""

import numpy as np
import pytest
import torch
from ostinato_uncertainty.soft_minimum import SoftMinimum
from uncertainty_kit import Linear, actions, configured, samples, toy

import ostinato


def reduced(scores, **settings):
    return configured(SoftMinimum, **settings).reduce(torch.tensor(scores, dtype=torch.float64))


def test_it_is_the_worst_mean_that_the_kl_can_buy():
    """Equation 6: inf over Q of E_Q r + beta KL(Q || uniform), by search over the simplex."""
    scores, beta = np.array([0.3, -1.1, 0.8]), 0.7
    grid = np.linspace(1e-9, 1, 801)
    p, q = (axis.ravel() for axis in np.meshgrid(grid, grid))
    p, q = p[p + q < 1], q[p + q < 1]
    weights = np.stack([p, q, 1 - p - q])
    costs = scores @ weights + beta * (weights * np.log(3 * weights)).sum(0)
    found = reduced([scores.tolist()], beta=beta).item()
    assert found == pytest.approx(costs.min(), abs=1e-4)
    assert found <= costs.min() + 1e-9


def test_its_limits_are_the_minimum_and_the_mean():
    scores = [[1.0, 3.0, -2.0], [0.5, 0.5, 0.5]]
    assert reduced(scores, beta=1e-4).tolist() == pytest.approx([-2.0, 0.5], abs=1e-3)
    assert reduced(scores, beta=1e5).tolist() == pytest.approx([2 / 3, 0.5], abs=1e-3)


def test_the_gaussian_form_takes_half_the_variance_over_beta_off():
    found = reduced([[1.0, 2.0, 6.0]], beta=2.0, estimator="gaussian")
    assert found.item() == pytest.approx(3.0 - np.var([1, 2, 6], ddof=1) / 4)
    assert reduced([[1.5]], beta=2.0, estimator="gaussian").item() == 1.5  # one model alone


def test_it_never_undercuts_the_worst_model_as_the_gaussian_form_does():
    """Figure 1 of the paper: eight models for a response, two against it."""
    suspect = [[2.0] * 8 + [-1.0] * 2]
    exact, gaussian = (
        reduced(suspect, beta=0.2, estimator=name).item() for name in ("exact", "gaussian")
    )
    assert gaussian < -1.0 <= exact < np.mean(suspect)


def test_models_and_heads():
    features = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0))
    models = [Linear([[1.0, 0.0]]), Linear([[0.0, 1.0]])]
    reward = configured(SoftMinimum, beta=1.0).combine_rm(models)
    each = features[:, 0].double()
    wanted = -torch.log(torch.exp(-each).mean(1))
    assert reward.score_samples(samples(features)).score.tolist() == pytest.approx(wanted.tolist())


def test_it_acts_in_a_run(tmp_path):
    two = ("reward_model.members=2", "rl.rollouts=1")
    run = toy(tmp_path / "run", "{soft_minimum: {over: heads}}", *two)
    assert actions(run, "soft_minimum.combine_rm")[0] > 0


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ostinato.UserError, match=r"soft_minimum\.beta.*greater than 0"):
        toy(tmp_path / "run", "{soft_minimum: {beta: 0}}")
    with pytest.raises(ostinato.UserError, match=r"'soft_minimum' needs at least 2"):
        toy(tmp_path / "run", "{soft_minimum: {over: heads}}")
