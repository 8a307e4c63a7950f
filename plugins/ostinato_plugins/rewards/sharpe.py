"""The variance-aware KL penalty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ostinato import RewardBatch, RunConfig, UserError, hookimpl


class Sharpe:
    """Weigh each sample's KL penalty by the variance of its reward (UA, sections 2 and 5)."""

    paper = "Uncertainty-aware RLHF, sections 2 and 5, theorem 3.6"
    needs = {"members": 2}

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        form: Literal["reward", "objective"] = Field(
            "reward",
            description="UA's adjusted reward, held constant (section 5), or the true gradient of "
            "the objective with the weighted KL (theorem 3.6)",
        )
        score: Literal["mean", "head"] = Field(
            "mean", description="the reward itself: what combine_rm made of it, or one head's"
        )
        head: int = Field(
            0, ge=0, description="with `score: head`, which of the newest model's heads, from 0"
        )

    config: Config

    @hookimpl
    def reward_transform(self, rewards: RewardBatch) -> RewardBatch:
        """r - beta sigma^2(x, y) log(pi / pi_ref), sigma^2 over heads or members with ddof 1.

        A policy gradient holds the reward constant, and so drops -beta grad E[sigma^2] of the
        objective's gradient; ``form: objective`` gives it back as -beta sigma^2 in the score.
        Raises UserError where combine_rm left one score a response.
        """
        every = rewards.parts.flatten(1)  # (B, members * heads)
        if every.shape[1] < 2:
            raise UserError(
                "plugin 'sharpe': the reward is of one model with one head, which has no variance; "
                "list another owner of combine_rm, or a plugin with heads"
            )
        score, variance = rewards.score, every.var(1)
        if self.config.score == "head":
            newest = rewards.parts[:, -1]  # (B, heads): members stand in the order of iterations
            if self.config.head >= newest.shape[1]:
                raise UserError(
                    f"plugins.sharpe.head: is {self.config.head}, expected less than "
                    f"{newest.shape[1]}, the heads of the newest reward model"
                )
            score = newest[:, self.config.head]
        if self.config.form == "objective":
            score = score - rewards.kl_coefficient * rewards.kl_scale * variance
        return replace(rewards, score=score, kl_scale=rewards.kl_scale * variance)

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """The term that PPO drops was derived for the estimator whose reward gives the KL's."""
        if self.config.form == "objective" and config.kl.estimator != "k1":
            yield (
                f"kl.estimator: is {config.kl.estimator}; plugin 'sharpe' with `form: objective` "
                "is derived for k1"
            )
