"""RLOO against NumPy, and its gradient against the policy gradient over all responses."""

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
    sentence_rollout,
    terms,
    total,
    with_advantages,
)


def score(sentence):
    return float(sentence[0] - 2 * (sentence[1] == 1) + 0.5 * sentence[0] * sentence[1])


def reference_advantages(rollout):
    """Ahmadian et al. 2024: R_i minus the mean of R_j, j != i, of the same prompt."""
    mask, rewards = rollout.mask.numpy(), rollout.rewards.numpy()
    group = rollout.group.numpy()
    whole = [row[real].sum() for row, real in zip(rewards, mask, strict=True)]
    found = np.zeros(mask.shape)
    for i in range(len(whole)):
        others = [whole[j] for j in range(len(whole)) if j != i and group[j] == group[i]]
        found[i, mask[i]] = whole[i] - np.mean(others)
    return found


@pytest.mark.parametrize("responses", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_advantages_leave_one_out(responses, seed):
    rollout, _ = random_rollout(seed, responses)
    found, _ = algorithm("rloo", responses=responses).advantages(rollout, None)
    np.testing.assert_allclose(found.numpy(), reference_advantages(rollout), atol=1e-12)


def test_advantages_by_hand():
    made = algorithm("rloo", responses=2)
    rollout, _ = random_rollout(0, 2)
    rollout.rewards = torch.zeros_like(rollout.rewards)
    rollout.rewards[:, 0] = torch.arange(len(rollout.rewards)) ** 2
    rollout.group = torch.arange(len(rollout.rewards)) // 2
    found = made.advantages(rollout, None)[0][:, 0]
    assert found[:4].tolist() == [-1.0, 1.0, -5.0, 5.0]  # 0 against 1, 4 against 9


@pytest.mark.parametrize("clip", [0.2, None])
@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_a_loop_over_responses(clip, seed):
    made = algorithm("rloo", responses=2, clip=clip)
    rollout, new = random_rollout(seed, 2)
    rollout = with_advantages(made, rollout)
    wanted, ratios = [], []
    for i, real in enumerate(rollout.mask.numpy()):
        log_ratio = (new[i].numpy()[real] - rollout.logprobs[i].numpy()[real]).sum()
        advantage, ratio = reference_advantages(rollout)[i, 0], np.exp(log_ratio)
        near = ratio if clip is None else np.clip(ratio, 1 - clip, 1 + clip)
        wanted.append(-min(ratio * advantage, near * advantage))
        ratios.append(ratio)
    found = terms(made, rollout, new)
    assert float(total(found)) == pytest.approx(np.mean(wanted), rel=1e-9)
    assert float(found["log/ratio"]) == pytest.approx(np.mean(ratios), rel=1e-9)


def test_at_ratio_1_the_gradient_is_reinforces():
    made = algorithm("rloo", responses=2)
    rollout, _ = random_rollout(3, 2)
    rollout = with_advantages(made, rollout)
    new = rollout.logprobs.clone().requires_grad_()
    total(terms(made, rollout, new)).backward()
    torch.testing.assert_close(new.grad, -rollout.advantages / len(rollout.mask))


@pytest.mark.parametrize(("responses", "beta"), [(2, 0.0), (2, 0.7), (3, 0.7)])
def test_the_expected_gradient_is_the_policy_gradient(responses, beta):
    theta, reference = parameters(0), parameters(1)
    made = algorithm("rloo", responses=responses)
    found = expected_gradient(made, theta, reference, score, beta)
    wanted = -policy_gradient(theta, reference, score, beta)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    assert wanted.abs().max() > 0.1


def test_after_an_update_the_ratio_corrects_for_the_policy_that_sampled():
    sampler, reference = parameters(0), parameters(1)
    theta = sampler + 0.5 * parameters(2)
    wanted = -policy_gradient(theta, reference, score, 0.0)
    made = algorithm("rloo", responses=2, clip=None)
    found = expected_gradient(made, theta, reference, score, 0.0, sampler)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    made = algorithm("rloo", responses=2)
    clipped = expected_gradient(made, theta, reference, score, 0.0, sampler)
    assert (clipped - wanted).abs().max() > 1e-3  # the price of the clip


@pytest.mark.parametrize("shift", [1.0, 100.0])
def test_what_all_responses_of_a_prompt_share_is_taken_out(shift):
    """What the baseline is for: the gradient of a sample is not swamped by the prompt's mean."""
    made, drawn = algorithm("rloo", responses=2), [(0, 1), (2, 2)]
    theta, reference = parameters(0), parameters(1)
    plain, shifted = (
        made.advantages(sentence_rollout(drawn, theta, reference, function, 0.0, 2), None)[0]
        for function in (score, lambda s: score(s) + shift)
    )
    torch.testing.assert_close(shifted, plain, atol=1e-10, rtol=0)
    assert plain[:, 0].abs().min() > 0.5


@pytest.mark.parametrize("settings", [{"responses": 1}, {"clip": 0}])
def test_settings_out_of_range_are_one_sentence(settings):
    key = next(iter(settings))
    with pytest.raises(UserError, match=rf"^test: plugins\.rloo\.{key}: ") as caught:
        algorithm("rloo", **settings)
    assert "\n" not in str(caught.value)
