"""Optimise on the mean of all reward models, less what they disagree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Reward, combine, hookimpl


class UWO:
    """Optimise on the mean over reward models minus a multiple of their variance (Coste et al.)."""

    paper = "Coste et al. 2024 (uncertainty-weighted optimisation); Wolf 2025, section 2.2"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        coefficient: float = Field(
            0.1, ge=0, description="weight of the variance (Coste et al.: .1 for PPO)"
        )
        over: Literal["members", "heads"] = Field(
            "members", description="mean and variance over reward models, or over all their heads"
        )

    config: Config

    @property
    def needs(self) -> dict[str, Any]:
        """Over heads, a reward model of one head would have no variance, at any iteration."""
        return {"members": 2} if self.config.over == "heads" else {}

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """mean_i R_i - coefficient * mean_i (R_i - mean)^2 of calibrated scores: ddof 0."""
        weight, heads = self.config.coefficient, self.config.over == "heads"
        return combine(
            reward_models, lambda each: each.mean(1) - weight * each.var(1, correction=0), heads
        )
