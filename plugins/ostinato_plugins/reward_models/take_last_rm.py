"""Optimise on the newest reward model."""

from __future__ import annotations

from collections.abc import Sequence

from ostinato import Reward, hookimpl


class TakeLastRM:
    """Optimise the policy on the newest reward model alone (Wolf 2.2, figure 3d)."""

    paper = "Wolf 2025, section 2.2"

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """R_k = R~_k; several members of one iteration count as their mean."""
        return reward_models[-1]
