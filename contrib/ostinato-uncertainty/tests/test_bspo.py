"""BSPO's values against their definition, GAE where all is supported, and a policy that strays."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_uncertainty.bspo import BSPO, supported_gae
from uncertainty_kit import configured, context, samples, toy

import ostinato
from ostinato.measures import gae


def situation(seed=0):
    draw = np.random.default_rng(seed)
    lengths = [1, 4, 6, 5]
    mask = np.arange(6) < np.array(lengths)[:, None]
    rewards, values = (draw.normal(size=(4, 6)) * mask for _ in range(2))
    return *(torch.tensor(x) for x in (rewards, values, mask)), lengths


def test_with_support_everywhere_it_is_gae():
    rewards, values, mask, _ = situation()
    found = supported_gae(rewards, values, mask, torch.ones_like(mask), -3.0, 0.9, 0.8)
    for mine, theirs in zip(found, gae(rewards, values, mask, 0.9, 0.8), strict=True):
        assert mine.numpy() == pytest.approx(theirs.numpy())


def test_an_unsupported_token_is_worth_the_least_and_what_follows_is_not_asked():
    """Lambda-returns as the mean over n-step returns, each cut at the first unsupported token."""
    rewards, values, mask, lengths = situation(1)
    draw = np.random.default_rng(2)
    supported = torch.tensor(draw.random((4, 6)) > 0.4) | ~mask
    least, gamma, lam = -3.0, 0.9, 0.8
    advantages, returns = supported_gae(rewards, values, mask, supported, least, gamma, lam)
    assert not bool(supported[mask].all())
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]

        def q_after(start, steps, row=row, length=length, r=r, v=v):
            """r_t + gamma r_{t+1} + ... + gamma^n V, or Q_min in the place of the rest."""
            total = 0.0
            for n in range(steps):
                if start + n == length:
                    return total
                if not supported[row, start + n]:
                    return total + gamma**n * least
                total += gamma**n * r[start + n]
            return total + gamma**steps * v[min(start + steps, length)]

        for t in range(length):
            horizon = length - t
            mixed = sum((1 - lam) * lam ** (n - 1) * q_after(t, n) for n in range(1, horizon))
            mixed += lam ** (horizon - 1) * q_after(t, horizon)
            assert advantages[row, t].item() == pytest.approx(mixed - v[t])
            wanted = mixed
            if t and not supported[row, t - 1]:
                wanted = (least - r[t - 1]) / gamma
                assert r[t - 1] + gamma * wanted == pytest.approx(least)
            assert returns[row, t].item() == pytest.approx(wanted)
        assert advantages[row, length:].abs().sum() == returns[row, length:].abs().sum() == 0


def plain(tokens=3):
    """Two samples."""
    made = samples(torch.zeros(2, 1, 1), tokens)
    del made.features
    return made


def rollout(reward, tokens=3):
    mask = torch.ones(2, tokens, dtype=torch.bool)
    zeros = torch.zeros(2, tokens)
    rest = dict.fromkeys(("score", "logprobs", "ref_logprobs", "kl_coefficient", "group"), zeros)
    given = plain(tokens)
    made = ostinato.Rollout(
        samples=given,
        mask=mask,
        rewards=zeros,
        values=zeros,
        finished=mask[:, 0],
        advantages=zeros,
        returns=zeros,
        **rest,
    )
    rewards = zeros.clone()
    rewards[:, -1] = torch.tensor(reward)
    return replace(made, rewards=rewards)


def test_a_high_reward_does_not_pay_for_a_token_that_the_data_never_held():
    plugin = configured(BSPO, support=0.01)
    chances = torch.tensor([[0.5, 0.001, 0.5], [0.5, 0.5, 0.5]])
    old = torch.tensor([[0.5, 0.002, 0.5], [0.5, 0.009, 0.5]])
    plugin._behaviour = [
        SimpleNamespace(logprobs=lambda given, p=p: p[: len(given)].log()) for p in (chances, old)
    ]
    plugin._part = 2
    ctx = context()
    advantages, _ = plugin.advantages(rollout([4.0, 1.0]), ctx)
    assert ctx.logged == {"bspo/unsupported": 0.5}
    assert advantages[0, 1] < 0 < advantages[1, 1]
    assert plugin.supports(plain()).tolist() == [
        [True, False, True],
        [True, True, True],
    ]


def test_a_run_learns_to_keep_to_the_support(tmp_path):
    sizes = ("rl.rollouts=6", "rl.rollout_size=64", "rl.minibatch=64", "kl.coefficient=0")
    run = toy(tmp_path / "run", "{bspo: {support: 0.02}}", *sizes)
    strayed = [row["bspo/unsupported"] for row in run.metrics if row["kind"] == "policy"]
    assert 0 < np.mean(strayed[-3:]) < 0.75 * strayed[0]


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ostinato.UserError, match=r"plugins\.bspo\.least: is -1, above the least"):
        toy(tmp_path / "run", "{bspo: {least: -1}}")
    with pytest.raises(ostinato.UserError, match=r"bspo\.support.*less than 1"):
        toy(tmp_path / "run", "{bspo: {support: 1}}")
