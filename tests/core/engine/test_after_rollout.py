"""Plugins that keep a policy or end its optimisation: what is left, logged and evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ostinato
from distributions import offered, plugin
from kill_runs import MICRO, Crash, crash_at, differing, outcome
from ostinato import KEEP, STOP
from ostinato.config.errors import UserError
from ostinato.report.results import read_run

PROMPTS = [[2], [3, 4], [5, 2, 2], [2, 4]]
SMALL = {"rollouts": 5, "rollout_size": 4, "minibatch": 4, "epochs": 1, "lr": 1e-2}


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[int, str], name: str = "made") -> None:
    """A plugin that answers these after these rollouts, from 1."""
    made = plugin(after_rollout=lambda self, row: answers.get(row["step"]))
    offered(monkeypatch, made, name)


def weights(policy: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.lm.named_parameters()}


def trained(
    policies: Any, function_reward: Any, *plugins: str, **asked: Any
) -> tuple[Any, Any, list[tuple[int, dict[str, torch.Tensor]]], list[dict[str, torch.Tensor]]]:
    """The kit, the policy that comes out, every evaluation, and the weights after each rollout."""
    kit = policies.make(plugins=["ppo", *plugins], rl=SMALL, evaluation={"every": 2})
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []
    optimise = kit.engine(PROMPTS, lambda policy, step: seen.append((step, weights(policy))))
    log, after = optimise.write, []

    def logged(kind: str, **row: Any) -> Any:
        if kind == "policy":
            after.append(weights(optimise.watched))
        return log(kind, **row)

    optimise.write = logged
    initial = kit.word_policy()
    copy = initial.copy
    initial.copy = lambda: setattr(optimise, "watched", copy()) or optimise.watched
    reward = function_reward(lambda s: (s.response_ids == 4).float().mean(1))
    found = optimise(initial, reward, **asked)
    return kit, found, seen, after


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, other[name]) for name, p in one.items())


def others(kit: Any) -> list[tuple[str, int, str, str]]:
    return [(row["kind"], row["step"], row["name"], row["plugin"]) for row in kit.others]


def test_nobody_who_answers_changes_nothing(policies, function_reward, monkeypatch):
    answering(monkeypatch, {})
    found = [trained(policies, function_reward, *names) for names in ((), ("made",))]
    assert same(weights(found[0][1]), weights(found[1][1]))
    assert [step for step, _ in found[1][2]] == [0, 2, 4, 5]
    assert others(found[1][0]) == []
    assert found[1][0].rows[1]["actions"]["made.after_rollout"] == 0


def test_stop_ends_the_optimisation_after_an_evaluation(policies, function_reward, monkeypatch):
    answering(monkeypatch, {3: STOP})
    kit, policy, evaluated, after = trained(policies, function_reward, "made")
    assert [row["step"] for row in kit.rows] == [1, 2, 3]
    assert [step for step, _ in evaluated] == [0, 2, 3]
    assert same(weights(policy), after[-1])
    assert same(evaluated[-1][1], after[-1])
    assert others(kit) == [("stopped", 3, "policy", "made")]
    assert kit.directory.checkpoints[-1][0] == 3


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_last_kept_policy_is_the_answer_and_is_evaluated_last(
    policies, function_reward, monkeypatch, evaluate
):
    answering(monkeypatch, {1: KEEP, 3: KEEP})
    kit, policy, evaluated, after = trained(policies, function_reward, "made", evaluate=evaluate)
    assert len(kit.rows) == 5
    assert same(weights(policy), after[2])
    assert not same(after[2], after[4])
    assert [step for step, _ in evaluated] == ([0, 2, 4, 5, 3] if evaluate else [])
    assert not evaluate or same(evaluated[-1][1], after[2])
    assert others(kit) == [("kept", 1, "policy", "made"), ("kept", 3, "policy", "made")]
    assert kit.rows[3]["actions"]["made.after_rollout"] == 1  # what came after rollout 3


def test_one_plugin_keeps_and_another_stops(policies, function_reward, monkeypatch):
    answering(monkeypatch, {2: KEEP, 4: KEEP}, "best")
    answering(monkeypatch, {4: STOP}, "early")
    kit, policy, evaluated, after = trained(policies, function_reward, "early", "best")
    assert same(weights(policy), after[3])
    assert [step for step, _ in evaluated] == [0, 2, 4]  # the kept one is the last one
    assert others(kit)[1:] == [("stopped", 4, "policy", "early"), ("kept", 4, "policy", "best")]


def test_the_row_is_that_of_the_metrics_and_a_copy(policies, function_reward, monkeypatch):
    given = []

    def reward_transform(self, rewards, ctx):
        ctx.log(**{"made/logged": 2.0})
        return rewards

    def after_rollout(self, row, policy, ctx):
        given.append((dict(row), policy, ctx.step, torch.is_grad_enabled()))
        row["kl"] = row["terms"]["policy"] = -1.0
        ctx.log(**{"made/after": 3.0})

    offered(monkeypatch, plugin(reward_transform=reward_transform, after_rollout=after_rollout))
    kit, policy, *_ = trained(policies, function_reward, "made")
    for (row, given_policy, step, grad), written in zip(given, kit.rows, strict=True):
        assert row | {"kl": 0, "terms": 0} == written | {"kl": 0, "terms": 0}
        assert written["kl"] != -1
        assert written["terms"]["policy"] != -1
        assert row["made/logged"] == 2.0
        assert (given_policy is policy, step, grad) == (True, row["step"] - 1, False)
    assert ["made/after" in row for row in kit.rows] == [False, True, True, True, True]


@pytest.mark.parametrize("answer", ["halt", True, 0, "KEEP"])
def test_any_other_answer_is_an_error_that_names_the_plugin(
    policies, function_reward, monkeypatch, answer
):
    answering(monkeypatch, {2: answer})
    with pytest.raises(UserError) as caught:
        trained(policies, function_reward, "made")
    assert str(caught.value) == (
        f"plugin 'made': hook 'after_rollout' answered {answer!r}, expected ostinato.STOP, "
        "ostinato.KEEP or None"
    )


# --- In a run that is killed ----------------------------------------------------------------------

TOY = [
    *(s for s in MICRO if not s.startswith(("plugins", "iterations", "rl.rollouts"))),
    "iterations=1",
    "rl.rollouts=6",
    "plugins=[made]",
]


class Best:
    """Keeps the policies of rollouts 1 and 2, and stops after 4; it counts what it was told."""

    def __init__(self) -> None:
        self.told = 0

    @ostinato.hookimpl
    def after_rollout(self, row: Any, ctx: Any) -> str | None:
        self.told += 1
        ctx.log(**{"best/told": self.told})
        return {1: KEEP, 2: KEEP, 4: STOP}.get(row["step"])

    def state_dict(self) -> dict[str, int]:
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.told = state["told"]


class Twice(Best):
    """The same in two runs of one iteration."""

    @ostinato.hookimpl
    def train_policy(self, optimise: Any, initial: Any, reward_model: Any) -> Any:
        first = optimise(initial, reward_model, name="first")
        return optimise(first, reward_model, name="second")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "settings", "stride"),
    [(Best, [], 1), (Best, ["checkpoint_every=3"], 2), (Twice, [], 3)],
)
def test_killed_anywhere_it_ends_with_the_same_rows_and_weights(
    made: type,
    settings: list[str],
    stride: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every write of the policy's optimisation fails once, or every so many of them."""
    offered(monkeypatch, made)
    toy = [*TOY, *settings]
    with crash_at(-1) as writes:
        ostinato.run("toy", tmp_path / "whole", toy)
    wanted = outcome(tmp_path / "whole")
    start = writes.index("after iteration-1/policy_init") + 1
    with crash_at(start), pytest.raises(Crash):
        ostinato.run("toy", tmp_path / "begun", toy)
    for number in range(0, len(writes) - start, stride):
        out = tmp_path / "run"
        shutil.copytree(tmp_path / "begun", out)
        with crash_at(number), pytest.raises(Crash):
            ostinato.run("toy", out, toy)
        ostinato.run("toy", out, toy)
        assert differing(outcome(out), wanted) == [], writes[start + number]
        shutil.rmtree(out)


