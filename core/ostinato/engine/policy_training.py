"""Optimise the policy: rollout upon rollout, evaluations and checkpoints between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from ostinato.config.errors import UserError
from ostinato.contract.algorithms import size_fault
from ostinato.contract.answers import wrong
from ostinato.contract.columns import is_number
from ostinato.contract.context import Context
from ostinato.contract.hookspecs import KEEP, STOP
from ostinato.contract.plugins import Plugins
from ostinato.contract.policy_algorithm import PolicyAlgorithm
from ostinato.engine.policy_update import PolicyUpdate
from ostinato.engine.rollouts import Rollouts
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward
from ostinato.runs.checkpoints import Schedule, Training
from ostinato.runs.directory import RunDirectory

IDENTITY = {"kind", "iteration", "name", "step", "total", "actions"}  # columns of every policy row
Log = Callable[..., dict[str, Any]]
Evaluate = Callable[[Policy, int], None]


@dataclass
class Progress:
    """How far a run of ``optimise`` has come, as its checkpoints hold it."""

    step: int = 0  # rollouts done
    kl: float | None = None  # of the last
    stopped: bool = False
    kept_at: int = 0  # the rollout, from 1, whose policy a plugin keeps; 0 while there is none


@dataclass
class PolicyTrainer:
    """``optimise`` of one iteration, as ``train_policy`` hooks and the loop call it.

    ``latest``: R~_k, which the value model may start from.
    """

    plugins: Plugins
    ctx: Context
    directory: RunDirectory
    stage: str
    prompts: PromptSet
    write: Log
    record: Evaluate
    latest: Reward | None = None
    updates: int = 0
    evaluations: int = 0
    rows: int = 0  # that `log` was asked for
    names: frozenset[str] = frozenset()

    def __call__(
        self,
        initial: Policy,
        reward_model: Reward,
        *,
        reference: Policy | None = None,
        on_update: Callable[[Policy, Policy], None] | None = None,
        name: str = "policy",
        evaluate: bool = True,
    ) -> Policy:
        """A policy optimised on ``reward_model`` from a copy of ``initial``.

        ``reference`` anchors the KL, ``initial`` by default. ``on_update(policy, reference)`` runs
        after every optimiser update and may change the reference in place; it is a copy of
        ``initial`` then, unless one is given. ``name`` tells several runs of one iteration apart.
        Where an ``after_rollout`` kept a policy, the last one kept is the answer, and evaluated.
        Raises NonFiniteError, which names iteration, step and plugin.
        """
        settings = self.ctx.config.rl
        assert settings.rollouts is not None
        if type(initial) is not Policy:  # `copy` makes a plain one
            fault = f"gave optimise a {type(initial).__name__}, expected an ostinato.Policy"
            raise wrong(self.plugins.owners["train_policy"], "train_policy", fault)
        algorithm = self._algorithm()
        policy = initial.copy().to(self.ctx.device)
        if algorithm.value_heads:
            policy.with_value(self.ctx.config.policy.value, self.latest, algorithm.value_heads)
        own = initial if on_update is None else initial.copy()  # what is given is never changed
        anchor = own if reference is None else reference
        optimiser = torch.optim.Adam(
            policy.parameters(), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
        )
        shared = (self.plugins, policy, anchor, algorithm, name)
        rollouts = Rollouts(*shared, self.prompts, reward_model)
        update = PolicyUpdate(*shared, optimiser, on_update)
        policies = {"policy": policy} | ({"reference": anchor} if on_update else {})
        training = Training(policies, optimiser)
        done = self._restore(name, training)
        saved = Schedule(self.ctx.config.checkpoint_every, policy)
        run = self.ctx.at(policy=policy, reference=anchor, reward=reward_model)
        run = run.at(training="" if name == "policy" else name)
        if done.step == 0 and evaluate:
            self.record(policy, 0)
        while done.step < settings.rollouts and not done.stopped:
            row = self._rollout(rollouts, update, done, run.at(step=done.step))
            written = self.write("policy", name=name, total=settings.rollouts, **row)
            self._after(written, done, training, run)
            last = done.stopped or done.step == settings.rollouts
            if evaluate and (last or done.step % self.ctx.config.evaluation.every == 0):
                self.record(policy, done.step)
            if saved.due(done.step) or last:
                facts = asdict(done) | {"updates": self.updates, "rows": self.rows}
                made = training.tensors()
                self.directory.save_checkpoint(self.stage, name, done.step, made, facts)
        if done.kept_at not in (0, done.step):
            training.take_kept("policy")
            if evaluate:
                self._evaluate_once(f"kept {name}", policy, done.kept_at)
        return policy

    def _rollout(
        self, rollouts: Rollouts, update: PolicyUpdate, done: Progress, ctx: Context
    ) -> dict[str, Any]:
        """One rollout and its updates; answers its row."""
        started = time.perf_counter()
        with ctx.located():
            rollout, whole, row = rollouts(ctx, done.kl)
            sampled = time.perf_counter()
            row |= update(rollout, whole, self.updates, ctx)
        done.step, done.kl, self.updates = done.step + 1, row["kl"], row["updates"]
        row["actions"] = self.plugins.taken_actions()
        row["seconds"] = {"rollout": sampled - started, "update": time.perf_counter() - sampled}
        return {"step": done.step, **row}

    @torch.no_grad()
    def _after(self, row: dict[str, Any], done: Progress, training: Training, run: Context) -> None:
        """Tell the plugins with ``after_rollout`` of its row, and do what they answer."""
        hook, ctx = "after_rollout", run.at(step=done.step - 1)
        for plugin in self.plugins.implementing(hook):
            given = {"row": deepcopy(row), "policy": ctx.policy, "ctx": ctx}
            with ctx.located():
                answer = self.plugins.call(plugin, hook, **given)
            self.plugins.acted(plugin, hook, float(answer is not None))
            if answer == KEEP:
                training.keep("policy")
                done.kept_at = done.step
            elif answer == STOP:
                done.stopped = True
            if answer is not None:
                kind = "kept" if answer == KEEP else "stopped"
                self.write(kind, name=row["name"], step=done.step, plugin=plugin)

    def evaluate(self, policy: Policy, step: int) -> None:
        """Write an ``eval`` row of any policy, before, between or after the runs.

        A checkpoint of its own keeps it from being made again when a killed run goes on: the rows
        of the runs behind it would be cut off.
        """
        self.evaluations += 1
        self._evaluate_once(f"evaluation-{self.evaluations}", policy, step)

    def _evaluate_once(self, name: str, policy: Policy, step: int) -> None:
        self._take(name)
        found = self.directory.load_checkpoint(self.stage, name)
        if found is None:
            self.record(policy, step)
            self.directory.save_checkpoint(self.stage, name, step, {}, {"rows": self.rows})
        else:
            self.rows = found[2]["rows"]

    def log(self, step: int, **numbers: float) -> None:
        """Write a ``policy`` row of a training that the plugin does itself.

        When a killed run goes on, rows that a checkpoint stands behind are there already.
        """
        owner, hook = self.plugins.owners["train_policy"], "train_policy"
        for key, value in numbers.items():
            if key in IDENTITY or not is_number(value) or not math.isfinite(value):
                fault = (
                    f"logged {key} = {value!r}, expected a finite number under a name of its own"
                )
                raise wrong(owner, hook, fault)
        self.rows += 1
        if self.rows > self._kept_rows:
            row = {key: float(value) for key, value in numbers.items()}
            place = {"name": owner, "step": step, "total": self.ctx.config.rl.rollouts}
            self.write("policy", **place, **row, actions=self.plugins.taken_actions())

    @cached_property
    def _kept_rows(self) -> int:
        """How many of ``log`` stand before a checkpoint of the process that was killed."""
        found = self.directory.checkpoint_facts(self.stage)
        return max((facts["rows"] for facts in found), default=0)

    def _take(self, name: str) -> None:
        """UserError if the name is taken: one run would go on from the other's checkpoint."""
        if name in self.names:
            raise UserError(
                f"plugin '{self.plugins.owners.get('train_policy')}': hook 'train_policy' made two "
                f"runs with the name '{name}'; give each a name of its own, optimise(name=...)"
            )
        self.names |= {name}

    def _algorithm(self) -> PolicyAlgorithm:
        algorithm: PolicyAlgorithm = self.plugins.one("policy_algorithm", ctx=self.ctx)
        owner = self.plugins.owners["policy_algorithm"]
        if fault := size_fault(owner, algorithm, self.ctx.config.rl):
            raise UserError(fault)
        return algorithm

    def _restore(self, name: str, training: Training) -> Progress:
        """How far the run was when it was killed; what training moves is as it was then."""
        self._take(name)
        self.updates = 0
        found = self.directory.load_checkpoint(self.stage, name)
        if found is None:
            return Progress()
        _, tensors, facts = found
        training.load(tensors)
        self.updates, self.rows = facts.pop("updates"), facts.pop("rows")
        return Progress(**facts)
