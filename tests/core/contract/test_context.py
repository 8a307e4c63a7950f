"""What a hook may ask of the run: where each part is there, samples, and what may be logged."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import ostinato
from distributions import offered, plugin
from kill_runs import MICRO
from ostinato.config.errors import NonFiniteError, UserError
from ostinato.contract.columns import COLUMNS
from ostinato.contract.context import PARTS
from ostinato.contract.discovery import hooks_of
from ostinato.models.generation import sample
from ostinato.models.prompts import PromptSet

TOKENS = [[2, 3], [4], [5, 2, 3]]
PROMPTS = PromptSet([7, 8, 9], ["b c", "d", "e b c"], TOKENS)


@pytest.fixture(name="made")
def _made(policies):
    return policies.make(generation={"temperature": 0.7})


# --- Parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_not_there_says_where_it_is(made, name):
    with pytest.raises(RuntimeError) as caught:
        getattr(made.ctx, name)
    assert str(caught.value) == f"ctx.{name} is there in {PARTS[name]} only"
    there = made.ctx.at(step=3, **{name: "this"})
    assert (getattr(there, name), there.step) == ("this", 3)
    assert getattr(there.at(step=4), name) == "this"  # and it stays
    other = next(part for part in PARTS if part != name)
    with pytest.raises(RuntimeError):
        getattr(there, other)


class Noting:
    """Every hook of the policy's optimisation, changing nothing."""

    given: ClassVar[dict] = {}

    def noted(self, name, ctx, answer=None):
        self.given[name] = ctx.policy, ctx.reference, ctx.reward
        return answer

    @ostinato.hookimpl
    def choose_prompts(self, count, ctx):
        return self.noted("choose_prompts", ctx, [0] * count)

    @ostinato.hookimpl
    def sampling_logits(self, logits, ctx):
        return self.noted("sampling_logits", ctx, logits)

    @ostinato.hookimpl
    def reward_transform(self, rewards, ctx):
        return self.noted("reward_transform", ctx, rewards)

    @ostinato.hookimpl
    def filter_rollout(self, rollout, ctx):
        return self.noted("filter_rollout", ctx, torch.arange(len(rollout.mask)))

    @ostinato.hookimpl
    def policy_loss(self, outputs, ctx):
        return self.noted("policy_loss", ctx, {"zero": outputs.logprobs.sum() * 0})

    @ostinato.hookimpl
    def policy_meta_update(self, ctx):
        return self.noted("policy_meta_update", ctx, {})

    @ostinato.hookimpl
    def kl_coefficient(self, ctx):
        return self.noted("kl_coefficient", ctx, 0.1)

    @ostinato.hookimpl
    def after_rollout(self, ctx):
        self.noted("after_rollout", ctx)


def test_the_policy_its_reference_and_the_reward_are_there_where_it_is_optimised(
    policies, function_reward, monkeypatch
):
    given, noted = Noting.given, Noting().noted
    given.clear()
    offered(monkeypatch, Noting)
    rl = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1}
    kit = policies.make(plugins=["ppo", "made"], rl=rl)
    algorithm = kit.plugins["ppo"].instance
    advantages, loss = algorithm.advantages, algorithm.loss
    algorithm.advantages = lambda *a: (noted("advantages", a[-1]), advantages(*a))[1]
    algorithm.loss = lambda *a: (noted("loss", a[-1]), loss(*a))[1]
    initial, reference = kit.word_policy(), kit.word_policy(1)
    reward = function_reward(lambda s: s.lengths.float())
    trained = kit.engine(TOKENS)(initial, reward, reference=reference)
    assert given.keys() == {*hooks_of(Noting), "advantages", "loss"}
    assert len(given) == 10
    for name, found in given.items():
        same = [a is b for a, b in zip(found, (trained, reference, reward), strict=True)]
        assert all(same), name


