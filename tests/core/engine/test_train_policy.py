"""A plugin that trains the policy itself: what it is given, what it logs, what it may answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file

import ostinato
from distributions import offered, plugin
from kill_runs import Crash, crash_at, differing, outcome
from ostinato import Policy, UserError, hookimpl, load_config
from ostinato.data.prompts import split_prompts

TINY = [
    "iterations=1",
    "plugins=[made]",
    "prompts.preference=8",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "reward_model.updates=3",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "checkpoint_every=1",
]


class Direct:
    """Raises the likelihood of the chosen responses by itself, beside a run of the core's."""

    seen: list = []

    @hookimpl
    def train_policy(self, optimise, initial, reward_model, data, prompts, ctx):
        Direct.seen.append((data, prompts))
        policy = initial.copy()
        chosen = ctx.responses(data, "chosen")
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.01)
        optimise.evaluate(policy, 0)
        for step in (1, 2):
            loss = -policy.logprobs(chosen).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            ctx.log(**{"direct/margin": 2.0 * step})
            optimise.log(step, loss=loss.detach(), kl=1)
        optimise.evaluate(policy, 2)

        def on_update(moving, anchor):
            optimise.log(3, moved=ostinato.distance(moving.lm, anchor.lm))

        optimise(policy, reward_model, on_update=on_update, evaluate=False)
        optimise.log(4, loss=0.5)
        return policy


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """The folder of a whole run, and how its writes follow each other."""
    Direct.seen = []
    folder = tmp_path_factory.mktemp("direct") / "run"
    with pytest.MonkeyPatch.context() as patch, crash_at(-1) as writes:
        offered(patch, Direct)
        run = ostinato.run("toy", folder, TINY)
    return run, writes


def test_it_is_given_the_training_data_and_the_rl_prompts(direct):
    run, _ = direct
    ((data, prompts),) = Direct.seen
    kept = Dataset.from_file(str(run.directory / "iteration-1" / "data" / "data.arrow"))
    assert data.to_list() == kept.to_list()
    wanted = split_prompts(load_config("toy", TINY).prompts)["rl"]
    assert (prompts.ids, prompts.texts) == (wanted.ids, wanted.texts)


def test_its_rows_carry_its_name_and_stand_among_the_cores(direct):
    run, _ = direct
    rows = [row for row in run.metrics if row["kind"] == "policy"]
    own = [row for row in rows if row["name"] == "made"]
    assert [row["step"] for row in own] == [1, 2, *[3] * (len(own) - 3), 4]
    assert [row["total"] for row in rows] == [2] * len(rows)
    assert own[0]["kl"] == 1.0
    assert own[0]["loss"] > own[1]["loss"] > 0
    assert [row.get("direct/margin") for row in own[:3]] == [2.0, 4.0, None]
    assert [row["name"] for row in rows if row not in own] == ["policy"] * 2


def test_its_magnitude_is_how_far_the_weights_went(direct):
    run, _ = direct
    first, last = (
        load_file(run.directory / place / "model.safetensors")
        for place in ("sft", "iteration-1/policy")
    )
    far = sum(float(np.square(first[k].astype("f8") - last[k]).sum()) for k in first) ** 0.5
    seen = [row["actions"] for row in run.metrics if row["kind"] == "actions"]
    (moved,) = [each["made.train_policy"] for each in seen if "made.train_policy" in each]
    assert moved == pytest.approx(far, rel=1e-5)


@pytest.mark.parametrize(
    ("place", "later"),
    [
        ("after iteration-1/policy.checkpoints/evaluation-1-0", 3),  # between its first rows
        ("after iteration-1/policy.checkpoints/evaluation-2-2", 0),
        ("after iteration-1/policy.checkpoints/policy-1", 4),  # rows of `on_update` behind it
        ("after iteration-1/policy.checkpoints/policy-2", 1),
    ],
)
def test_a_killed_run_writes_no_row_twice_and_leaves_none_out(
    direct, monkeypatch, tmp_path, place, later
):
    run, writes = direct
    offered(monkeypatch, Direct)
    with crash_at(writes.index(place) + later), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "run", TINY)
    ostinato.run("toy", tmp_path / "run", TINY)
    assert differing(outcome(tmp_path / "run"), outcome(run.directory)) == []


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ({"name": 1.0}, "name = 1.0"),
        ({"kind": 1.0}, "kind = 1.0"),
        ({"loss": float("nan")}, "loss = nan"),
        ({"loss": "low"}, "loss = 'low'"),
        ({"loss": torch.zeros(2)}, r"loss = tensor\(\[0., 0.\]\)"),
    ],
)
def test_what_it_logs_is_checked(policies, monkeypatch, numbers, fault):
    offered(monkeypatch, plugin(train_policy=lambda self: None))
    kit = policies.make(plugins=["made"])
    with pytest.raises(UserError, match=f"plugin 'made': hook 'train_policy' logged {fault}, exp"):
        kit.engine([[100, 101]]).log(1, **numbers)
    kit.engine([[100, 101]]).log(1, loss=torch.tensor(2.0), kl=1)
    (row,) = kit.rows
    assert (row["loss"], row["kl"]) == (2.0, 1.0)


class Greedy(Policy):
    """A policy whose way of answering no copy and no checkpoint knows."""


def subclass(policy):
    return Greedy(policy.copy().lm, policy.tokenizer, policy.temperature)


@pytest.mark.parametrize(
    ("hooks", "fault"),
    [
        (
            {"init_policy": lambda self, history: subclass(history.sft.load())},
            "'init_policy' answered a Greedy, expected an ostinato.Policy or one of the history's",
        ),
        (
            {"train_policy": lambda self, initial: subclass(initial)},
            "'train_policy' answered a Greedy, expected an ostinato.Policy",
        ),
        (
            {
                "train_policy": lambda self, optimise, initial, reward_model: optimise(
                    subclass(initial), reward_model
                )
            },
            "'train_policy' gave optimise a Greedy, expected an ostinato.Policy",
        ),
    ],
)
def test_a_subclass_of_policy_is_refused(monkeypatch, tmp_path, hooks, fault):
    """`optimise` trained a plain copy of it, and the checkpoint held another policy."""
    offered(monkeypatch, plugin(**hooks))
    with pytest.raises(UserError, match=f"plugin 'made': hook {fault}"):
        ostinato.run("toy", tmp_path / "run", TINY)
