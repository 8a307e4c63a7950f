"""Optimise the policy: rollouts, rewards, updates. The algorithm itself is a plugin."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.config.errors import NonFiniteError, UserError
from ostinato.config.sections import RLSection
from ostinato.contract.algorithms import advantages_of, kept_of
from ostinato.contract.batches import PolicyAlgorithm, PolicyOutputs, RewardBatch, Rollout
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.data.prompts import PromptSet
from ostinato.engine.policy_update import PolicyUpdate
from ostinato.machine.backend import Backend
from ostinato.models.generation import sample
from ostinato.models.kl import estimated_kl
from ostinato.models.policy import Policy
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples
from ostinato.runs.checkpoints import (
    load_optimiser,
    load_parameters,
    optimiser_tensors,
    parameters_of,
)
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
    backend: Backend
    directory: RunDirectory
    stage: str
    prompts: PromptSet
    log: Log
    record: Evaluate
    latest: Reward | None = None
    updates: int = 0
    evaluations: int = 0

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
        algorithm: PolicyAlgorithm = self.plugins.one("policy_algorithm", ctx=self.ctx)
        self._check(algorithm, settings)
        policy = initial.copy().to(self.backend.device)
        if algorithm.uses_values:
            policy.with_value(self.ctx.config.policy.value, self.latest)
        own = initial if on_update is None else initial.copy()  # what is given is never changed
        anchor = own if reference is None else reference
        optimiser = torch.optim.Adam(
            policy.parameters(), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
        )
        first, kl = self._restore(name, policy, anchor if on_update else None, optimiser)
        if first == 0 and evaluate:
            self.record(policy, 0)
        for step in range(first, settings.rollouts):
            started = time.perf_counter()
            ctx = self.ctx.at(step=step)
            with located(ctx):
                rollout, whole, row = self._rollout(
                    policy, anchor, reward_model, algorithm, ctx, kl, name
                )
                kl = row["kl"]
                sampled = time.perf_counter()
                update = PolicyUpdate(
                    self.plugins,
                    self.backend,
                    policy,
                    anchor,
                    algorithm,
                    optimiser,
                    ctx,
                    on_update,
                    name,
                )
                row |= update(rollout, whole, self.updates)
            self.updates = row["updates"]
            self.log(
                "policy",
                name=name,
                step=step + 1,
                total=settings.rollouts,
                **row,
                actions=self.plugins.taken_actions(),
                seconds={
                    "rollout": sampled - started,
                    "update": time.perf_counter() - sampled,
                },
            )
            last = step + 1 == settings.rollouts
            if evaluate and (last or (step + 1) % self.ctx.config.evaluation.every == 0):
                self.record(policy, step + 1)
            if last or (step + 1) % self.ctx.config.checkpoint_every == 0:
                self._save(name, step + 1, policy, anchor if on_update else None, optimiser, kl)
        return policy

    def evaluate(self, policy: Policy, step: int) -> None:
        """Write an ``eval`` row of any policy, before, between or after the runs.

        A checkpoint of its own keeps it from being made again when a killed run goes on: the rows
        of the runs behind it would be cut off.
        """
        self.evaluations += 1
        name = f"evaluation-{self.evaluations}"
        if self.directory.load_checkpoint(self.stage, name) is None:
            self.record(policy, step)
            self.directory.save_checkpoint(self.stage, name, step, {}, {})

    def _check(self, algorithm: PolicyAlgorithm, settings: RLSection) -> None:
        k = algorithm.responses_per_prompt
        if settings.rollout_size % k:
            raise UserError(
                f"rl.rollout_size {settings.rollout_size} is no multiple of the algorithm's "
                f"{k} responses a prompt"
            )

    def _restore(
        self,
        name: str,
        policy: Policy,
        anchor: Policy | None,
        optimiser: torch.optim.Optimizer,
    ) -> tuple[int, float | None]:
        self.updates = 0
        found = self.directory.load_checkpoint(self.stage, name)
        if found is None:
            return 0, None
        step, tensors, facts = found
        load_parameters(policy, tensors, "policy.")
        if anchor is not None:
            load_parameters(anchor, tensors, "reference.")
        load_optimiser(optimiser, tensors)
        self.updates = facts["updates"]
        return step, facts["kl"]

    def _save(
        self,
        name: str,
        step: int,
        policy: Policy,
        anchor: Policy | None,
        optimiser: torch.optim.Optimizer,
        kl: float | None,
    ) -> None:
        tensors = dict(parameters_of(policy, "policy."))
        if anchor is not None:
            tensors |= parameters_of(anchor, "reference.")
        tensors |= optimiser_tensors(optimiser)
        facts = {"kl": kl, "updates": self.updates}
        self.directory.save_checkpoint(self.stage, name, step, tensors, facts)

    def _prompts(self, step: int, count: int, name: str) -> list[list[int]]:
        """Prompts of one rollout: a fresh permutation of the RL prompts each time round."""
        size = len(self.prompts)
        found: list[list[int]] = []
        for place in range(step * count, (step + 1) * count):
            epoch, index = divmod(place, size)
            if not found or index == 0:
                generator = self.ctx.draws.generator(f"rl prompts {name}", epoch)
                order = torch.randperm(size, generator=generator)
            found.append(self.prompts.tokens[int(order[index])])
        return found

    @torch.no_grad()
    def _rollout(
        self,
        policy: Policy,
        anchor: Policy,
        reward_model: Reward,
        algorithm: PolicyAlgorithm,
        ctx: Context,
        kl: float | None,
        name: str,
    ) -> tuple[Rollout, PolicyOutputs | None, dict[str, Any]]:
        """Sample, score, and turn scores into per-token rewards and advantages.

        Where one micro-batch is the whole rollout, the pass that gives the old log-probabilities
        is the first update's own: its outputs come back with their graph. What is logged is of all
        responses; the rollout that comes back holds those that the algorithm keeps.
        """
        settings, k = ctx.config.rl, algorithm.responses_per_prompt
        prompts = self._prompts(ctx.step, settings.rollout_size // k, name)
        generator = ctx.generator(f"rollout {name}", policy.lm.device)
        with self.backend.autocast():
            samples = sample(
                policy, [p for p in prompts for _ in range(k)], ctx.config.generation, generator
            )
            scores = reward_model.score_samples(samples)
            (ref_logprobs,) = self._in_parts(lambda s: (anchor.logprobs(s),), samples)
        one = len(samples) <= settings.minibatch // settings.accumulate
        one = one and not hasattr(algorithm, "keep")
        with torch.set_grad_enabled(one), self.backend.autocast():
            logprobs, values = self._in_parts(policy.evaluate, samples)
        outputs = PolicyOutputs(logprobs, values, policy, anchor)
        logprobs, values = logprobs.detach(), values.detach()
        device = logprobs.device
        group = torch.arange(len(prompts), device=device).repeat_interleave(k)
        score = scores.score.float()
        rewards = RewardBatch(
            samples=samples,
            score=score,
            parts=scores.parts.float(),
            part_std=scores.part_std,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            mask=samples.mask,
            finished=samples.finished,
            group=group,
            kl_scale=torch.ones_like(score),
            iteration=ctx.iteration,
            step=ctx.step,
        )
        rewards = self._transformed(rewards, ctx)
        final = finish_penalty(rewards.score, samples.finished, settings)
        coefficient = self.plugins.one(
            "kl_coefficient", kl=kl, step=ctx.step, ctx=ctx, measure=float
        )
        controller = self.plugins.owners["kl_coefficient"]
        check_finite(torch.tensor(coefficient), f"plugin '{controller}': the KL coefficient")
        per_sample = coefficient * rewards.kl_scale
        estimator = ctx.config.kl.estimator
        with self.backend.autocast():
            each = estimated_kl(estimator, logprobs, ref_logprobs, policy, anchor, samples)
        check_finite(each, f"kl.estimator {estimator}: the KL of a token")
        tokens = token_rewards(final, each, per_sample, samples.mask, algorithm.kl_in_reward)
        rollout = Rollout(
            samples=samples,
            mask=samples.mask,
            score=final,
            rewards=tokens,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
            kl_coefficient=per_sample,
            group=group,
            finished=samples.finished,
            advantages=torch.zeros_like(values),
            returns=torch.zeros_like(values),
        )
        owner = self.plugins.owners["policy_algorithm"]
        advantages, returns = advantages_of(owner, algorithm, rollout)
        check_finite(advantages, f"plugin '{owner}': an advantage")
        real = samples.mask
        self.plugins.acted(owner, "policy_algorithm", float(advantages[real].abs().mean()))
        row = {
            "score": float(score.mean()),
            "score_std": float(score.std()) if len(score) > 1 else 0.0,
            "reward": float(final.mean()),
            "kl": float(each.sum(1).mean()),
            "kl_coefficient": float(coefficient),
            "kl_scale": float(rewards.kl_scale.mean()),
            "length": float(samples.lengths.float().mean()),
            "finished": float(samples.finished.float().mean()),
        }
        rollout = replace(rollout, advantages=advantages, returns=returns)
        rollout = kept_of(owner, algorithm, rollout)
        row["kept"] = len(rollout.mask)
        return rollout, outputs if one else None, row

    def _in_parts(
        self, function: Callable[[Samples], tuple[Tensor, ...]], samples: Samples
    ) -> tuple[Tensor, ...]:
        """The function's (B, T) answers, worked out on micro-batches and padded to one width."""
        settings = self.ctx.config.rl
        size = settings.minibatch // settings.accumulate
        if len(samples) <= size:
            return function(samples)
        width = samples.mask.shape[1]
        rows = torch.arange(len(samples), device=samples.mask.device).split(size)
        found = [function(samples.rows(r)) for r in rows]
        return tuple(
            torch.cat([nn.functional.pad(f, (0, width - f.shape[1])) for f in column])
            for column in zip(*found, strict=True)
        )

    def _transformed(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        owner = self.plugins.owners["combine_rm"]
        check_finite(rewards.score, f"plugin '{owner}': a reward")

        def check(name: str, before: RewardBatch, after: RewardBatch) -> float:
            if not isinstance(after, RewardBatch):
                raise UserError(
                    f"plugin '{name}': hook 'reward_transform' answered a {type(after).__name__}, "
                    "expected a RewardBatch"
                )
            change = 0.0
            for field in ("score", "kl_scale"):
                old, new = getattr(before, field), getattr(after, field)
                if new.shape != old.shape:
                    raise UserError(
                        f"plugin '{name}': hook 'reward_transform' made {field} of shape "
                        f"{tuple(new.shape)}, expected {tuple(old.shape)}"
                    )
                check_finite(new, f"plugin '{name}': {field}")
                change += float((new - old).abs().mean())
            return change

        made: RewardBatch = self.plugins.chain(
            "reward_transform", "rewards", rewards, check, ctx=ctx
        )
        return made


@contextmanager
def located(ctx: Context) -> Iterator[None]:
    """Add iteration and step to a NonFiniteError."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} at iteration {ctx.iteration}, step {ctx.step + 1}"
        ) from error


def check_finite(values: Tensor, what: str) -> None:
    """Raise NonFiniteError where ``what`` is not finite."""
    if not bool(values.isfinite().all()):
        raise NonFiniteError(f"{what} is not finite")


def finish_penalty(score: Tensor, finished: Tensor, settings: RLSection) -> Tensor:
    """Scores (B,) cut to the clip range, then unfinished responses penalised: less, or instead."""
    if settings.clip_score is not None:
        score = score.clamp(-settings.clip_score, settings.clip_score)
    rule = settings.unfinished
    instead = (
        score - rule.penalty if rule.mode == "subtract" else torch.full_like(score, rule.penalty)
    )
    return torch.where(finished, score, instead)


def token_rewards(
    score: Tensor, kl: Tensor, coefficient: Tensor, mask: Tensor, kl_in_reward: bool
) -> Tensor:
    """Rewards (B, T): the score (B,) on the last real token, minus coefficient (B,) * kl (B, T)."""
    rewards = -coefficient[:, None] * kl * mask if kl_in_reward else torch.zeros_like(kl)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, score[:, None].to(rewards.dtype))
