"""Optimise on one reward model whose weights are the mean of all."""

from __future__ import annotations

from collections.abc import Sequence

from ostinato import Reward, average, hookimpl


class WeightAverage:
    """Average the parameters of all reward models so far, head included (Wolf 2.2, figure 3f)."""

    paper = "Wolf 2025, section 2.2; Rame et al. 2024 (WARM)"

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """phi_k = mean of phi~_1..phi~_k, in fp32; the core calibrates the new model on D_k.

        It makes sense only because every iteration starts from the same body and head.
        """
        members = [member for model in reward_models for member in model.members]
        merged = members[-1].copy()
        merged.model.load_state_dict(average([m.model.state_dict() for m in members]))
        return merged
