"""The chi-squared penalty: its mean, its gradient on a small discrete space, and its bound."""

import numpy as np
import pytest
import torch
from ostinato_shaping.chi_squared import ChiSquared, exceeding

import ostinato

REFERENCE = np.array([0.5, 0.3, 0.15, 0.05])
THETA = np.array([0.2, -0.4, 0.1, 0.6])


def policy(theta):
    chances = np.exp(theta)
    return chances / chances.sum()


def root_of(theta):
    """sqrt(chi^2(pi, pi_ref)), by its definition as a sum over responses."""
    return np.sqrt((policy(theta) ** 2 / REFERENCE).sum() - 1)


@pytest.fixture
def whole_space(small):
    """A rollout with each response as often as the policy gives it: expectations are exact."""
    chances = policy(THETA)
    counts = np.round(chances * 20000).astype(int)
    rows = np.repeat(np.arange(4), counts)
    half = np.log(chances)[rows] / 2, np.log(REFERENCE)[rows] / 2  # of two tokens each
    return rows, small.rewards(
        [1.0] * len(rows), np.stack([half[0]] * 2, 1).tolist(), np.stack([half[1]] * 2, 1).tolist()
    )


def test_the_mean_penalty_is_the_root_of_the_divergence(small, whole_space):
    _, rewards = whole_space
    ctx = small.context()
    after = small.configured(ChiSquared, coefficient=0.3).reward_transform(rewards, ctx)
    assert float((1 - after.score).mean()) == pytest.approx(0.3 * root_of(THETA), rel=1e-3)
    assert ctx.logged["chi_squared/root"] == pytest.approx(root_of(THETA), rel=1e-3)


def test_a_policy_gradient_on_it_is_the_gradient_of_the_root(small, whole_space):
    rows, rewards = whole_space
    plugin = small.configured(ChiSquared, coefficient=1.0)
    penalty = (1 - plugin.reward_transform(rewards, small.context()).score).double().numpy()
    # E[penalty * grad log pi], grad log pi of a softmax is onehot - pi
    onehot = np.eye(4)[rows]
    found = (penalty[:, None] * (onehot - policy(THETA))).mean(0)
    steps = 1e-5 * np.eye(4)
    wanted = [(root_of(THETA + s) - root_of(THETA - s)) / 2e-5 for s in steps]
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_nothing_is_taken_off_the_reference_itself(small):
    rewards = small.rewards([1.0, -1.0], [[-1.0, -2.0], [-0.5, -0.1]])
    after = small.configured(ChiSquared).reward_transform(rewards, small.context())
    assert after.score.tolist() == [1.0, -1.0]


def test_a_response_that_the_reference_would_never_give_costs_a_finite_price(small):
    rewards = small.rewards([1.0, 1.0], [[-1.0], [-1.0]], [[-1.0], [-400.0]])
    ctx = small.context()
    after = small.configured(ChiSquared).reward_transform(rewards, ctx)
    assert after.score[0] == 1.0
    assert -1e6 < after.score[1] < -1e2
    assert ctx.logged["chi_squared/beyond"] == 0.5
    x = torch.tensor([-3.0, 0.0, 9.9, 12.0], dtype=torch.float64)
    wanted = [np.exp(-3) - 1, 0, np.exp(9.9) - 1, np.exp(10) * 3 - 1]
    np.testing.assert_allclose(exceeding(x), wanted, rtol=1e-12)


def test_padding_does_not_count(small):
    rewards = small.rewards([1.0, 1.0], [[-1.0, -5.0], [-1.0, -3.0]], [[-1.0, -1.0], [-2.0, -1.0]])
    rewards.mask[:, 1] = False
    after = small.configured(ChiSquared).reward_transform(rewards, small.context())
    assert after.score[0] == 1.0
    assert after.score[1] < 1.0


def test_it_acts_in_a_run(toy):
    run = toy("{chi_squared: {coefficient: 0.5}}", "kl.coefficient=0", "rl.lr=0.01")
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert rows[0]["actions"]["chi_squared.reward_transform"] < 1e-4  # still the reference
    assert rows[1]["actions"]["chi_squared.reward_transform"] > 0.05
    assert rows[1]["chi_squared/root"] > 0.1


def test_a_wrong_setting_is_one_sentence(toy):
    with pytest.raises(ostinato.UserError, match=r"plugins\.chi_squared\.coefficient") as caught:
        toy("{chi_squared: {coefficient: 0}}")
    assert "\n" not in str(caught.value)
