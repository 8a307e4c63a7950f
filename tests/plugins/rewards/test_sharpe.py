"""sharpe: the KL penalty weighted by the variance of the reward (UA 2 and 5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ostinato import RewardBatch, Scores, UserError, load_config
from ostinato.engine.session import check


def batch_of(parts, score=None, **fields):
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
        **fields,
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


@pytest.mark.parametrize("head", [0, 2])
def test_score_may_be_one_head_of_the_newest_model(kit, head):
    """Members stand in the order of iterations: the last one's heads are R~_k's."""
    parts = np.random.default_rng(0).normal(size=(5, 4, 3))
    batch = batch_of(parts, score=np.full(5, 9.0))
    made = transformed(kit, batch, score="head", head=head)
    np.testing.assert_allclose(made.score, parts[:, 3, head], rtol=1e-6)
    assert transformed(kit, batch).score.tolist() == [9.0] * 5  # what combine_rm made of them


def test_a_head_that_is_not_there_is_told(kit):
    with pytest.raises(UserError, match=r"plugins.sharpe.head: is 3, expected less than 3, the he"):
        transformed(kit, batch_of(np.ones((5, 4, 3))), score="head", head=3)


def test_the_objectives_form_takes_off_the_coefficient_times_the_weight(kit):
    """score - beta w, w what the sample's penalty is weighed by, an earlier scale among it."""
    parts = np.random.default_rng(1).normal(size=(6, 1, 4))
    batch = batch_of(parts, score=np.arange(6.0), kl_coefficient=0.3)
    batch.kl_scale = torch.linspace(0.5, 3, 6)
    made, plain = transformed(kit, batch, form="objective"), transformed(kit, batch)
    weight = batch.kl_scale.numpy() * parts[:, 0].var(1, ddof=1)
    np.testing.assert_allclose(made.score, np.arange(6) - 0.3 * weight, rtol=1e-5)
    assert torch.equal(made.kl_scale, plain.kl_scale)
    assert torch.equal(plain.score, batch.score)


# --- The optimum on a small discrete space --------------------------------------------------------

REWARD = np.array([1.0, 0.4, -0.3, 0.7])
VARIANCE = np.array([2.0, 0.5, 1.0, 0.25])
START = np.array([0.4, 0.3, 0.2, 0.1])
BETA = 0.8


def made_of(kit, reward=REWARD, variance=VARIANCE, **settings):
    """(score, kl_scale) of five members with this mean and this variance, in float64."""
    shape = np.array([-2.0, -1, 0, 1, 2])
    shape = shape / shape.std(ddof=1)
    parts = reward[:, None] + np.sqrt(variance)[:, None] * shape
    made = transformed(kit, batch_of(parts[:, :, None], kl_coefficient=BETA), **settings)
    return made.score.double().numpy(), made.kl_scale.double().numpy()


def closed_form(reward, weight, start, shift):
    """start exp((reward - nu) / weight - shift), nu by bisection so that it adds up to 1."""
    low, high = -100.0, 100.0
    for _ in range(200):
        nu = (low + high) / 2
        policy = start * np.exp(np.minimum((reward - nu) / weight - shift, 700))
        low, high = (nu, high) if policy.sum() > 1 else (low, nu)
    return policy


def policy_gradient(score, scale, steps=20000, lr=0.05):
    """Where E[reward grad log pi] ends, reward = score - BETA scale log(pi / START), held constant.

    What any policy gradient does with the hook's answer: float64, exact expectation, no clipping.
    """
    logits = np.log(START)
    for _ in range(steps):
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
        reward = score - BETA * scale * np.log(policy / START)
        logits = logits + lr * policy * (reward - policy @ reward)
    return policy


def objective(policy):
    """UA: E[r] - beta E[sigma^2 log(pi / pi_0)]."""
    return policy @ (REWARD - BETA * VARIANCE * np.log(policy / START))


def test_form_objective_reaches_the_optimum_of_the_objective(kit):
    """A general solver knows nothing of gradients held constant; nor does it know the closed form.

    pi_0 exp((r - nu) / (beta sigma^2) - 1).
    """
    score, scale = made_of(kit, form="objective")
    found = policy_gradient(score, scale)
    total = {"type": "eq", "fun": lambda p: p.sum() - 1}
    solved = minimize(
        lambda p: -objective(p),
        START,
        bounds=[(1e-9, 1)] * 4,
        constraints=[total],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    np.testing.assert_allclose(found, solved.x, atol=2e-5)
    np.testing.assert_allclose(found, closed_form(REWARD, BETA * scale, START, 1.0), atol=1e-6)
    theorem = START * np.exp(REWARD / (BETA * VARIANCE))  # UA 3.6 as printed, then normalised
    assert objective(found) > objective(theorem / theorem.sum()) + 1e-3


def test_form_reward_ends_at_another_fixed_point(kit):
    """UA section 5's adjusted reward: no -1, so pi_0 exp((r - nu) / (beta sigma^2))."""
    score, scale = made_of(kit)
    found = policy_gradient(score, scale)
    np.testing.assert_allclose(found, closed_form(REWARD, BETA * scale, START, 0.0), atol=1e-6)
    best = policy_gradient(*made_of(kit, form="objective"))
    assert objective(best) > objective(found) + 1e-2
    assert best[0] < found[0] - 1e-2  # the response of the highest variance


def test_equal_variances_are_the_plain_penalty(kit):
    """With one sigma for all, both forms end at pi_0 exp(r / (beta sigma^2)), normalised."""
    plain = START * np.exp(REWARD / (BETA * 1.7))
    for form in ("reward", "objective"):
        found = policy_gradient(*made_of(kit, variance=np.full(4, 1.7), form=form))
        np.testing.assert_allclose(found, plain / plain.sum(), atol=1e-5)


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


def test_form_objective_is_derived_for_k1_and_refused_for_other_estimators():
    given = ["plugins=[{sharpe: {form: objective}}]", "reward_model.members=2"]
    assert check(load_config("toy", given), "toy").need("members") == 2
    with pytest.raises(UserError, match=r"kl\.estimator: is k3; plugin 'sharpe' with `form: objec"):
        check(load_config("toy", [*given, "kl.estimator=k3"]), "toy")


def test_the_controllers_coefficient_reaches_the_objectives_form(policies, function_reward):
    """In a rollout: score falls by beta times the mean variance, beta of the KL controller."""

    def reward(samples):
        right = (samples.response_ids == 4).float().mean(1)
        return Scores(right, torch.stack([right - 1, right + 1], 1)[..., None])  # variance 2

    found = {}
    for form in ("reward", "objective"):
        kit = policies.make(
            plugins=[{"sharpe": {"form": form}}],
            rl={"rollouts": 1, "rollout_size": 8, "minibatch": 8},
            kl={"coefficient": 0.3},
            generation={"max_new_tokens": 2},
        )
        kit.engine([[2], [3]])(kit.word_policy(), function_reward(reward))
        (row,) = [r for r in kit.rows if "kl_coefficient" in r]
        assert row["kl_coefficient"] == pytest.approx(0.3)
        found[form] = row["reward"]
    assert found["objective"] == pytest.approx(found["reward"] - 0.3 * 2, abs=1e-5)
