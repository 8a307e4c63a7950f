"""Proximal policy optimisation."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl
from ostinato.measures import clipped_surrogate, gae, masked_mean, whiten


class PPO(PolicyAlgorithm):
    """PPO with a clipped value loss and whitened GAE advantages (Schulman et al. 2017)."""

    paper = (
        "Wolf 2025, appendix C; Huang et al. 2023, The N implementation details of RLHF with PPO"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        clip: float = Field(0.2, gt=0, description="clip range of the probability ratio")
        value_clip: float | None = Field(
            0.2, gt=0, description="clip range of the value's change; null is off"
        )
        value_coefficient: float = Field(0.1, ge=0, description="weight of the value loss")
        gamma: float = Field(1.0, ge=0, le=1, description="discount a token")
        lam: float = Field(0.95, ge=0, le=1, description="GAE lambda")
        whiten: bool = Field(True, description="whiten advantages over the rollout's real tokens")

    config: Config
    value_heads = 1

    @hookimpl
    def policy_algorithm(self) -> PPO:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """GAE advantages, whitened over real tokens, and the returns; each (B, T)."""
        advantages, returns = gae(
            rollout.rewards, rollout.values, rollout.mask, self.config.gamma, self.config.lam
        )
        return (whiten(advantages, rollout.mask) if self.config.whiten else advantages), returns

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """The clipped surrogate and the clipped value loss, means over real tokens."""
        mask = batch.mask
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~mask, 0.0)
        surrogate = clipped_surrogate(log_ratio, batch.advantages, self.config.clip)
        error = (outputs.values - batch.returns).square()
        if self.config.value_clip is not None:
            change = (outputs.values - batch.values).clamp(
                -self.config.value_clip, self.config.value_clip
            )
            error = torch.maximum(error, (batch.values + change - batch.returns).square())
        with torch.no_grad():
            ratio = log_ratio.exp()
            far = ((ratio - 1).abs() > self.config.clip).float()
        return {
            "policy": -masked_mean(surrogate, mask),
            "value": self.config.value_coefficient * 0.5 * masked_mean(error, mask),
            "log/clipped": masked_mean(far, mask),
            "log/ratio": masked_mean(ratio, mask),
            "log/kl_to_rollout": masked_mean((ratio - 1 - log_ratio).detach(), mask),
        }
