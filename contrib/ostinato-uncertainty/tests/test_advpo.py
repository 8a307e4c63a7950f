"""AdvPO against an optimiser that looks for the worst head, and where data have no support."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ostinato_uncertainty.advpo import AdvPO
from scipy.optimize import minimize
from uncertainty_kit import Featureless, Linear, configured, context, samples, toy

import ostinato


def situation(seed=0, members=1, size=4, rows=6):
    """Data, samples, references and heads, random."""
    draw = np.random.default_rng(seed)
    features = {name: draw.normal(size=(rows, members, size)) for name in ("own", "reference")}
    data = {side: draw.normal(size=(20, members, size)) for side in ("chosen", "rejected")}
    return data, features, draw.normal(size=(members, size))


def rewarded(plugin, data, features, weight):
    """What a rollout of the samples is rewarded with."""
    given = {side: samples(rows) for side, rows in data.items()}
    ctx = context(given, samples(features["reference"]))
    found = plugin.wrap_reward(Linear(weight), ctx).score_samples(samples(features["own"]))
    rollout = SimpleRewards(samples(features["own"]), found.score, found.hidden)
    return plugin.reward_transform(rollout, ctx).score.double().numpy()


@dataclass
class SimpleRewards:
    """The parts of a RewardBatch that are read here."""

    samples: ostinato.Samples
    score: torch.Tensor
    hidden: torch.Tensor


def ellipsoid(data, ridge):
    """M of one member, summed response by response."""
    rows = np.concatenate([data["chosen"], data["rejected"]])[:, 0]
    return ridge * np.eye(rows.shape[1]) + sum(np.outer(e, e) for e in rows)


def worst_head(phi, metric, b, direction):
    """The head in the ellipsoid around phi that is least along a direction, by SLSQP."""
    inside = {"type": "ineq", "fun": lambda w: b**2 - (w - phi) @ metric @ (w - phi)}
    found = minimize(
        lambda w: w @ direction, phi, constraints=[inside], options={"ftol": 1e-14, "maxiter": 500}
    )
    return found.x


def test_the_whole_batch_is_scored_by_the_worst_head_for_it():
    data, features, weight = situation()
    plugin = configured(AdvPO, b=3.0, ridge=0.5)
    scores = rewarded(plugin, data, features, weight)
    own, reference = features["own"][:, 0], features["reference"][:, 0]
    gap = (own - reference).mean(0)
    head = worst_head(weight[0], ellipsoid(data, 0.5), 3.0, gap)
    assert scores == pytest.approx(own @ head, abs=1e-4)


def test_a_sample_may_have_a_worst_head_of_its_own():
    data, features, weight = situation(seed=1)
    plugin = configured(AdvPO, b=2.0, form="sample")
    scores = rewarded(plugin, data, features, weight)
    metric = ellipsoid(data, 1.0)
    for row, own in enumerate(features["own"][:, 0]):
        head = worst_head(weight[0], metric, 2.0, own)
        assert scores[row] == pytest.approx(own @ head, abs=1e-4)


def test_only_the_samples_own_form_is_a_reward():
    data, features, weight = situation(seed=6)
    given = {side: samples(rows) for side, rows in data.items()}
    reward, ctx = Linear(weight), context(given)
    assert configured(AdvPO).wrap_reward(reward, ctx) is reward
    made = configured(AdvPO, form="sample").wrap_reward(reward, ctx)
    whole = made.score_samples(samples(features["own"])).score
    alone = [made.score_samples(samples(features["own"][i : i + 1])).score for i in range(6)]
    assert torch.allclose(whole, torch.cat(alone))


def test_members_count_alike():
    data, features, weight = situation(seed=2, members=2)
    plugin = configured(AdvPO, b=1.0, form="sample")
    scores = rewarded(plugin, data, features, weight)
    wanted = []
    for own in features["own"]:
        each = []
        for m in range(2):
            one = {side: rows[:, m : m + 1] for side, rows in data.items()}
            each.append(own[m] @ np.linalg.inv(ellipsoid(one, 1.0)) @ own[m])
        plain = np.mean([own[m] @ weight[m] for m in range(2)])
        wanted.append(plain - np.mean(np.sqrt(each)))
    assert scores == pytest.approx(wanted, abs=1e-5)


def test_several_references_are_averaged():
    data, features, weight = situation(seed=3)
    both = np.stack([features["reference"], features["own"]], 1).reshape(-1, 1, 4)
    half = (features["reference"] + features["own"]) / 2
    several = rewarded(
        configured(AdvPO, references=2), data, features | {"reference": both}, weight
    )
    one = rewarded(configured(AdvPO), data, features | {"reference": half}, weight)
    assert several == pytest.approx(one, abs=1e-5)


def test_a_policy_that_leaves_the_data_loses_more_than_one_that_stays():
    """The paper's point: the proxy calls both batches equally good."""
    draw = np.random.default_rng(4)
    data = {s: draw.normal(size=(200, 1, 2)) * [1.0, 0.01] for s in ("chosen", "rejected")}
    start = draw.normal(size=(8, 1, 2)) * [1.0, 0.01]
    lost = []
    for drift in ([0.5, 0.0], [0.0, 0.5]):
        features = {"own": start + drift, "reference": start}
        scores = rewarded(configured(AdvPO), data, features, np.ones((1, 2)))
        lost.append((features["own"].sum((1, 2)) - scores).mean())
    known, unknown = lost
    assert 0 < known < unknown / 5


def test_the_same_batch_gets_the_same_scores():
    data, features, weight = situation(seed=5)
    plugin = configured(AdvPO)
    first, second = (rewarded(plugin, data, features, weight) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_faults_are_one_sentence(tmp_path):
    plugin = configured(AdvPO)
    given = {side: samples(torch.zeros(2, 1, 3)) for side in ("chosen", "rejected")}
    with pytest.raises(ostinato.UserError, match=r"'advpo': the reward has no features"):
        plugin.wrap_reward(Featureless(), context(given))
    with pytest.raises(ostinato.UserError, match=r"'advpo': the run trains no reward model"):
        plugin.wrap_reward(Featureless(), context())
    with pytest.raises(ostinato.UserError, match=r"advpo\.b.*greater than 0"):
        toy(tmp_path / "run", "{advpo: {b: 0}}")
