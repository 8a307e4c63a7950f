"""ReMax: returns less the greedy response's reward."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_group.remax import ReMax

import ostinato


@pytest.fixture
def greedy(ctx):
    """(scores, finished) -> the context, whose greedy responses have these."""

    def make(scores, finished):
        drawn = SimpleNamespace(finished=torch.tensor(finished))
        calls = []

        def sample(policy, prompts, purpose, **settings):
            calls.append((policy, prompts, settings))
            return drawn

        ctx.sample, ctx.calls, ctx.autocast, ctx.policy = sample, calls, nullcontext, "policy"
        found = ostinato.Scores(torch.tensor(scores, dtype=torch.float64))
        ctx.reward = SimpleNamespace(score_samples=lambda samples: found)
        return ctx

    return make


def test_what_is_to_come_less_the_greedy_reward(plugin, rollout, greedy):
    """By hand: a KL of 0.1 at each token, scores 2 and -1, greedy responses 0.5 and 1."""
    rewards = torch.tensor([[-0.1, -0.1, 1.9], [-1.1, 9.0, 9.0]], dtype=torch.float64)
    batch = rollout([[-1.0] * 3, [-1.0]], [2.0, -1.0], [0, 1], rewards=rewards)
    ctx = greedy([0.5, 1.0], [True, True])
    found, returns = plugin(ReMax).advantages(batch, ctx)
    assert found[0].tolist() == pytest.approx([1.2, 1.3, 1.4])
    assert found[1].tolist() == pytest.approx([-2.1, 0, 0])  # nothing on padding
    assert returns.count_nonzero() == 0
    assert ctx.calls == [("policy", batch.samples, {"temperature": 0})]
    assert ctx.logged == {"remax/greedy_reward": 0.75}


def test_the_greedy_reward_obeys_the_rules_of_the_others(plugin, rollout, greedy):
    batch = rollout([[-1.0]] * 3, [0.0] * 3, [0, 1, 2])
    ctx = greedy([7.0, -7.0, 1.0], [True, True, False])
    ctx.config.rl.clip_score = 5.0
    assert plugin(ReMax).advantages(batch, ctx)[0][:, 0].tolist() == [-5.0, 5.0, 0.0]
    ctx.config.rl.unfinished = SimpleNamespace(mode="replace", penalty=-3.0)
    assert plugin(ReMax).advantages(batch, ctx)[0][:, 0].tolist() == [-5.0, 5.0, 3.0]


def test_the_gradient_is_that_of_advantage_times_log_probability(plugin, rollout, outputs, greedy):
    batch = rollout([[-1.0, -2.0], [-0.5]], [2.0, -1.0], [0, 1])
    ctx = greedy([0.5, 1.0], [True, True])
    batch.advantages = plugin(ReMax).advantages(batch, ctx)[0]
    new = outputs([[-1.0, -2.0], [-0.5]])
    plugin(ReMax).loss(batch, new, ctx)["policy"].backward()
    assert new.logprobs.grad.mul(-3).tolist() == [[1.5, 1.5], [-2.0, 0.0]]  # mean over 3 tokens


def test_a_prompt_s_own_level_leaves_the_gradient_alone_and_its_variance(plugin, rollout, greedy):
    """The variance of the gradient of a softmax over three responses, all of them enumerated."""
    logits = np.array([1.0, 0.0, -0.5])
    chance = np.exp(logits) / np.exp(logits).sum()

    def moments(level, baseline):
        reward = np.array([0.5, 1.0, -1.0]) + level  # the likeliest response is the first
        batch = rollout([[float(np.log(p))] for p in chance], reward.tolist(), [0, 1, 2])
        a = batch.score.numpy()
        if baseline:
            ctx = greedy([float(reward[0])] * 3, [True] * 3)
            a = plugin(ReMax).advantages(batch, ctx)[0][:, 0].numpy()
        each = a[:, None] * (np.eye(3) - chance)  # of A log pi(y) by the logits
        mean = chance @ each
        return mean, float(chance @ (each**2).sum(1) - (mean**2).sum())

    mean, variance = moments(0.0, True)
    for level in (-4.0, 3.0):
        far, same = moments(level, True)
        assert far == pytest.approx(mean)
        assert same == pytest.approx(variance)
        without, larger = moments(level, False)
        assert without == pytest.approx(mean)  # unbiased either way
        assert larger > 5 * variance
