"""Optimise the policy: rollout upon rollout, evaluations and checkpoints between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ostinato.config.errors import UserError
from ostinato.contract.batches import PolicyAlgorithm
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.data.prompts import PromptSet
from ostinato.engine.policy_update import PolicyUpdate
from ostinato.engine.rollouts import Rollouts
from ostinato.models.policy import Policy
from ostinato.models.reward import Reward
from ostinato.runs.checkpoints import Schedule, Training
from ostinato.runs.directory import RunDirectory

Log = Callable[..., None]
Evaluate = Callable[[Policy, int], None]


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
    log: Log
    record: Evaluate
    latest: Reward | None = None
    updates: int = 0
    evaluations: int = 0
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
        Raises NonFiniteError, which names iteration, step and plugin.
        """
        settings = self.ctx.config.rl
        assert settings.rollouts is not None
        algorithm = self._algorithm()
        policy = initial.copy().to(self.ctx.device)
        if algorithm.uses_values:
            policy.with_value(self.ctx.config.policy.value, self.latest)
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
        first, kl = self._restore(name, training)
        saved = Schedule(self.ctx.config.checkpoint_every, policy)
        if first == 0 and evaluate:
            self.record(policy, 0)
        for step in range(first, settings.rollouts):
            started = time.perf_counter()
            ctx = self.ctx.at(step=step, training="" if name == "policy" else name)
            with ctx.located():
                rollout, whole, row = rollouts(ctx, kl)
                sampled = time.perf_counter()
                row |= update(rollout, whole, self.updates, ctx)
            kl, self.updates = row["kl"], row["updates"]
            row["actions"] = self.plugins.taken_actions()
            row["seconds"] = {"rollout": sampled - started, "update": time.perf_counter() - sampled}
            self.log("policy", name=name, step=step + 1, total=settings.rollouts, **row)
            last = step + 1 == settings.rollouts
            if evaluate and (last or (step + 1) % self.ctx.config.evaluation.every == 0):
                self.record(policy, step + 1)
            if saved.due(step + 1) or last:
                made, facts = training.tensors(), {"kl": kl, "updates": self.updates}
                self.directory.save_checkpoint(self.stage, name, step + 1, made, facts)
        return policy

    def evaluate(self, policy: Policy, step: int) -> None:
        """Write an ``eval`` row of any policy, before, between or after the runs.

        A checkpoint of its own keeps it from being made again when a killed run goes on: the rows
        of the runs behind it would be cut off.
        """
        self.evaluations += 1
        name = f"evaluation-{self.evaluations}"
        self._take(name)
        if self.directory.load_checkpoint(self.stage, name) is None:
            self.record(policy, step)
            self.directory.save_checkpoint(self.stage, name, step, {}, {})

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
        size, k = self.ctx.config.rl.rollout_size, algorithm.responses_per_prompt
        if size % k:
            raise UserError(
                f"rl.rollout_size {size} is no multiple of the algorithm's {k} responses a prompt"
            )
        return algorithm

    def _restore(self, name: str, training: Training) -> tuple[int, float | None]:
        """Rollouts done before a run was killed, and the KL of the last; all as it was then."""
        self._take(name)
        self.updates = 0
        found = self.directory.load_checkpoint(self.stage, name)
        if found is None:
            return 0, None
        step, tensors, facts = found
        training.load(tensors)
        self.updates = facts["updates"]
        return step, facts["kl"]
