"""REINFORCE against NumPy, and its gradient against the policy gradient over all responses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.config.errors import UserError
from rollout_kit import (
    algorithm,
    expected_gradient,
    parameters,
    policy_gradient,
    random_rollout,
    terms,
    total,
    with_advantages,
)


def score(sentence):
    return float(sentence[0] - 2 * (sentence[1] == 1) + 0.5 * sentence[0] * sentence[1])


def whole_rewards(rollout):
    """R of each response: the sum of its real tokens' rewards, KL among them."""
    pairs = zip(rollout.rewards.numpy(), rollout.mask.numpy(), strict=True)
    return np.array([row[real].sum() for row, real in pairs])


def test_the_baseline_is_the_mean_of_all_rollouts_before():
    made, seen = algorithm("reinforce"), []
    for seed in range(4):
        rollout, _ = random_rollout(seed)
        reward = whole_rewards(rollout)
        others = [np.mean(np.delete(reward, i)) for i in range(len(reward))]
        baseline = np.mean(seen) if seen else np.array(others)
        wanted = np.where(rollout.mask.numpy(), (reward - baseline)[:, None], 0.0)
        np.testing.assert_allclose(made.advantages(rollout, None)[0].numpy(), wanted, atol=1e-12)
        seen.extend(reward)


def test_a_first_rollout_of_one_response_has_no_baseline():
    rollout, _ = random_rollout(0)
    for name in ("rewards", "mask"):
        setattr(rollout, name, getattr(rollout, name)[:1])
    found, _ = algorithm("reinforce").advantages(rollout, None)
    assert float(found[0, 0]) == pytest.approx(whole_rewards(rollout)[0])


def test_the_baseline_goes_on_after_a_resume_and_begins_anew_with_each_policy():
    made, resumed = algorithm("reinforce"), algorithm("reinforce")
    first, second = random_rollout(0)[0], random_rollout(1)[0]
    fresh = made.advantages(first, None)[0]
    state = made.state_dict()
    found = made.advantages(second, None)[0]
    resumed.load_state_dict(state)
    assert torch.equal(resumed.advantages(second, None)[0], found)
    assert made.policy_algorithm() is made
    assert torch.equal(made.advantages(first, None)[0], fresh)
    assert not torch.equal(found, algorithm("reinforce").advantages(second, None)[0])


@pytest.mark.parametrize("clip", [0.2, None])
@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_a_loop_over_responses(clip, seed):
    made = algorithm("reinforce", clip=clip)
    rollout, new = random_rollout(seed)
    rollout = with_advantages(made, rollout)
    wanted, ratios = [], []
    for i, real in enumerate(rollout.mask.numpy()):
        ratio = np.exp((new[i].numpy()[real] - rollout.logprobs[i].numpy()[real]).sum())
        advantage = float(rollout.advantages[i, 0])
        near = ratio if clip is None else np.clip(ratio, 1 - clip, 1 + clip)
        wanted.append(-min(ratio * advantage, near * advantage))
        ratios.append(ratio)
    found = terms(made, rollout, new)
    assert float(total(found)) == pytest.approx(np.mean(wanted), rel=1e-9)
    assert float(found["log/ratio"]) == pytest.approx(np.mean(ratios), rel=1e-9)


@pytest.mark.parametrize("baseline", [0.0, 3.0])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_expected_gradient_is_the_policy_gradient(baseline, beta):
    theta, reference = parameters(0), parameters(1)
    made = algorithm("reinforce")
    made.load_state_dict({"total": 2 * baseline, "count": 2})
    found = expected_gradient(made, theta, reference, score, beta)
    wanted = -policy_gradient(theta, reference, score, beta)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    assert wanted.abs().max() > 0.1


def test_after_an_update_the_ratio_corrects_for_the_policy_that_sampled():
    sampler, reference = parameters(0), parameters(1)
    theta = sampler + 0.5 * parameters(2)
    made = algorithm("reinforce", clip=None)
    made.load_state_dict({"total": 1.0, "count": 2})
    found = expected_gradient(made, theta, reference, score, 0.0, sampler)
    wanted = -policy_gradient(theta, reference, score, 0.0)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_a_clip_of_0_is_one_sentence():
    with pytest.raises(UserError, match=r"^test: plugins\.reinforce\.clip: ") as caught:
        algorithm("reinforce", clip=0)
    assert "\n" not in str(caught.value)
