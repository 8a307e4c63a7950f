"""The variance-aware KL penalty."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ostinato import RewardBatch, UserError, hookimpl


class Sharpe:
    """Weigh each sample's KL penalty by the variance of its reward (UA, sections 2 and 5)."""

    paper = "Uncertainty-aware RLHF, sections 2 and 5, theorem 3.6"
    needs = {"members": 2}

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        score: Literal["mean", "head"] = Field(
            "mean", description="the reward itself: what combine_rm made of it, or the first head's"
        )

    config: Config

    @hookimpl
    def reward_transform(self, rewards: RewardBatch) -> RewardBatch:
        """r - beta sigma^2(x, y) log(pi / pi_ref), sigma^2 over heads or members with ddof 1.

        Not r - beta sigma^2: the reward stays, the penalty's weight changes, so it composes with
        any KL controller. Raises UserError where combine_rm left one score a response.
        """
        every = rewards.parts.flatten(1)  # (B, members * heads)
        if every.shape[1] < 2:
            raise UserError(
                "plugin 'sharpe': the reward is of one model with one head, which has no variance; "
                "list another owner of combine_rm, or a plugin with heads"
            )
        score = rewards.score if self.config.score == "mean" else every[:, 0]
        return replace(rewards, score=score, kl_scale=rewards.kl_scale * every.var(1))
