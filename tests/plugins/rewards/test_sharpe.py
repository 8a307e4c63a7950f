"""sharpe: the KL penalty weighted by the variance of the reward (UA 2 and 5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato import RewardBatch, Scores, UserError, load_config
from ostinato.engine.session import check


def batch_of(parts, score=None):
    """B rollouts whose reward has these parts (B, members, heads)."""
    parts = torch.tensor(parts, dtype=torch.float32)
    rows = len(parts)
    zeros = torch.zeros(rows, 1)
    mean = parts.flatten(1).mean(1) if score is None else torch.tensor(score, dtype=torch.float32)
    return RewardBatch(
        samples=None,
        score=mean,
        parts=parts,
        part_std=None,
        logprobs=zeros,
        ref_logprobs=zeros,
        mask=zeros.bool(),
        finished=zeros[:, 0].bool(),
        group=torch.arange(rows),
        kl_scale=torch.ones(rows),
        iteration=1,
        step=0,
    )


def transformed(kit, batch, **settings):
    one = kit.make(("sharpe", settings), members=2)
    return one.plugins.call("sharpe", "reward_transform", rewards=batch, ctx=one.ctx)


def test_the_scale_is_the_variance_over_members_and_heads_with_ddof_1(kit):
    parts = np.random.default_rng(0).normal(size=(6, 3, 4))
    before = batch_of(parts)
    before.kl_scale = torch.linspace(0.5, 3, 6)
    made = transformed(kit, before)
    every = parts.reshape(6, 12)
    expected = before.kl_scale.numpy() * ((every - every.mean(1, keepdims=True)) ** 2).sum(1) / 11
    np.testing.assert_allclose(made.kl_scale, expected, rtol=1e-5)
    assert torch.equal(made.score, before.score)  # not r - beta sigma^2: that is UWO
    assert torch.equal(before.kl_scale, torch.linspace(0.5, 3, 6))


def test_score_may_be_one_head(kit):
    parts = np.random.default_rng(0).normal(size=(5, 1, 3))
    made = transformed(kit, batch_of(parts, score=np.full(5, 9.0)), score="head")
    np.testing.assert_allclose(made.score, parts[:, 0, 0], rtol=1e-6)
    mean = transformed(kit, batch_of(parts, score=np.full(5, 9.0)))
    assert mean.score.tolist() == [9.0] * 5  # what combine_rm made of the members


# --- The optimum on a small discrete space --------------------------------------------------------

REWARD = np.array([1.0, 0.4, -0.3, 0.7])
VARIANCE = np.array([2.0, 0.5, 1.0, 0.25])
START = np.array([0.4, 0.3, 0.2, 0.1])
BETA = 0.8


def scale_of(kit, reward=REWARD, variance=VARIANCE):
    """kl_scale from five members with this mean and this variance."""
    shape = np.array([-2.0, -1, 0, 1, 2])
    shape = shape / shape.std(ddof=1)
    parts = reward[:, None] + np.sqrt(variance)[:, None] * shape
    made = transformed(kit, batch_of(parts[:, :, None]))
    np.testing.assert_allclose(made.score, reward, atol=1e-6)
    return made.kl_scale.double().numpy()


def closed_form(reward, weight, start, shift):
    """start exp((reward - nu) / weight - shift), nu by bisection so that it adds up to 1."""
    low, high = -100.0, 100.0
    for _ in range(200):
        nu = (low + high) / 2
        policy = start * np.exp(np.minimum((reward - nu) / weight - shift, 700))
        low, high = (nu, high) if policy.sum() > 1 else (low, nu)
    return policy


def ascend(gradient, steps=20000, lr=0.05):
    """Follow a gradient in the logits of a softmax policy."""
    logits = np.log(START)
    for _ in range(steps):
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
        logits = logits + lr * gradient(policy)
    return policy


def test_optimum_of_the_objective(kit):
    """max E[r] - beta E[sigma^2 log pi / pi_0]: pi_0 exp((r - nu) / (beta sigma^2) - 1)."""
    weight = BETA * scale_of(kit)

    def gradient(policy):
        inner = REWARD - weight * (np.log(policy / START) + 1)  # the penalty moves with pi
        return policy * (inner - policy @ inner)

    found = ascend(gradient)
    np.testing.assert_allclose(found, closed_form(REWARD, weight, START, 1.0), atol=1e-6)

    def objective(policy):
        return policy @ (REWARD - weight * np.log(policy / START))

    theorem = START * np.exp(REWARD / weight)  # UA 3.6 as printed, normalised afterwards
    assert objective(found) > objective(theorem / theorem.sum()) + 1e-3


def test_fixed_point_of_ppo(kit):
    """PPO holds the reward constant: no -1, so pi_0 exp((r - nu) / (beta sigma^2))."""
    weight = BETA * scale_of(kit)

    def gradient(policy):
        reward = REWARD - weight * np.log(policy / START)  # no gradient goes through it
        return policy * (reward - policy @ reward)  # E[reward grad log pi]

    found = ascend(gradient)
    np.testing.assert_allclose(found, closed_form(REWARD, weight, START, 0.0), atol=1e-6)
    other = closed_form(REWARD, weight, START, 1.0)
    assert np.abs(found - other).max() > 1e-2


def test_equal_variances_are_the_plain_penalty(kit):
    """With one sigma for all, the optimum is pi_0 exp(r / (beta sigma^2)), normalised."""
    weight = BETA * scale_of(kit, variance=np.full(4, 1.7))
    plain = START * np.exp(REWARD / (BETA * 1.7))
    np.testing.assert_allclose(
        closed_form(REWARD, weight, START, 0.0), plain / plain.sum(), atol=1e-5
    )


def test_effect_an_overestimated_arm_of_high_variance_is_trusted_less(kit):
    """UA, figure 2: three arms, the first over-estimated by models that disagree about it.

    Five noisy estimates of each arm, 300 draws. At an equal mean coefficient the variance-aware
    policy keeps less on the first arm and has a higher true reward on average.
    """
    draw, true = np.random.default_rng(0), np.array([0.0, 0.6, 0.3])
    noise, start = np.array([3.0, 0.3, 0.3]), np.ones(3) / 3
    gains, first = [], []
    for _ in range(300):
        estimates = true + np.array([1.0, 0, 0]) + noise * draw.normal(size=(5, 3))
        made = transformed(kit, batch_of(estimates.T[:, :, None])) if not gains else None
        variance = estimates.var(0, ddof=1)
        if made is not None:
            np.testing.assert_allclose(made.kl_scale, variance, rtol=1e-5)
        mean = estimates.mean(0)
        aware = closed_form(mean, 0.3 * variance, start, 0.0)
        plain = start * np.exp(mean / (0.3 * variance.mean()))
        plain /= plain.sum()
        gains.append(true @ (aware - plain))
        first.append(plain[0] - aware[0])
    assert np.mean(gains) > 0.05
    assert np.mean(first) > 0.01


def test_effect_the_kl_is_smaller_where_the_reward_is_uncertain(policies, function_reward):
    """UA 2: one reward for two prompts, of variance 8 at the first and 1/2 at the second.

    PPO moves far from the reference at the second and little at the first. Without the plugin the
    same coefficient holds it alike at both.
    """
    uncertain, sure = [2], [3]

    def reward(samples):
        right = (samples.response_ids == 4).float().mean(1)
        off = torch.where(samples.prompt_ids[:, -1] == uncertain[0], 2.0, 0.5)
        return Scores(right, torch.stack([right - off, right + off], 1)[..., None])

    found = []
    for plugins in (["sharpe"], []):
        kit = policies.make(
            plugins=plugins,
            rl={"rollouts": 12, "rollout_size": 64, "minibatch": 64, "epochs": 1, "lr": 2e-2},
            kl={"coefficient": 0.3},
            generation={"max_new_tokens": 2},
        )
        start = kit.word_policy()
        trained = kit.engine([uncertain, sure])(start, function_reward(reward))
        kl = []
        for prompt in (uncertain, sure):
            samples = kit.sample(trained, [prompt] * 256)
            with torch.no_grad():
                ratio = trained.logprobs(samples) - start.logprobs(samples)
            kl.append(float((ratio * samples.mask).sum(1).mean()))
        found.append(kl)
    (held, free), (first, second) = found
    assert held < 0.3 * free, found
    assert first > 0.5 * second, found


# --- What it needs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("plugins", "members"), [(["sharpe"], 2), (["sharpe", "reward_heads"], 1)])
def test_heads_or_members_will_do(plugins, members):
    config = load_config("toy", [f"plugins={plugins}", f"reward_model.members={members}"])
    assert check(config, "toy").need("members") == 2


def test_members_that_combine_rm_made_one_of_are_told(kit):
    with pytest.raises(UserError, match="the reward is of one model with one head, which has no"):
        transformed(kit, batch_of([[[1.0]], [[2.0]]]))


def test_one_model_without_heads_is_refused():
    """A single reward model has no variance, and so no KL penalty at all."""
    with pytest.raises(UserError, match="'sharpe' needs at least 2 heads or members"):
        check(load_config("toy", ["plugins=[sharpe]"]), "toy")
