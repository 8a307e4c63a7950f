"""What a rollout draws, what its rewards are made of, and what a reward transform is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distributions import offered, plugin
from ostinato import PolicyAlgorithm
from ostinato.config.errors import UserError
from ostinato.config.sections import RLSection
from ostinato.engine.rollouts import finish_penalty, token_rewards
from ostinato.measures import masked_mean
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
    monkeypatch.setattr(
        made, "loss", lambda batch, *rest: (seen.append(batch), loss(batch, *rest))[1]
    )
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


def rewarded_tokens(samples):
    """A score, and a reward of the pad token and word 4: on padding it should not count."""
    score = samples.lengths / 6
    hit = (samples.response_ids == 4) | (samples.response_ids == 1)
    return Scores(score, score[:, None, None], token_score=hit * 0.5)


def test_rewards_of_single_tokens_stand_where_they_are_given(
    policies, function_reward, monkeypatch
):
    """They are neither clipped nor penalised, and no KL controller scales them."""
    given = []

    def reward_transform(self, rewards):
        given.append(rewards)
        more = rewards.token_score - 0.25 * torch.arange(rewards.mask.shape[1])
        return replace(rewards, token_score=more)

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    settings = {"clip_score": 0.25, "unfinished": {"penalty": 0.5}}
    kit = policies.make(plugins=["ppo", "made"], rl={**SMALL, **settings})
    seen = batches(kit, monkeypatch)
    initial, reference = kit.word_policy(), kit.word_policy(1)
    prompts = [[2], [3, 4], [5, 2, 2], [2, 4]]
    kit.engine(prompts)(initial, function_reward(rewarded_tokens), reference=reference)
    (batch,) = seen
    assert batch.samples.lengths.unique().numel() > 1
    kl = batch.logprobs - batch.ref_logprobs
    total, moved = [], []
    for i, length in enumerate(batch.samples.lengths.tolist()):
        raw = length / 6
        final = min(raw, 0.25) - 0.5 * (not batch.finished[i])
        given_here = [0.5 * (t in (1, 4)) for t in batch.samples.tokens[1][i]]
        dense = [reward - 0.25 * t for t, reward in enumerate(given_here)]
        for t in range(length):
            wanted = dense[t] - float(batch.kl_coefficient[i] * kl[i, t])
            wanted += final if t == length - 1 else 0.0
            assert float(batch.rewards[i, t]) == pytest.approx(wanted, abs=1e-5)
        assert (batch.rewards[i, length:] == 0).all()
        assert float(batch.score[i]) == pytest.approx(final + sum(dense), abs=1e-5)
        total.append((raw + sum(given_here), final + sum(dense)))
        moved.append(sum(0.25 * t for t in range(batch.mask.shape[1])))
    (row,) = kit.rows
    assert row["score"] == pytest.approx(sum(t for t, _ in total) / 8, abs=1e-5)
    assert row["reward"] == pytest.approx(sum(t for _, t in total) / 8, abs=1e-5)
    assert row["actions"]["made.reward_transform"] == pytest.approx(sum(moved) / 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda x: x[:, :1],
            r"hook 'reward_transform' made token_score of shape \(8, 1\), expected",
        ),
        (lambda x: None, "hook 'reward_transform' made token_score a NoneType, expected a tensor"),
        (lambda x: x / 0, r"token_score is not finite at iteration 1, step 1$"),
    ],
)
def test_wrong_rewards_of_tokens_name_the_plugin(
    policies, function_reward, monkeypatch, change, said
):
    def reward_transform(self, rewards):
        made = replace(rewards)
        made.token_score = change(rewards.token_score)
        return made

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    kit = policies.make(plugins=["made"], rl=SMALL)
    with pytest.raises(UserError, match=f"^plugin 'made': {said}"):
        kit.engine(RAGGED)(kit.policy(), function_reward(share_of_b))


def test_an_algorithm_and_a_reward_transform_see_members_and_features(
    policies, function_reward, monkeypatch
):
    given = []

    def reward_transform(self, rewards):
        given.append(rewards)
        return rewards

    def scores(samples):
        parts = share_of_b(samples)[:, None, None] + torch.arange(6.0).view(2, 3)
        hidden = torch.arange(len(samples) * 8.0).view(len(samples), 2, 4)
        return Scores(parts.mean((1, 2)), parts, 0.1 + parts.square(), hidden=hidden)

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    kit = policies.make(plugins=["ppo", "made"], rl={**SMALL, "minibatch": 4})
    seen = batches(kit, monkeypatch)
    kit.engine(RAGGED)(kit.policy(), function_reward(scores))
    assert torch.equal(given[0].hidden, scores(given[0].samples).hidden)
    for batch in seen:
        torch.testing.assert_close(batch.parts, scores(batch.samples).parts)
        torch.testing.assert_close(batch.part_std, scores(batch.samples).part_std)


class TwoCritics(PolicyAlgorithm):
    """A value head for the score and one for the length; the policy follows the first."""

    value_heads = 2

    def advantages(self, rollout, ctx):
        length = rollout.samples.lengths.float()
        truth = torch.stack([rollout.score, length], dim=1)  # (B, 2)
        returns = truth[:, None] * rollout.mask[..., None]
        return (returns - rollout.values)[..., 0] * rollout.mask, returns

    def loss(self, batch, outputs, ctx):
        error = (outputs.values - batch.returns).square()[batch.mask]
        return {
            "policy": -masked_mean(batch.advantages * outputs.logprobs, batch.mask),
            "score": error[:, 0].mean(),
            "length": error[:, 1].mean(),
        }


@pytest.mark.parametrize("value", ["shared", "separate"])
@pytest.mark.parametrize("minibatch", [16, 4])
def test_each_of_two_value_heads_learns_its_own_return(
    policies, function_reward, monkeypatch, value, minibatch
):
    algorithm = TwoCritics()
    offered(monkeypatch, plugin(policy_algorithm=lambda self: algorithm))
    sizes = {"rollouts": 12, "rollout_size": 16, "minibatch": minibatch, "epochs": 4, "lr": 3e-2}
    kit = policies.make(plugins=["made"], rl=sizes, policy={"value": value})
    seen, loss = [], algorithm.loss
    algorithm.loss = lambda *a: (seen.append(a), loss(*a))[1]
    policy = kit.engine(RAGGED)(kit.policy(), function_reward(share_of_b))
    for batch, outputs, _ in seen:
        shape = (*batch.mask.shape, 2)
        assert batch.values.shape == outputs.values.shape == batch.returns.shape == shape
    assert policy.value_head.weight.shape[0] == 2
    terms = [row["terms"] for row in kit.rows]
    assert terms[0]["length"] > 10
    assert terms[-1]["length"] < terms[0]["length"] / 3


@pytest.mark.parametrize("shape", [(8,), (8, 6)])
def test_returns_of_another_shape_than_the_values_name_the_plugin(
    policies, function_reward, monkeypatch, shape
):
    algorithm = TwoCritics()
    algorithm.advantages = lambda rollout, ctx: (rollout.rewards, torch.zeros(shape))
    offered(monkeypatch, plugin(policy_algorithm=lambda self: algorithm))
    kit = policies.make(plugins=["made"], rl=SMALL)
    said = r"^plugin 'made': its advantages\(rollout, ctx\) answered returns of shape \(8"
    with pytest.raises(UserError, match=said):
        kit.engine(RAGGED)(kit.policy(), function_reward(share_of_b))
