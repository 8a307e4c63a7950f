"""PPO whose values are pessimistic where the reward's data has no support."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import (
    Context,
    Policy,
    PolicyAlgorithm,
    PolicyOutputs,
    Rollout,
    RunConfig,
    Samples,
    hookimpl,
)
from ostinato.measures import clipped_surrogate, masked_mean, whiten


class BSPO(PolicyAlgorithm):
    """Give tokens that the reward's training data never held the least value there is (BSPO)."""

    paper = "Dai et al. 2025 (BSPO), arXiv 2503.18130"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        support: float = Field(
            1e-3,
            gt=0,
            lt=1,
            description="probability above which the behaviour supports a token (ours; paper: 0)",
        )
        least: float = Field(
            -5.0, description="Q_min, in units of the reward: what an unsupported token is worth"
        )
        behaviour: Literal["all", "newest"] = Field(
            "all",
            description="the policies that drew the pairs of all iterations, or of the newest "
            "(with take_last_data)",
        )
        clip: float = Field(0.2, gt=0, description="clip range of the probability ratio")
        value_coefficient: float = Field(0.1, ge=0, description="weight of the value loss")
        gamma: float = Field(1.0, gt=0, le=1, description="discount a token")
        lam: float = Field(0.95, ge=0, le=1, description="GAE lambda")

    config: Config
    value_heads = 1

    @hookimpl
    def policy_algorithm(self, ctx: Context) -> BSPO:
        """Loads the behaviour: the policies from which the pairs were drawn."""
        history = ctx.policies
        drew = [history.sft, *history.final]
        self._behaviour: list[Policy] = [
            handle.load() for handle in (drew if self.config.behaviour == "all" else drew[-1:])
        ]
        self._part = ctx.config.rl.minibatch // ctx.config.rl.accumulate
        return self

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """Q_min is what nothing may undercut."""
        if config.rl.clip_score is not None and self.config.least > -config.rl.clip_score:
            yield (
                f"plugins.bspo.least: is {self.config.least:g}, above the least score, "
                f"{-config.rl.clip_score:g} (rl.clip_score); expected that or less"
            )

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """Whitened advantages and returns of :func:`supported_gae`, each (B, T)."""
        supported = self.supports(rollout.samples) | ~rollout.mask
        outside = ~supported & rollout.mask
        ctx.log(**{"bspo/unsupported": float(outside.sum(1).float().mean())})
        settings = self.config
        advantages, returns = supported_gae(
            rollout.rewards,
            rollout.values,
            rollout.mask,
            supported,
            settings.least,
            settings.gamma,
            settings.lam,
        )
        return whiten(advantages, rollout.mask), returns

    @torch.no_grad()
    def supports(self, samples: Samples) -> Tensor:
        """(B, T): whether some policy that drew pairs gives a token ``support`` at least."""
        parts = torch.arange(len(samples), device=samples.mask.device).split(self._part)
        found = samples.mask.new_zeros(samples.mask.shape)
        for rows in parts:
            part = samples.rows(rows)
            chance = torch.stack([policy.logprobs(part) for policy in self._behaviour]).amax(0)
            found[rows, : chance.shape[1]] = chance.exp() >= self.config.support
        return found

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """PPO's clipped surrogate, and the squared error of the values."""
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0)
        gain = clipped_surrogate(log_ratio, batch.advantages, self.config.clip)
        error = (outputs.values - batch.returns).square()
        return {
            "policy": -masked_mean(gain, batch.mask),
            "value": self.config.value_coefficient * 0.5 * masked_mean(error, batch.mask),
        }


def supported_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    supported: Tensor,
    least: float,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """GAE under the behaviour-supported Bellman operator; all (B, T), 0 on padding.

    A token with support has Q = r + gamma G' as ever; one without is worth ``least`` and what
    comes after it is not asked. The value before the token after it is fitted to
    (least - r) / gamma, so that the token's Q is ``least`` (the paper's V operator).
    """
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(later)  # V of the next state; 0 after the end
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        usual = delta + gamma * lam * later
        now = torch.where(supported[:, t], usual, least - values[:, t])
        advantages[:, t] = now * mask[:, t]
        returns[:, t] = (now + values[:, t]) * mask[:, t]
        later, following = advantages[:, t], values[:, t] * mask[:, t]
    wanted = (least - rewards[:, :-1]) / gamma
    after = ~supported[:, :-1] & mask[:, 1:]
    returns[:, 1:] = torch.where(after, wanted, returns[:, 1:])
    return advantages, returns
