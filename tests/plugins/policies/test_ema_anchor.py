"""A KL anchor that follows the policy (WARP 3.1)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ostinato import UserError
from ostinato.contract.plugins import activate
from policy_kit import Watched, float64

PROMPTS = [[2], [3, 4], [5, 2]]
SMALL = {"rollouts": 2, "rollout_size": 8, "minibatch": 4, "epochs": 2, "lr": 1e-2}


def share_of_c(samples):
    return (samples.response_ids == 4).float().mean(1)


def train(kit, function_reward, initial, wrap=lambda optimise: optimise):
    owner = kit.plugins.owners["train_policy"]
    return kit.plugins.call(
        owner,
        "train_policy",
        optimise=wrap(kit.engine(PROMPTS)),
        initial=initial,
        reward_model=function_reward(share_of_c),
        data=None,
        prompts=None,
        ctx=kit.ctx,
    )


def test_the_anchor_is_the_moving_average_in_closed_form(policies, function_reward, monkeypatch):
    """anchor_n = (1 - mu)^n theta_0 + mu sum_i (1 - mu)^(n - i) theta_i after n updates.

    The anchor is in the checkpoint, and the KL of a rollout is taken against it.
    """
    mu = 0.2
    kit = policies.make(plugins=[{"ema_anchor": {"mu": mu}}], rl=SMALL)
    initial, seen, anchors, batches = kit.word_policy(1), [], [], []
    before = float64(initial)
    loss = kit.plugins["ppo"].instance.loss
    monkeypatch.setattr(
        kit.plugins["ppo"].instance, "loss", lambda b, o, c: (batches.append(b), loss(b, o, c))[1]
    )

    def watching(engine):
        def optimise(*models, on_update, **others):
            def watched(policy, anchor):
                seen.append(float64(policy))
                on_update(policy, anchor)
                anchors.append(copy.deepcopy(anchor))

            return engine(*models, on_update=watched, **others)

        return optimise

    trained = train(kit, function_reward, initial, watching)
    assert len(seen) == 8  # 2 rollouts of 2 epochs of 2 minibatches
    _, tensors = kit.directory.checkpoints[-1]
    for name, start in before.items():
        wanted = (1 - mu) ** 8 * start
        wanted += sum(mu * (1 - mu) ** (7 - i) * theta[name] for i, theta in enumerate(seen))
        kept = tensors[f"reference.lm.{name}"].double().numpy()
        np.testing.assert_allclose(kept, wanted, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(float64(initial)[name], start)  # never changed
        np.testing.assert_array_equal(float64(trained)[name], seen[-1][name])
    # the second rollout's KL is against the anchor as the first rollout left it
    last = batches[-1]
    with torch.no_grad():
        reference, fixed = (m.logprobs(last.samples) for m in (anchors[3], initial))
    torch.testing.assert_close(last.ref_logprobs, reference, atol=1e-5, rtol=0)
    assert (fixed - reference).abs().max() > 1e-3


def test_a_mu_of_0_is_the_fixed_anchor(policies, function_reward):
    ends = []
    for plugins in ([{"ema_anchor": {"mu": 0.0}}], []):
        kit = policies.make(plugins=plugins, rl=SMALL)
        initial = kit.word_policy()
        if plugins:
            ends.append(float64(train(kit, function_reward, initial)))
        else:
            ends.append(float64(kit.engine(PROMPTS)(initial, function_reward(share_of_c))))
    for name, weight in ends[0].items():
        np.testing.assert_array_equal(weight, ends[1][name])


def test_effect_the_policy_moves_further_at_the_same_coefficient(policies, function_reward):
    """WARP 3.1: the constraint relaxes as training goes on, and the reward gets higher.

    Three seeds; the KL is to the initial policy, per response, exact.
    """
    reached = {}
    for mu in (0.0, 0.05):
        for seed in range(3):
            kit = policies.make(
                plugins=[{"ema_anchor": {"mu": mu}}, {"ppo": {"whiten": False}}],
                seed=seed,
                rl={**SMALL, "rollouts": 25, "rollout_size": 64, "minibatch": 32},
                kl={"coefficient": 1.0},
                generation={"max_new_tokens": 1},
            )
            initial = kit.word_policy(seed)
            trained = train(kit, function_reward, initial)
            with torch.no_grad():
                new, old = (
                    p.lm(input_ids=torch.tensor([[3, 4]])).logits[0, -1].log_softmax(-1)
                    for p in (trained, initial)
                )
            kl = float((new.exp() * (new - old)).sum())
            reached[mu, seed] = kl, kit.rows[-1]["score"]
    for seed in range(3):
        assert reached[0.05, seed][0] > 1.5 * reached[0.0, seed][0]
        assert reached[0.05, seed][1] > reached[0.0, seed][1]


@pytest.mark.parametrize("mu", [-0.1, 1.5, "fast"])
def test_a_mu_outside_0_and_1_is_refused(mu):
    with pytest.raises(UserError, match=r"plugins\.ema_anchor\.mu"):
        activate([("ema_anchor", {"mu": mu})], "test")


def test_the_engine_is_asked_once_and_evaluates_on_the_way(policies, function_reward):
    kit = policies.make(plugins=["ema_anchor"], rl=SMALL)
    watched = Watched(kit.engine(PROMPTS))
    train(kit, function_reward, kit.word_policy(), lambda _: watched)
    assert [sorted(asked) for asked in watched.runs] == [["on_update"]]
