"""A penalty on long responses, for Ostinato."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, RewardBatch, hookimpl


class LengthPenalty:
    """Take reward off each token beyond a free length."""

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        free: int = Field(100, ge=0, description="tokens that cost nothing, stop token included")
        weight: float = Field(
            0.01, gt=0, description="calibrated reward that a further token costs"
        )

    config: Config

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """score - weight * max(0, length - free), for each of B rollouts."""
        over = (rewards.samples.lengths - self.config.free).clamp_min(0).to(rewards.score.dtype)
        ctx.log(**{"length_penalty/tokens_over": float(over.mean())})
        return replace(rewards, score=rewards.score - self.config.weight * over)
