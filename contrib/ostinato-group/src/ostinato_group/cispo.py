"""CISPO: REINFORCE with clipped importance weights."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ostinato import PolicyOutputs, Rollout
from ostinato_group.groups import GroupAlgorithm, GroupSettings


class CISPO(GroupAlgorithm):
    """Clip the importance weight, not the update: every token keeps a gradient (MiniMax 2025).

    With ρ_it the ratio of a token's probabilities, the loss is minus the mean over all tokens of

        sg(clip(ρ_it, 1 - ε_low, 1 + ε_high)) A_i log π(y_it)

    where sg takes no gradient and A_i = (r_i - mean(r)) / std(r) (equations 4 and 5).
    """

    paper = "MiniMax 2025, MiniMax-M1 (arXiv 2506.13585), section 3.1; ScaleRL (arXiv 2510.13786)"

    class Config(GroupSettings):
        """Settings."""

        clip_low: float | None = Field(
            None,
            gt=0,
            le=1,
            description="weights are raised to 1 - this; null sets no bound (paper's)",
        )
        clip_high: float = Field(
            4.0,
            gt=0,
            description="weights are cut to 1 + this (the paper gives none; ScaleRL cuts at 5)",
        )

    config: Config

    def gain(
        self, log_ratio: Tensor, batch: Rollout, outputs: PolicyOutputs
    ) -> tuple[Tensor, Tensor]:
        """The weight times advantage times log-probability, and where it was cut (B, T)."""
        ratio = log_ratio.detach().exp()
        low = 0.0 if self.config.clip_low is None else 1 - self.config.clip_low
        weight = ratio.clamp(low, 1 + self.config.clip_high)
        return weight * batch.advantages * outputs.logprobs, weight != ratio