def test_killed_after_what_was_kept_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered(monkeypatch, Best)
    with crash_at(-1) as writes:
        run = ostinato.run("toy", tmp_path / "whole", TOY)
    kinds = [(row["kind"], row["step"]) for row in run.metrics if row["kind"] in KINDS]
    assert kinds == [
        *[("eval", 0), ("policy", 1), ("kept", 1), ("policy", 2), ("kept", 2), ("eval", 2)],
        *[("policy", 3), ("policy", 4), ("stopped", 4), ("eval", 4), ("eval", 2)],
    ]
    told = [row["best/told"] for row in run.metrics if "best/told" in row]
    assert told == [1, 2, 3, 4]  # each in the row after it
    last = [row for row in run.metrics if row["kind"] == "eval"][-1]
    assert run.iterations[-1]["kl"] == last["kl"]
    assert [row["step"] for row in read_run(tmp_path / "whole").evaluations] == [0, 2, 2, 4]
    for place in ("after iteration-1/policy.checkpoints/policy-3", "before iteration-1/policy"):
        with crash_at(writes.index(place) + (place[0] == "a")), pytest.raises(Crash):
            ostinato.run("toy", tmp_path / place[:3], TOY)
        ostinato.run("toy", tmp_path / place[:3], TOY)
        assert differing(outcome(tmp_path / place[:3]), outcome(tmp_path / "whole")) == []


KINDS = {"eval", "policy", "kept", "stopped"}


def test_a_refilled_rollout_is_drawn_the_same_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompts, responses and their number come from the place of the run alone."""

    def filter_rollout(self: Any, rollout: Any) -> torch.Tensor:
        return (rollout.score > 0.3).nonzero().flatten()

    made = plugin(filter_rollout=filter_rollout)
    made.refill = 3
    offered(monkeypatch, made)
    toy = [s for s in TOY if not s.startswith("rl.rollouts")] + ["rl.rollouts=4"]
    with crash_at(-1) as writes:
        run = ostinato.run("toy", tmp_path / "whole", toy)
    attempts = [row["attempts"] for row in run.metrics if row["kind"] == "policy"]
    assert len(set(attempts)) > 1
    for step in (2, 4):
        place = writes.index(f"before iteration-1/policy.checkpoints/policy-{step}")
        out = tmp_path / f"run-{step}"
        with crash_at(place), pytest.raises(Crash):
            ostinato.run("toy", out, toy)
        ostinato.run("toy", out, toy)
        assert differing(outcome(out), outcome(tmp_path / "whole")) == []