def test_the_methods_of_an_algorithm_are_told_which_update_and_micro_batch(
    policies, function_reward
):
    rl = {"rollouts": 2, "rollout_size": 8, "minibatch": 4, "accumulate": 2, "epochs": 1}
    kit = policies.make(plugins=["ppo"], rl=rl)
    algorithm, seen = kit.plugins["ppo"].instance, []
    advantages, loss = algorithm.advantages, algorithm.loss
    algorithm.advantages = lambda *a: (seen.append(("advantages", a[-1])), advantages(*a))[1]
    algorithm.loss = lambda *a: (seen.append(("loss", a[-1])), loss(*a))[1]
    kit.engine(TOKENS)(kit.word_policy(), function_reward(lambda s: s.lengths.float()))
    places = [(what, ctx.step, ctx.update, ctx.micro_batch) for what, ctx in seen]
    one = [("loss", 0, 0, 0), ("loss", 0, 0, 1), ("loss", 0, 1, 0), ("loss", 0, 1, 1)]
    two = [("loss", 1, 2, 0), ("loss", 1, 2, 1), ("loss", 1, 3, 0), ("loss", 1, 3, 1)]
    assert places == [("advantages", 0, 0, 0), *one, ("advantages", 1, 0, 0), *two]


def test_the_policies_so_far_are_there_in_every_iteration(monkeypatch, tmp_path):
    seen = []

    def refine_data(self, data, ctx):
        seen.append([handle.name for handle in (ctx.policies.sft, *ctx.policies.final)])
        with pytest.raises(RuntimeError, match=r"^ctx\.policy is there in the hooks of"):
            _ = ctx.policy
        return data

    offered(monkeypatch, plugin(refine_data=refine_data))
    settings = [*(s for s in MICRO if not s.startswith("plugins")), "plugins=[made]"]
    ostinato.run("toy", tmp_path / "run", [*settings, "rl.rollouts=1"])
    assert seen == [["sft"], ["sft", "iteration-1/policy"]]


# --- Samples --------------------------------------------------------------------------------------


def test_samples_are_drawn_for_the_purpose_at_the_place(made):
    policy, ctx = made.word_policy(), made.ctx.at(step=5, micro_batch=2)
    found = ctx.sample(policy, PROMPTS, "mine/peers", count=2)
    generator = ctx.generator("mine/peers")
    each = [row for row in TOKENS for _ in range(2)]
    wanted = sample(policy, each, made.config.generation, generator)
    assert torch.equal(found.response_ids, wanted.response_ids)
    assert found.tokens[0] == each
    assert found.prompts == ["b c", "b c", "d", "d", "e b c", "e b c"]
    assert torch.equal(
        ctx.sample(policy, PROMPTS, "mine/peers", 2).response_ids, found.response_ids
    )
    for other in (ctx.at(step=6), ctx.at(micro_batch=1), ctx.at(attempt=1), ctx.at(draw=1)):
        again = other.sample(policy, PROMPTS, "mine/peers", count=20).tokens[1]
        assert again != ctx.sample(policy, PROMPTS, "mine/peers", count=20).tokens[1]


@pytest.mark.parametrize("texts", [True, False])
def test_the_prompts_of_samples_are_prompts(made, texts):
    policy = made.word_policy()
    first = made.ctx.sample(policy, PROMPTS, "first")
    if not texts:
        first.texts = None
    again = made.ctx.sample(policy, first, "second", count=2)
    assert again.tokens[0] == [row for row in TOKENS for _ in range(2)]
    assert again.prompts == [text for text in first.prompts for _ in range(2)]


def log_chances(policy, prompt, temperature):
    with torch.no_grad():
        logits = policy.lm(input_ids=torch.tensor([prompt])).logits[0, -1].double().numpy()
    logits = logits / temperature
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("case", ["own", "hot", "nucleus", "mixture"])
def test_the_distribution_that_is_asked_for(made, case):
    """Six thousand first tokens of one prompt; the mixture is geometric, at the temperature."""
    made.config.generation.max_new_tokens = 1
    policy, other, prompt = made.word_policy(), made.word_policy(1), [2, 3]
    own, hot = log_chances(policy, prompt, 0.7), log_chances(policy, prompt, 2.0)
    asked, wanted = {
        "own": ({}, own),
        "hot": ({"temperature": 2.0}, hot),
        "nucleus": ({"top_p": 0.6}, own),
        "mixture": (
            {
                "shape": lambda logits, reference: 0.5 * logits + 0.5 * reference,
                "reference": other,
                "temperature": 2.0,
            },
            0.5 * hot + 0.5 * log_chances(other, prompt, 2.0),
        ),
    }[case]
    one = PromptSet([0], ["b c"], [prompt])
    found = made.ctx.sample(policy, one, "test", count=6000, **asked)
    counts = np.bincount(found.response_ids[:, 0].numpy(), minlength=len(wanted))
    chances = np.exp(wanted)
    if case == "nucleus":
        order = np.argsort(-chances)
        inside = np.searchsorted(np.cumsum(chances[order]), 0.6) + 1
        assert 0 < inside < len(chances)
        assert counts[order[inside:]].sum() == 0
        chances[order[inside:]] = 0
    expected = chances / chances.sum() * 6000
    kept = expected > 0
    assert chisquare(counts[kept], expected[kept]).pvalue > 0.01
    if case == "mixture":
        drawn = wanted - np.log(np.exp(wanted).sum())
        at = found.response_ids[:, 0].numpy()
        np.testing.assert_allclose(found.logprobs[:, 0].numpy(), drawn[at], atol=1e-5)


