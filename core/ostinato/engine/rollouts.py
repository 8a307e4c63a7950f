"""One rollout of a policy: prompts, responses, scores, the rewards of tokens, advantages.

Letters in shapes: B responses, T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.config.errors import NonFiniteError
from ostinato.config.sections import RLSection
from ostinato.contract.algorithms import advantages_of, kept_of
from ostinato.contract.answers import wrong
from ostinato.contract.batches import PolicyAlgorithm, PolicyOutputs, RewardBatch, Rollout
from ostinato.contract.context import Context
from ostinato.contract.plugins import Plugins
from ostinato.data.preferences import drawn
from ostinato.data.prompts import PromptSet
from ostinato.models.kl import ESTIMATES, kl_per_token
from ostinato.models.policy import Policy
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples


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

    @torch.no_grad()
    def __call__(
        self, ctx: Context, kl: float | None
    ) -> tuple[Rollout, PolicyOutputs | None, dict[str, Any]]:
        """The rollout of ``ctx.step``, outputs that the first update can use, and what is logged.

        ``kl``: the mean KL of the rollout before, for the coefficient's controller. What is logged
        is of all responses; the rollout holds those that the algorithm keeps.
        """
        scored, values, outputs = self._scored(ctx)
        scored.kl_coefficient = self._coefficient(ctx, kl)
        rewards = self._transformed(scored, ctx)  # of it only score and kl_scale (B,) count
        each = self._kl(scored, ctx)  # (B, T)
        final = finish_penalty(rewards.score, scored.finished, ctx.config.rl)  # (B,)
        per_sample = scored.kl_coefficient * rewards.kl_scale  # (B,)
        in_reward = self.algorithm.kl_in_reward
        rollout = Rollout(
            samples=scored.samples,
            mask=scored.mask,
            score=final,
            rewards=token_rewards(final, each, per_sample, scored.mask, in_reward),
            logprobs=scored.logprobs,
            ref_logprobs=scored.ref_logprobs,
            values=values,
            kl_coefficient=per_sample,
            group=scored.group,
            finished=scored.finished,
            advantages=torch.zeros_like(values),
            returns=torch.zeros_like(values),
        )
        kept = self._with_advantages(rollout)
        score = scored.score  # (B,), as the reward model gave it
        row = {
            "score": float(score.mean()),
            "score_std": float(score.std()) if len(score) > 1 else 0.0,
            "reward": float(final.mean()),
            "kl": float(each.sum(1).mean()),
            "kl_coefficient": scored.kl_coefficient,
            "kl_scale": float(rewards.kl_scale.mean()),
            "length": float(scored.samples.lengths.float().mean()),
            "finished": float(scored.finished.float().mean()),
            "kept": len(kept.mask),
        }
        return kept, outputs, row

    def _scored(self, ctx: Context) -> tuple[RewardBatch, Tensor, PolicyOutputs | None]:
        """Responses with score and log-probabilities; the values (B, T); outputs with their graph.

        Where one micro-batch is the whole rollout, the pass that gives the old log-probabilities
        is the first update's own, so its outputs are kept. An algorithm that keeps some rows only
        needs another pass.
        """
        settings, k = ctx.config.rl, self.algorithm.responses_per_prompt
        prompts = self._prompts(ctx, settings.rollout_size // k)
        samples = drawn(self.policy, prompts, k, ctx, f"rollout {self.name}")
        size = settings.minibatch // settings.accumulate
        with ctx.autocast():
            scores = self.reward_model.score_samples(samples)
            (ref_logprobs,) = in_parts(lambda s: (self.anchor.logprobs(s),), samples, size)
        whole = len(samples) <= size and not hasattr(self.algorithm, "keep")
        with torch.set_grad_enabled(whole), ctx.autocast():
            logprobs, values = in_parts(self.policy.evaluate, samples, size)
        outputs = PolicyOutputs(logprobs, values, self.policy, self.anchor) if whole else None
        score = scores.score.float()
        batch = RewardBatch(
            samples=samples,
            score=score,
            parts=scores.parts.float(),
            part_std=scores.part_std,
            logprobs=logprobs.detach(),
            ref_logprobs=ref_logprobs,
            mask=samples.mask,
            finished=samples.finished,
            group=torch.arange(len(prompts), device=logprobs.device).repeat_interleave(k),
            kl_scale=torch.ones_like(score),
            iteration=ctx.iteration,
            step=ctx.step,
        )
        return batch, values.detach(), outputs

    def _prompts(self, ctx: Context, count: int) -> PromptSet:
        """The rollout's prompts: a fresh permutation of the RL prompts each time round."""
        size = len(self.prompts)
        found: list[int] = []
        for place in range(ctx.step * count, (ctx.step + 1) * count):
            epoch, index = divmod(place, size)
            if not found or index == 0:
                generator = ctx.draws.generator(f"rl prompts {self.name}", epoch)
                order = torch.randperm(size, generator=generator)
            found.append(int(order[index]))
        return self.prompts.take(found)

    def _transformed(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        owner, hook = self.plugins.owners["combine_rm"], "reward_transform"
        check_finite(rewards.score, f"plugin '{owner}': a reward")

        def check(name: str, before: RewardBatch, after: RewardBatch) -> float:
            if not isinstance(after, RewardBatch):
                kind = type(after).__name__
                raise wrong(name, hook, f"answered a {kind}, expected a RewardBatch")
            change = 0.0
            for field in ("score", "kl_scale"):
                old, new = getattr(before, field), getattr(after, field)
                if new.shape != old.shape:
                    shapes = f"{tuple(new.shape)}, expected {tuple(old.shape)}"
                    raise wrong(name, hook, f"made {field} of shape {shapes}")
                check_finite(new, f"plugin '{name}': {field}")
                change += float((new - old).abs().mean())
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

    def _with_advantages(self, rollout: Rollout) -> Rollout:
        """The rows that the algorithm keeps, with its advantages and returns."""
        owner = self.plugins.owners["policy_algorithm"]
        advantages, returns = advantages_of(owner, self.algorithm, rollout)
        check_finite(advantages, f"plugin '{owner}': an advantage")
        size = float(advantages[rollout.mask].abs().mean())
        self.plugins.acted(owner, "policy_algorithm", size)
        whole = replace(rollout, advantages=advantages, returns=returns)
        return kept_of(owner, self.algorithm, whole)


def in_parts(
    function: Callable[[Samples], tuple[Tensor, ...]], samples: Samples, size: int
) -> tuple[Tensor, ...]:
    """The function's (B, T) answers, worked out on ``size`` rows at once, padded to one width."""
    if len(samples) <= size:
        return function(samples)
    width = samples.mask.shape[1]
    rows = torch.arange(len(samples), device=samples.mask.device).split(size)
    found = [function(samples.rows(r)) for r in rows]
    return tuple(
        torch.cat([nn.functional.pad(f, (0, width - f.shape[1])) for f in column])
        for column in zip(*found, strict=True)
    )


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
