"""What a rollout draws, what its rewards are made of, and what a reward transform is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distributions import offered, plugin
from ostinato.config.sections import RLSection
from ostinato.engine.rollouts import finish_penalty, token_rewards
from ostinato.models.samples import Samples, Scores

RAGGED = [[100, 101, 102], [104], [105, 106], [107], [100, 104], [103], [102, 103, 101], [99]]
SMALL = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1, "lr": 1e-2}


def share_of_b(samples: Samples) -> torch.Tensor:
    """Real tokens above 130, as a share of the response."""
    hits = (samples.response_ids > 130) & samples.mask
    return hits.float().sum(1) / samples.lengths


def batches(kit, monkeypatch):
    """Every (micro-)batch that the algorithm's loss is given."""
    made = kit.plugins["ppo"].instance
    seen, loss = [], made.loss
    monkeypatch.setattr(made, "loss", lambda batch, out: (seen.append(batch), loss(batch, out))[1])
    return seen


def test_the_reward_lands_on_the_last_real_token_and_the_kl_on_every_one():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]])
    reference = torch.tensor([[-1.5, -1.0, -3.0], [-3.0, 0.0, 0.0]])
    score, coefficient = torch.tensor([10.0, 20.0]), torch.tensor([0.1, 0.2])
    found = token_rewards(score, logprobs - reference, coefficient, mask, kl_in_reward=True)
    # likelier than under the reference: punished; less likely: rewarded
    wanted = torch.tensor([[-0.05, 0.1, 10.0], [20.0 - 0.4, 0.0, 0.0]])
    torch.testing.assert_close(found, wanted)
    bare = token_rewards(score, logprobs - reference, coefficient, mask, kl_in_reward=False)
    assert bare.tolist() == [[0.0, 0.0, 10.0], [20.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [3.0, -4.0, 2.0]),
        ({"unfinished": {"penalty": 1.5, "mode": "subtract"}}, [3.0, -5.5, 2.0]),
        ({"unfinished": {"penalty": -1.0, "mode": "replace"}}, [3.0, -1.0, 2.0]),
        ({"clip_score": 2.5}, [2.5, -2.5, 2.0]),
        ({"clip_score": 2.5, "unfinished": {"penalty": 1.5}}, [2.5, -4.0, 2.0]),
    ],
)
def test_scores_are_clipped_then_unfinished_responses_penalised(settings, wanted):
    score, finished = torch.tensor([3.0, -4.0, 2.0]), torch.tensor([True, False, True])
    found = finish_penalty(score, finished, RLSection(**settings))
    assert found.tolist() == wanted


def test_the_transformed_score_is_trained_on_and_the_reward_models_is_logged(
    policies, function_reward, monkeypatch
):
    def reward_transform(self, rewards):
        place = torch.arange(len(rewards.score)) / 8
        return replace(rewards, score=0.5 - rewards.score + place, kl_scale=1 + place)

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    settings = {"clip_score": 0.75, "unfinished": {"penalty": 0.25}}
    kit = policies.make(plugins=["ppo", "made"], rl={**SMALL, **settings})
    seen = batches(kit, monkeypatch)
    kit.engine(RAGGED)(kit.policy(), function_reward(share_of_b), reference=kit.policy(seed=1))
    (batch,) = seen
    raw, rows = share_of_b(batch.samples), batch.group  # one response a prompt: its place
    wanted = (0.5 - raw + rows / 8).clamp(-0.75, 0.75) - 0.25 * ~batch.finished
    torch.testing.assert_close(batch.score, wanted)
    torch.testing.assert_close(batch.kl_coefficient, kit.config.kl.coefficient * (1 + rows / 8))
    log_ratio = ((batch.logprobs - batch.ref_logprobs) * batch.mask).sum(1)
    torch.testing.assert_close(batch.rewards.sum(1), wanted - batch.kl_coefficient * log_ratio)
    (row,) = kit.rows
    assert row["score"] == pytest.approx(float(raw.mean()))
    assert row["score_std"] == pytest.approx(float(raw.std()))
    assert row["reward"] == pytest.approx(float(wanted.mean()))
    assert row["kl_scale"] == pytest.approx(1 + 3.5 / 8)


def test_a_reward_transform_sees_all_that_is_known_of_the_responses(
    policies, function_reward, monkeypatch
):
    seen = []

    def reward_transform(self, rewards):
        seen.append(rewards)
        return rewards

    def three_heads_of_two_members(samples):
        parts = share_of_b(samples)[:, None, None] + torch.arange(6.0).view(2, 3)
        return Scores(parts.mean((1, 2)), parts, 0.1 + parts.square())

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    kit = policies.make(plugins=["ppo", "made"], rl={**SMALL, "rollouts": 3})
    monkeypatch.setattr(kit.plugins["ppo"].instance, "responses_per_prompt", 4, raising=False)
    initial, reference = kit.policy(), kit.policy(seed=1)
    reward = function_reward(three_heads_of_two_members)
    kit.engine(RAGGED)(initial, reward, reference=reference)
    assert [(found.iteration, found.step) for found in seen] == [(1, 0), (1, 1), (1, 2)]
    for found in seen:
        wanted = three_heads_of_two_members(found.samples)
        for name in ("score", "parts", "part_std"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
        assert found.group.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        assert found.kl_scale.tolist() == [1.0] * 8
        assert torch.equal(found.mask, found.samples.mask)
        assert torch.equal(found.finished, found.samples.finished)
        with torch.no_grad():
            theirs = reference.logprobs(found.samples)
        torch.testing.assert_close(found.ref_logprobs, theirs, atol=1e-5, rtol=0)
    with torch.no_grad():
        own = initial.logprobs(seen[0].samples)
    torch.testing.assert_close(seen[0].logprobs, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("draw", ["prompts", "responses", "minibatches"])
def test_runs_of_one_iteration_differ_in_every_draw(policies, function_reward, monkeypatch, draw):
    """Two runs that start alike differ by their names alone."""
    prompts = [[100]] if draw == "responses" else RAGGED

    def drawn(name):
        kit = policies.make(plugins=["ppo"], rl={**SMALL, "minibatch": 2, "epochs": 2})
        seen = batches(kit, monkeypatch)
        kit.engine(prompts)(kit.policy(), function_reward(share_of_b), name=name)
        groups = [batch.group.tolist() for batch in seen]
        if draw == "minibatches":
            return groups
        found = {}
        for batch in seen:
            prompts_and_responses = zip(*batch.samples.tokens, strict=True)
            found |= dict(zip(batch.group.tolist(), prompts_and_responses, strict=True))
        return [found[row][draw == "responses"] for row in range(8)]

    assert drawn("run-1") == drawn("run-1") != drawn("run-2")
