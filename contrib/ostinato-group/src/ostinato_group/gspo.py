"""GSPO: the ratio of whole responses, normalised by their length."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ostinato import Context, PolicyOutputs, Rollout
from ostinato_group.groups import GroupAlgorithm, GroupSettings, surrogate


class GSPO(GroupAlgorithm):
    """Group advantages on the clipped ratio of whole responses (Zheng et al. 2025).

    The ratio of a response y_i is the geometric mean of its tokens' ratios,

        s_i = (π(y_i|x) / π_old(y_i|x)) ^ (1 / |y_i|)

    and the loss is minus the mean over responses of min(s_i A_i, clip(s_i, 1 - ε_low, 1 + ε_high)
    A_i), A_i = (r_i - mean(r)) / std(r) (equations 5 to 7). All tokens of a response weigh alike.
    """

    paper = "Zheng et al. 2025, Group Sequence Policy Optimization (arXiv 2507.18071), section 4.1"

    class Config(GroupSettings):
        """Settings."""

        clip_low: float = Field(
            3e-4, gt=0, le=1, description="a response's ratio is cut below 1 - this (paper's)"
        )
        clip_high: float = Field(
            4e-4, gt=0, description="a response's ratio is cut above 1 + this (paper's)"
        )

    config: Config
    mean_over = "responses"

    def gain(
        self, log_ratio: Tensor, batch: Rollout, outputs: PolicyOutputs
    ) -> tuple[Tensor, Tensor]:
        """The surrogate of each response, the same at all its tokens (B, T)."""
        mean = log_ratio.sum(1) / batch.mask.sum(1)  # (B,) of log ρ
        bounds = self.config.clip_low, self.config.clip_high
        gain, cut = surrogate(mean, batch.advantages[:, 0], *bounds)
        return gain[:, None].expand_as(log_ratio), cut[:, None].expand_as(log_ratio)

    def mean(self, x: Tensor, mask: Tensor, ctx: Context) -> Tensor:
        """Mean over a response's tokens, then over responses."""
        return (x.sum(1) / mask.sum(1)).mean()
