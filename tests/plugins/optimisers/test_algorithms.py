"""What every policy algorithm without a value head must do on the engine, and in a whole run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import ostinato
from kill_runs import Crash, crash_at, differing, outcome
from ostinato.config.errors import UserError
from ostinato.engine.rollouts import Rollouts
from ostinato.engine.session import check

ALGORITHMS: dict[str, dict[str, Any]] = {
    "rloo": {"responses": 4},
    "grpo": {"responses": 4},
    "reinforce": {},
    "rejection_sampling": {"responses": 4},
}
SETTINGS = [*ALGORITHMS.items(), ("grpo", {"responses": 4, "mean": "tokens"})]
PROMPTS = [[2], [3, 4], [5, 2, 2], [2, 4]]


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_accumulation_changes_nothing(policies, function_reward, name, settings):
    found = {}
    for accumulate in (1, 4):
        # the wide eps keeps Adam from blowing up gradients that are rounding errors
        rl = {"rollouts": 1, "rollout_size": 16, "minibatch": 16, "epochs": 2, "lr": 1e-2}
        kit = policies.make(
            plugins=[{name: settings}],
            rl={**rl, "accumulate": accumulate, "eps": 1e-2},
            generation={"max_new_tokens": 6},
        )
        optimise, initial = kit.engine(PROMPTS), kit.word_policy()
        trained = optimise(
            initial,
            function_reward(lambda s: (s.response_ids == 4).float().sum(1) + s.lengths / 4),
            reference=kit.word_policy(2),
        )
        found[accumulate] = kit.rows[0], dict(trained.named_parameters())
    (row, parameters), (other, changed) = found.values()
    assert row["length"] % 1 != 0  # ragged responses
    for key, p in changed.items():
        torch.testing.assert_close(p, parameters[key], atol=1e-6, rtol=0)
    assert other["terms"] == pytest.approx(row["terms"], abs=1e-5)
    before = dict(initial.named_parameters())["lm.lm_head.weight"]
    assert (parameters["lm.lm_head.weight"] - before).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_what_it_logs_at_first_and_how_it_raises_the_reward(
    policies, function_reward, name, settings
):
    kit = policies.make(
        plugins=[{name: settings}],
        rl={"rollouts": 20, "rollout_size": 64, "minibatch": 64, "epochs": 1, "lr": 1e-2},
        kl={"coefficient": 0.01},
        generation={"max_new_tokens": 3},
    )
    optimise = kit.engine(PROMPTS)
    optimise(kit.word_policy(), function_reward(lambda s: (s.response_ids == 4).float().mean(1)))
    scores = [row["score"] for row in kit.rows]
    assert scores[0] < 0.5
    assert sum(scores[-5:]) / 5 > 0.85
    assert kit.rows[0]["kl"] == 0.0
    for row in kit.rows:  # one update a rollout: the policy is the one that sampled
        assert row["terms"].get("log/ratio", 1.0) == pytest.approx(1.0, abs=1e-5)
    assert {row["kept"] for row in kit.rows} == {16 if name == "rejection_sampling" else 64}
    if name == "grpo":
        assert kit.rows[0]["terms"]["log/kl"] == pytest.approx(0.0, abs=1e-6)
        assert kit.rows[-1]["terms"]["kl"] > 0


def test_the_kl_in_grpos_loss_holds_the_policy(policies, function_reward):
    """Its coefficient is the controller's times kl_scale, as of the KL in the reward."""
    found = []
    for coefficient in (0.0, 3.0):
        kit = policies.make(
            plugins=["grpo"],
            rl={"rollouts": 20, "rollout_size": 64, "minibatch": 64, "epochs": 1, "lr": 1e-2},
            kl={"coefficient": coefficient},
            generation={"max_new_tokens": 2},
        )
        reward = function_reward(lambda s: (s.response_ids == 4).float().mean(1))
        kit.engine(PROMPTS)(kit.word_policy(), reward)
        found.append(sum(row["kl"] for row in kit.rows[-5:]) / 5)
    free, held = found
    assert held < 0.3 * free


def test_the_kl_in_grpos_loss_is_weighted_by_what_transforms_made_of_it(
    policies, function_reward, monkeypatch
):
    """Each response's coefficient is the controller's times its own kl_scale, as sharpe sets it."""
    kit = policies.make(
        plugins=["grpo"],
        rl={"rollouts": 1, "rollout_size": 8, "minibatch": 8, "epochs": 1},
        kl={"coefficient": 0.3},
    )
    scale = torch.arange(8.0)
    monkeypatch.setattr(
        Rollouts, "_transformed", lambda _, rewards, ctx: replace(rewards, kl_scale=scale)
    )
    algorithm, seen = kit.plugins["grpo"].instance, []
    loss = algorithm.loss
    monkeypatch.setattr(algorithm, "loss", lambda b, *o: (seen.append((b, o[0])), loss(b, *o))[1])
    reward = function_reward(lambda s: s.lengths.float())
    kit.engine(PROMPTS)(kit.word_policy(), reward, reference=kit.word_policy(1))
    batch, outputs = seen[0]
    assert sorted(batch.kl_coefficient.tolist()) == pytest.approx((0.3 * scale).tolist())
    kl = (batch.ref_logprobs - outputs.logprobs).detach()
    kl = ((kl.exp() - kl - 1) * batch.mask).sum(1) / batch.mask.sum(1)
    wanted = float((batch.kl_coefficient * kl).mean())
    assert kit.rows[0]["terms"]["kl"] == pytest.approx(wanted, rel=1e-4)
    assert wanted > 0.01


@pytest.mark.parametrize("name", ["rloo", "grpo", "rejection_sampling"])
def test_groups_that_do_not_fit_are_refused(policies, function_reward, name):
    settings = ["rl.rollout_size=8", "rl.minibatch=8", f"plugins=[{{{name}: {{responses: 3}}}}]"]
    said = f"toy: rl.rollout_size: 8 is no multiple of the 3 responses a prompt of plugin '{name}'"
    with pytest.raises(UserError) as caught:
        check(ostinato.load_config("toy", settings), "toy")
    assert str(caught.value) == said
    rl = {"rollouts": 1, "rollout_size": 8, "minibatch": 8}
    kit = policies.make(plugins=[{name: {"responses": 3}}], rl=rl)
    with pytest.raises(UserError, match=f"^{said.removeprefix('toy: ')}$"):
        kit.engine(PROMPTS)(kit.word_policy(), function_reward(lambda s: s.lengths.float()))


MICRO = [
    "iterations=1",
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=4",
    "evaluation.every=2",
    "checkpoint_every=1",
]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_that_was_cut_short_ends_as_if_it_had_not_been(name, tmp_path):
    plugins = ["concat", {name: ALGORITHMS[name]}]
    if name != "rejection_sampling":
        plugins.append({"adaptive_kl": {"target": 0.05, "horizon": 100}})
    settings = [*MICRO, f"plugins={plugins}"]
    with crash_at(-1) as writes:
        run = ostinato.run("toy", tmp_path / "whole", settings)
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    assert all(row["actions"][f"{name}.policy_algorithm"] > 0 for row in rows)
    place = writes.index("before iteration-1/policy.checkpoints/policy-2")
    with crash_at(place), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "run", settings)
    ostinato.run("toy", tmp_path / "run", settings)
    assert differing(outcome(tmp_path / "run"), outcome(tmp_path / "whole")) == []
    if name != "rejection_sampling":
        assert len({row["kl_coefficient"] for row in rows}) == 2
