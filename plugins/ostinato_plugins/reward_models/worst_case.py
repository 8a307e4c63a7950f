"""Optimise on the most pessimistic reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Reward, combine, hookimpl


class WorstCase:
    """Optimise the policy on the minimum over all reward models so far (Wolf 2.2)."""

    paper = "Wolf 2025, section 2.2; Coste et al. 2024"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        over: Literal["members", "heads"] = Field(
            "members", description="the minimum over reward models, or over all their heads"
        )

    config: Config

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """R_k(x, y) = min of the calibrated R~_1..R~_k over every member, or over every head.

        The minimum is below a member by construction: read ``gap_latest`` beside ``gap``.
        """
        return combine(
            reward_models, lambda scores: scores.amin(1), heads=self.config.over == "heads"
        )