def test_temperature_0_is_the_greedy_response(made):
    policy = made.word_policy()
    found = made.ctx.sample(policy, PROMPTS, "greedy", count=2, temperature=0)
    for prompt, response in zip(*found.tokens, strict=True):
        text = list(prompt)
        for token in response:
            assert token == log_chances(policy, text, 1.0).argmax()
            text.append(token)
    assert (found.logprobs == 0).all()


# --- The log --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl", "score", "kind", "gold_wins", "terms"])
def test_no_column_of_the_core_may_be_logged(made, name):
    with pytest.raises(UserError) as caught:
        made.ctx.log(**{"mine/right": 1.0, name: 2.0})
    assert str(caught.value) == (
        f"ctx.log: '{name}' is a column of the core; give it a name of its own, such as "
        f"'my_plugin/{name}'"
    )
    assert made.ctx.logged == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("high", "'mine/x' is a str, expected a number"),
        (True, "'mine/x' is a bool, expected a number"),
        (None, "'mine/x' is a NoneType, expected a number"),
        (torch.zeros(2), "'mine/x' is a Tensor, expected a number"),
        (float("nan"), "'mine/x' is nan, which is not finite"),
        (torch.tensor(float("inf")), "'mine/x' is inf, which is not finite"),
    ],
)
def test_what_is_no_finite_number_is_refused(made, value, said):
    with pytest.raises(UserError) as caught:
        made.ctx.log(**{"mine/x": value})
    assert str(caught.value) == f"ctx.log: {said}"
    assert isinstance(caught.value, NonFiniteError) == ("finite" in said)


def test_numbers_of_any_kind_are_logged_as_json_holds_them(made):
    made.ctx.log(a=1, b=2.5, c=np.float32(0.5), d=torch.tensor(3), e=np.int64(4))
    assert json.loads(json.dumps(made.ctx.logged)) == {"a": 1, "b": 2.5, "c": 0.5, "d": 3, "e": 4}


def test_a_wrong_log_names_the_plugin_and_a_right_one_stands_in_the_row(
    policies, function_reward, monkeypatch
):
    name = "kl"

    def reward_transform(self, rewards, ctx):
        ctx.log(**{name: 1.0})
        return rewards

    offered(monkeypatch, plugin(reward_transform=reward_transform))
    rl = {"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1}
    kit = policies.make(plugins=["made"], rl=rl)

    def train():
        kit.engine(TOKENS)(kit.word_policy(), function_reward(lambda s: s.lengths.float()))

    with pytest.raises(UserError) as caught:
        train()
    assert caught.value.__notes__[0].startswith("in plugin 'made', hook 'reward_transform' (")
    name = "mine/kl"
    train()
    assert kit.rows[0]["mine/kl"] == 1.0


def test_the_columns_are_those_of_a_runs_rows(tmp_path, monkeypatch):
    """Of a run in which a policy is kept and one stopped, so that every kind of row is there."""

    def after_rollout(self, row):
        return ostinato.STOP if row["step"] == 2 else ostinato.KEEP

    offered(monkeypatch, plugin(after_rollout=after_rollout))
    settings = [*(s for s in MICRO if not s.startswith("plugins")), "plugins=[made]"]
    run = ostinato.run("toy", tmp_path / "run", settings)
    found = {name for row in run.metrics for name in row}
    assert {row["kind"] for row in run.metrics} >= {"kept", "stopped", "policy", "eval"}
    assert found == COLUMNS
