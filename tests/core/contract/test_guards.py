"""Whatever a hook is given and changes in place is found, and its plugin is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distributions import offered, plugin
from ostinato import Policy, UserError, distance, run
from ostinato.contract import guards
from ostinato.contract.algorithms import advantages_of
from ostinato.contract.batches import (
    PolicyHandle,
    PolicyHistory,
    PolicyOutputs,
    RewardBatch,
    Rollout,
)
from ostinato.contract.context import Evaluation
from ostinato.contract.plugins import activate
from ostinato.contract.policy_algorithm import PolicyAlgorithm
from ostinato.models.reward import combine, mean_over_members

B, T = 3, 4


@pytest.fixture(scope="module")
def world(kit, policies, comparisons):
    """One of everything that hooks are given."""
    one, models = kit.make(), policies.make()
    policy, initial = models.policy(), one.initial()
    samples = models.sample(policy, [[5, 6], [7, 8], [9, 9]])
    shape = samples.mask.shape
    each, token = torch.zeros(B), torch.zeros(shape)
    rewards = RewardBatch(
        samples=samples,
        score=torch.tensor([1.0, 2.0, 3.0]),
        parts=torch.ones(B, 1, 1),
        part_std=None,
        logprobs=token.clone(),
        ref_logprobs=token.clone(),
        mask=samples.mask,
        finished=samples.finished,
        group=torch.arange(B),
        kl_scale=torch.ones(B),
        iteration=1,
        step=0,
    )
    tokens = ("rewards", "logprobs", "ref_logprobs", "values", "advantages", "returns")
    rollout = Rollout(
        samples=samples,
        mask=samples.mask,
        score=each.clone(),
        kl_coefficient=each.clone(),
        group=torch.arange(B),
        finished=samples.finished,
        **{name: token.clone() for name in tokens},
    )
    batch = one.batch(comparisons(4), initial)
    with torch.no_grad():
        outputs = initial(batch.input_ids, batch.mask)
    evaluation = Evaluation(
        **dict.fromkeys(Evaluation.__dataclass_fields__)
        | {"policy": policy, "samples": samples, "proxy": each.clone(), "reward": initial}
    )
    sft = models.policy(1)
    history = PolicyHistory(PolicyHandle("sft", lambda: sft))
    parts = {"evaluation": evaluation, "reward": initial, "policies": history}
    ctx = models.ctx.at(**parts)
    return {
        "rewards": rewards,
        "rollout": rollout,
        "batch": batch,
        "outputs": outputs,
        "policy_outputs": PolicyOutputs(token.clone(), token.clone(), policy, policy),
        "parameters": dict(initial.named_parameters()),
        "logits": torch.zeros(B, 5),
        "policy": policy,
        "model": initial,
        "sft": sft,
        "history": history,
        "ctx": ctx,
    }


def given(world, hook):
    """The arguments of a hook."""
    ctx, model = world["ctx"], world["model"]
    both = combine([model], mean_over_members)
    return {
        "reward_transform": {"rewards": world["rewards"]},
        "rm_loss": {"batch": world["batch"], "outputs": world["outputs"]},
        "preference_loss": {"batch": world["batch"], "outputs": world["outputs"]},
        "policy_loss": {"batch": world["rollout"], "outputs": world["policy_outputs"]},
        "filter_rollout": {"rollout": world["rollout"]},
        "sampling_logits": {"logits": world["logits"], "reference": None},
        "meta_update": {"parameters": world["parameters"], "loss": None, "score": None}
        | {"meta_batch": None},
        "policy_meta_update": {"parameters": world["parameters"], "loss": None},
        "after_rollout": {"row": {"kl": 1.0}, "policy": world["policy"]},
        "evaluate": {},
        "kl_coefficient": {"kl": 0.1, "step": 0},
        "combine_rm": {"reward_models": [model], "datasets": []},
        "wrap_reward": {"reward": both},
        "init_policy": {"history": world["history"]},
        "train_rm": {"fit": None, "initial": model, "data": None},
        "train_policy": {"optimise": None, "initial": world["sft"], "reward_model": both}
        | {"data": None, "prompts": None},
        "draw_responses": {"policy": world["policy"], "prompts": None},
        "select_comparisons": {"comparisons": None, "reward_models": [both]},
    }[hook] | {"ctx": ctx}


def grow(module):
    """Through ``.data``, which moves no version."""
    next(module.parameters()).data.add_(1e-3)


@torch.no_grad()
def add(tensor):
    tensor.add_(1e-3)


def step(module):
    add(next(module.parameters()))


SFT = "the weights of the SFT policy"
CHANGES = [
    ("reward_transform", lambda self, rewards: rewards.score.sub_(3), "rewards.score"),
    ("reward_transform", lambda self, rewards: rewards.kl_scale.mul_(2), "rewards.kl_scale"),
    (
        "reward_transform",
        lambda self, rewards: rewards.samples.response_ids.zero_(),
        "rewards.samples.response_ids",
    ),
    (
        "reward_transform",
        lambda self, rewards: setattr(rewards.samples, "finished", rewards.finished.clone()),
        "rewards.samples.finished",
    ),
    ("rm_loss", lambda self, batch: batch.weight.zero_(), "batch.weight"),
    ("rm_loss", lambda self, outputs: outputs.hidden.mul_(2), "outputs.hidden"),
    ("preference_loss", lambda self, batch: batch.label.fill_(1), "batch.label"),
    ("policy_loss", lambda self, batch: batch.advantages.add_(1), "batch.advantages"),
    ("policy_loss", lambda self, outputs: outputs.values.add_(1), "outputs.values"),
    ("policy_loss", lambda self, outputs: step(outputs.policy), "the weights of outputs.policy"),
    ("filter_rollout", lambda self, rollout: rollout.rewards.add_(1), "rollout.rewards"),
    ("sampling_logits", lambda self, logits: logits[:, 0].fill_(-9), "logits"),
    (
        "meta_update",
        lambda self, parameters: add(parameters["model.score.weight"]),
        "parameters['model.score.weight']",
    ),
    (
        "policy_meta_update",
        lambda self, parameters: add(parameters["model.score.weight"]),
        "parameters['model.score.weight']",
    ),
    ("after_rollout", lambda self, policy: step(policy), "the weights of policy"),
    ("evaluate", lambda self, ctx: ctx.evaluation.proxy.sub_(1), "ctx.evaluation.proxy"),
    (
        "evaluate",
        lambda self, ctx: step(ctx.evaluation.policy),
        "the weights of ctx.evaluation.policy",
    ),
    (
        "combine_rm",
        lambda self, reward_models: grow(reward_models[0]),
        "the weights of reward_models[0]",
    ),
    (
        "combine_rm",
        lambda self, reward_models: setattr(
            reward_models[0],
            "calibration",
            replace(reward_models[0].calibration, unit=2 * reward_models[0].calibration.unit),
        ),
        "reward_models[0].calibration",
    ),
    ("wrap_reward", lambda self, reward: setattr(reward, "zero", 1.0), "reward.zero"),
    (
        "wrap_reward",
        lambda self, reward: grow(reward.members[0]),
        "the weights of reward.members[0]",
    ),
    (
        "init_policy",
        lambda self, history: grow(history.sft.load()),
        "the weights of the SFT policy",
    ),
    ("train_rm", lambda self, initial: grow(initial), "the weights of initial"),
    ("train_policy", lambda self, initial: grow(initial), "the weights of initial"),
    (
        "train_policy",
        lambda self, initial: setattr(initial, "temperature", initial.temperature + 1),
        "initial.temperature",
    ),
    (
        "train_policy",
        lambda self, reward_model: grow(reward_model.members[0]),
        "the weights of reward_model.members[0]",
    ),
    ("draw_responses", lambda self, policy: grow(policy), "the weights of policy"),
    (
        "select_comparisons",
        lambda self, reward_models: grow(reward_models[0].members[0]),
        "the weights of reward_models[0].members[0]",
    ),
]


@pytest.mark.parametrize(("hook", "change", "what"), CHANGES)
def test_a_change_in_place_is_named(world, monkeypatch, hook, change, what):
    offered(monkeypatch, plugin(**{hook: change}))
    plugins = activate([("made", {})], "test")
    with pytest.raises(UserError) as caught:
        plugins.call("made", hook, **given(world, hook))
    assert str(caught.value) == (
        f"plugin 'made': hook '{hook}' changed {what} in place, which it is given to read; change "
        "a copy"
    )


@pytest.mark.parametrize("hook", sorted({hook for hook, _, _ in CHANGES}))
def test_who_only_reads_is_let_be(world, hook):
    """Also with forward passes, gradients and texts that are worked out when asked for."""
    with guards.watched("made", hook, given(world, hook)):
        policy, samples = world["policy"], world["rewards"].samples
        policy.logprobs(samples).sum().backward()
        policy.zero_grad()
        policy.requires_grad_(False).requires_grad_(True)
        assert len(samples.responses) == len(samples.prompts) == B


def test_a_field_that_is_set_is_the_plugins_own(world, monkeypatch):
    """The next plugin, and the core, see what they were given."""
    rewards, score = world["rewards"], world["rewards"].score

    def reward_transform(self, rewards):
        rewards.score = rewards.score - 3
        return rewards

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    plugins = activate([("made", {})], "test")
    answer = plugins.call("made", "reward_transform", **given(world, "reward_transform"))
    assert rewards.score is score
    assert answer.score.tolist() == (score - 3).tolist()
    assert answer.samples is rewards.samples


def test_an_algorithm_that_changes_its_rollout_is_named(world):
    class Whitens(PolicyAlgorithm):
        def advantages(self, rollout, ctx):
            rollout.rewards.sub_(rollout.rewards.mean() + 1)
            return rollout.rewards, rollout.rewards

        def loss(self, batch, outputs, ctx):
            return {}

    with pytest.raises(UserError) as caught:
        advantages_of("mine", Whitens(), world["rollout"], world["ctx"])
    assert str(caught.value) == (
        "plugin 'mine': its 'advantages' changed rollout.rewards in place, which it is given to "
        "read; change a copy"
    )


def test_weights_that_were_put_back_are_unchanged(world, monkeypatch):
    def train_rm(self, initial):
        weight = next(initial.parameters()).data
        kept = weight.clone()
        weight.add_(1)
        weight.copy_(kept)
        return initial

    offered(monkeypatch, plugin(train_rm=train_rm))
    plugins = activate([("made", {})], "test")
    assert plugins.call("made", "train_rm", **given(world, "train_rm")) is world["model"]


def test_weights_are_known_by_more_than_their_norm(world):
    model, changes = world["policy"], (torch.Tensor.neg_, lambda x: x.copy_(x.flip(0) * 1.0001))
    *_, weight = model.parameters()
    for change in changes:
        before, kept = guards.fingerprint(model), weight.data.clone()
        change(weight.data)
        assert guards.fingerprint(model) != before
        weight.data.copy_(kept)
        assert guards.fingerprint(model) == before


TINY = ["iterations=1", "reward_model.updates=2", "rl.rollouts=1", "rl.rollout_size=8"]
TINY += ["rl.minibatch=8", "prompts.preference=8", "prompts.evaluation=4", "plugins=[made]"]


def test_rewards_that_are_changed_in_place_end_the_run(monkeypatch, tmp_path):
    """They went on with a proof of action of 0, and `score` was logged as changed."""

    def reward_transform(self, rewards):
        rewards.score.sub_(3)
        return rewards

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    with pytest.raises(UserError, match=r"'reward_transform' changed rewards\.score in place"):
        run("toy", tmp_path / "run", TINY)


def test_a_train_policy_that_changes_its_start_ends_the_run(monkeypatch, tmp_path):
    """It changed the SFT policy, so that the policy's KL to it was 0."""

    def train_policy(self, optimise, initial):
        with torch.no_grad():
            initial.lm.get_output_embeddings().weight.mul_(2)
        optimise.evaluate(initial, 1)
        return initial

    offered(monkeypatch, plugin(train_policy=train_policy))
    with pytest.raises(UserError, match="'train_policy' changed the weights of initial in place"):
        run("toy", tmp_path / "run", TINY)


def test_a_policy_of_the_history_is_the_plugins_own_at_each_load(monkeypatch, tmp_path):
    """It was the run's, until a resume loaded it anew."""
    found = []

    def init_policy(self, history):
        if not history.initial:
            made = history.sft.load().copy()
            grow(made)
            return made
        mine = history.initial[0].load()
        grow(mine)
        found.extend([mine, history.initial[0].load()])
        return history.sft

    offered(monkeypatch, plugin(init_policy=init_policy))
    run("toy", tmp_path / "run", [*TINY, "iterations=2"])
    kept = Policy.load_checkpoint(tmp_path / "run" / "iteration-1" / "policy_init", 1.0)
    distances = [distance(policy.lm, kept.lm) for policy in found]
    assert distances[0] > 0
    assert distances[1] == 0
