"""Optimise on the mean of all reward models."""

from __future__ import annotations

from collections.abc import Sequence

from ostinato import Reward, combine, hookimpl


class Ensemble:
    """Optimise the policy on the mean over all reward models so far (Wolf 2.2, figure 3e)."""

    paper = "Wolf 2025, section 2.2; Coste et al. 2024"

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """R_k(x, y) = mean of the calibrated R~_1..R~_k, every member alike."""
        return combine(reward_models, lambda scores: scores.mean(1))
