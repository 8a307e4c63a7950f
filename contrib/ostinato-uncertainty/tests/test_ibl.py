"""IBL against SciPy's distances and chi-squared, and on responses unlike any before."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_uncertainty.ibl import IBL
from scipy.spatial.distance import mahalanobis
from scipy.stats import chi2
from uncertainty_kit import Featureless, Linear, configured, context, samples, toy

import ostinato


def situation(members=1, size=3, seed=0):
    """Features of SFT responses in the two parts of a ruler, and of other responses."""
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(size, size))
    parts = [draw.normal(size=(rows, members, size)) @ mix for rows in (30, 20)]
    return parts, draw.normal(size=(7, members, size)) * 3


def wrapped(plugin, parts, size, members=1):
    evaluation, rl = (samples(part) for part in parts)
    ruler = SimpleNamespace(evaluation=evaluation, rl=rl)
    return plugin.wrap_reward(Linear(np.ones((members, size))), context(ruler=ruler))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("members", [1, 2])
def test_the_distance_is_mahalanobis_from_sft_responses(power, members):
    parts, new = situation(members)
    plugin = configured(IBL, gamma=0.3, power=power, ridge=1e-9)
    found = wrapped(plugin, parts, 3, members).score_samples(samples(new)).score
    every = np.concatenate(parts)
    for row, z in enumerate(new):
        far = [
            mahalanobis(z[m], every[:, m].mean(0), np.linalg.inv(np.cov(every[:, m].T))) ** power
            for m in range(members)
        ]
        plain = z.sum(-1).mean()
        assert found[row].item() == pytest.approx(plain - 0.3 * np.mean(far), abs=1e-4)


def test_outliers_are_counted_by_chi_squared():
    parts, new = situation()
    plugin = configured(IBL, outlier=0.05, ridge=1e-9)
    wrapped(plugin, parts, 3)
    found = plugin.evaluate(SimpleNamespace(evaluation=SimpleNamespace(samples=samples(new))))
    every = np.concatenate(parts)[:, 0]
    inverse = np.linalg.inv(np.cov(every.T))
    far = np.array([mahalanobis(z[0], every.mean(0), inverse) for z in new])
    assert found["distance"] == pytest.approx(far.mean(), abs=1e-4)
    assert found["outliers"] == pytest.approx((chi2.sf(far**2, 3) < 0.05).mean())


def test_a_step_along_what_varies_costs_less_than_one_along_what_does_not():
    draw = np.random.default_rng(1)
    parts = [draw.normal(size=(40, 1, 2)) * [3.0, 0.1] for _ in range(2)]
    reward = wrapped(configured(IBL), parts, 2)
    usual, odd = reward.score_samples(samples([[[1.0, 0.0]], [[0.0, 1.0]]])).score.tolist()
    assert odd < usual  # the reward inside says the same of both


def test_a_code_that_collapsed_in_a_direction_is_no_fault():
    parts, _ = situation()
    for part in parts:
        part[..., 2] = 0.0
    found = wrapped(configured(IBL), parts, 3).score_samples(samples(parts[0]))
    assert bool(found.score.isfinite().all())


def test_without_rl_responses_the_evaluation_part_is_the_ruler():
    parts, new = situation()
    reward = wrapped(configured(IBL), [parts[0], parts[1][:0]], 3)
    assert bool(reward.score_samples(samples(new)).score.isfinite().all())


def test_faults_are_one_sentence(tmp_path):
    part = samples(torch.zeros(2, 1, 3))
    given = context(ruler=SimpleNamespace(evaluation=part, rl=part))
    with pytest.raises(ostinato.UserError, match="'ibl': the reward has no features"):
        configured(IBL).wrap_reward(Featureless(), given)
    with pytest.raises(ostinato.UserError, match=r"ibl\.power.*1 or 2"):
        toy(tmp_path / "run", "{ibl: {power: 3}}")
