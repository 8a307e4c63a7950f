"""One rollout of a policy: scores, the rewards of tokens, advantages, and the rows that are left.

Letters in shapes: B responses, T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ostinato.config.errors import NonFiniteError
from ostinato.config.sections import RLSection
from ostinato.contract.algorithms import advantages_of, refills
from ostinato.contract.answers import wrong
from ostinato.contract.batches import PolicyOutputs, RewardBatch, Rollout
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.contract.policy_algorithm import PolicyAlgorithm
from ostinato.engine.drawing import Drawing
from ostinato.models.kl import ESTIMATES, kl_per_token
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples, below


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one run of ``optimise``; ``anchor`` is the KL's reference.

    ``name`` tells several runs of one iteration apart.
    """

    plugins: Plugins
    policy: Policy
    anchor: Policy
    algorithm: PolicyAlgorithm
    name: str
    prompts: PromptSet
    reward_model: Reward

    @cached_property
    def _draw(self) -> Drawing:
        return Drawing(self.plugins, self.policy, self.anchor, self.name, self.prompts)

    @torch.no_grad()
    def __call__(
        self, ctx: Context, kl: float | None
    ) -> tuple[Rollout, PolicyOutputs | None, dict[str, Any]]:
        """The rollout of ``ctx.step``, outputs that the first update can use, and what is logged.

        ``kl``: the mean KL of the rollout before, for the coefficient's controller. What is logged
        is of all responses; the rollout holds those that ``filter_rollout`` leaves, of as many
        draws as its refills allow.
        """
        size, coefficient = ctx.config.rl.rollout_size, self._coefficient(ctx, kl)
        seen: list[dict[str, Tensor]] = []
        kept: list[Rollout] = []
        emptied = ""
        for attempt in range(1 + refills(self.plugins)):
            here = ctx.at(attempt=attempt)
            rollout, outputs, facts = self._drawn(here, coefficient)
            seen.append(facts)
            emptied = filtered(self.plugins, rollout, here, kept) or emptied
            count = sum(len(part.mask) for part in kept)
            if count >= size:
                break
        if not kept:
            tries = f"of {len(seen)} draws of the rollout" if len(seen) > 1 else "of the rollout"
            raise wrong(emptied, "filter_rollout", f"left no row {tries}, expected at least one")
        whole = kept[0] if len(seen) == 1 else self._cut(Rollout.joined(kept), size)
        row = {key: float(torch.cat([f[key] for f in seen]).mean()) for key in seen[0]}
        score = torch.cat([facts["score"] for facts in seen])
        row["score_std"] = float(score.std()) if len(score) > 1 else 0.0
        row |= {"kl_coefficient": coefficient, "kept": len(whole.mask), "attempts": len(seen)}
        return whole, outputs if whole is rollout else None, row

    def _drawn(
        self, ctx: Context, coefficient: float
    ) -> tuple[Rollout, PolicyOutputs | None, dict[str, Tensor]]:
        """A whole rollout with its advantages, and what is known of each response (B,)."""
        scored, values, outputs = self._scored(ctx)
        scored.kl_coefficient = coefficient
        rewards = self._transformed(scored, ctx)  # score, kl_scale (B,) and token_score count
        each = self._kl(scored, ctx)  # (B, T)
        dense = rewards.token_score.masked_fill(~scored.mask, 0.0)
        final = finish_penalty(rewards.score, scored.finished, ctx.config.rl)  # (B,)
        per_sample = coefficient * rewards.kl_scale  # (B,)
        in_reward = self.algorithm.kl_in_reward
        samples = scored.samples
        rollout = Rollout(
            samples=samples,
            mask=scored.mask,
            score=final + dense.sum(1),
            rewards=token_rewards(final, each, per_sample, scored.mask, in_reward) + dense,
            logprobs=scored.logprobs,
            ref_logprobs=scored.ref_logprobs,
            values=values,
            kl_coefficient=per_sample,
            group=scored.group,
            finished=scored.finished,
            advantages=torch.zeros_like(scored.logprobs),
            returns=torch.zeros_like(values),
            behaviour_logprobs=scored.logprobs if samples.logprobs is None else samples.logprobs,
            parts=scored.parts,
            part_std=scored.part_std,
        )
        facts = {
            "score": scored.score + scored.token_score.sum(1),  # as the reward gave it
            "reward": rollout.score,
            "kl": each.sum(1),
            "kl_scale": rewards.kl_scale,
            "length": samples.lengths.float(),
            "finished": scored.finished.float(),
        }
        return self._with_advantages(rollout, ctx), outputs, facts

    def _scored(self, ctx: Context) -> tuple[RewardBatch, Tensor, PolicyOutputs | None]:
        """Responses with score and log-probabilities; the values; outputs with their graph.

        Where one micro-batch is the whole rollout, the pass that gives the old log-probabilities
        is the first update's own, so its outputs are kept; that of a rollout which a filter
        shortens, or of a policy that is displaced, needs another pass.
        """
        settings, k = ctx.config.rl, self.algorithm.responses_per_prompt
        prompts, size = settings.rollout_size // k, settings.minibatch // settings.accumulate
        samples = self._draw(ctx, prompts, k)
        with ctx.autocast():
            scores = self.reward_model.score_samples(samples)
            (ref_logprobs,) = in_parts(lambda s: (self.anchor.logprobs(s),), samples, size)
        whole = len(samples) <= size
        with torch.set_grad_enabled(whole), ctx.autocast():
            logprobs, values = in_parts(self.policy.evaluate, samples, size)
        outputs = PolicyOutputs(logprobs, values, self.policy, self.anchor) if whole else None
        score = scores.score.float()
        dense = scores.token_score  # (B, T), or None where no single token has a reward
        if dense is None:
            dense = torch.zeros_like(ref_logprobs)
        group = torch.arange(prompts, device=logprobs.device) + ctx.attempt * prompts
        batch = RewardBatch(
            samples=samples,
            score=score,
            parts=scores.parts.float(),
            part_std=scores.part_std,
            logprobs=logprobs.detach(),
            ref_logprobs=ref_logprobs,
            mask=samples.mask,
            finished=samples.finished,
            group=group.repeat_interleave(k),
            kl_scale=torch.ones_like(score),
            iteration=ctx.iteration,
            step=ctx.step,
            hidden=scores.hidden,
            token_score=dense.float(),
        )
        return batch, values.detach(), outputs

    def _transformed(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        hook = "reward_transform"

        def check(name: str, before: RewardBatch, after: RewardBatch) -> float:
            if not isinstance(after, RewardBatch):
                kind = type(after).__name__
                raise wrong(name, hook, f"answered a {kind}, expected a RewardBatch")
            change = 0.0
            for field in ("score", "kl_scale", "token_score"):
                old, new = getattr(before, field), getattr(after, field)
                if not isinstance(new, Tensor):
                    kind = type(new).__name__
                    raise wrong(name, hook, f"made {field} a {kind}, expected a tensor")
                if new.shape != old.shape:
                    shapes = f"{tuple(new.shape)}, expected {tuple(old.shape)}"
                    raise wrong(name, hook, f"made {field} of shape {shapes}")
                check_finite(new, f"plugin '{name}': {field}")
                change += float((new - old).abs().sum() / len(old))
            return change

        return self.plugins.chain(hook, "rewards", rewards, check, ctx=ctx)

    def _coefficient(self, ctx: Context, kl: float | None) -> float:
        answer = self.plugins.one("kl_coefficient", kl=kl, step=ctx.step, ctx=ctx, measure=float)
        owner = self.plugins.owners["kl_coefficient"]
        check_finite(torch.tensor(answer), f"plugin '{owner}': the KL coefficient")
        return float(answer)

    def _kl(self, scored: RewardBatch, ctx: Context) -> Tensor:
        """``kl.estimator`` of the KL to the anchor at each token (B, T), 0 on padding."""
        estimator = ctx.config.kl.estimator
        with ctx.autocast():
            if estimator == "exact":  # both models once more
                each = kl_per_token(self.policy, self.anchor, scored.samples)
            else:
                each = ESTIMATES[estimator](scored.logprobs, scored.ref_logprobs)
        each = each.masked_fill(~scored.mask, 0.0)
        check_finite(each, f"kl.estimator {estimator}: the KL of a token")
        return each

    def _with_advantages(self, rollout: Rollout, ctx: Context) -> Rollout:
        owner = self.plugins.owners["policy_algorithm"]
        advantages, returns = advantages_of(owner, self.algorithm, rollout, ctx)
        check_finite(advantages, f"plugin '{owner}': an advantage")
        size = float(advantages[rollout.mask].abs().mean())
        self.plugins.acted(owner, "policy_algorithm", size)
        return replace(rollout, advantages=advantages, returns=returns)

    def _cut(self, rollout: Rollout, size: int) -> Rollout:
        """The first rows, at most ``size``, no group of which is torn if it may not be."""
        rows = torch.arange(min(size, len(rollout.mask)), device=rollout.mask.device)
        if self.algorithm.whole_groups and len(rollout.mask) > size:
            rows = rows[rollout.group[rows] != rollout.group[size]]
        return rollout.rows(rows)


def filtered(plugins: Plugins, rollout: Rollout, ctx: Context, kept: list[Rollout]) -> str:
    """Add to ``kept`` what the filters leave of a rollout; who left nothing, if anybody."""
    hook = "filter_rollout"
    for name in plugins.implementing(hook):
        rows: Tensor = plugins.call(name, hook, rollout=rollout, ctx=ctx)
        plugins.acted(name, hook, 1 - len(rows) / len(rollout.mask))
        if not len(rows):
            return name
        if rows.tolist() != list(range(len(rollout.mask))):
            rollout = rollout.rows(rows.to(rollout.mask.device))
    kept.append(rollout)
    return ""


def in_parts(
    function: Callable[[Samples], tuple[Tensor, ...]], samples: Samples, size: int
) -> tuple[Tensor, ...]:
    """The function's (B, T, ...) answers, worked out on ``size`` rows at once."""
    if len(samples) <= size:
        return function(samples)
    rows = torch.arange(len(samples), device=samples.mask.device).split(size)
    found = [function(samples.rows(r)) for r in rows]
    return tuple(below(column) for column in zip(*found, strict=True))


def check_finite(values: Tensor, what: str) -> None:
    """Raise NonFiniteError where ``what`` is not finite."""
    if not bool(values.isfinite().all()):
        raise NonFiniteError(f"{what} is not finite")


def finish_penalty(score: Tensor, finished: Tensor, settings: RLSection) -> Tensor:
    """Scores (B,) cut to the clip range, then unfinished responses penalised: less, or instead."""
    if settings.clip_score is not None:
        score = score.clamp(-settings.clip_score, settings.clip_score)
    rule = settings.unfinished
    if rule.mode == "subtract":
        return torch.where(finished, score, score - rule.penalty)
    return score.masked_fill(~finished, rule.penalty)


def token_rewards(
    score: Tensor, kl: Tensor, coefficient: Tensor, mask: Tensor, kl_in_reward: bool
) -> Tensor:
    """Rewards (B, T): the score (B,) on the last real token, minus coefficient (B,) * kl (B, T)."""
    rewards = -coefficient[:, None] * kl * mask if kl_in_reward else torch.zeros_like(kl)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, score[:, None].to(rewards.dtype))
