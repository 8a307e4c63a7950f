"""The root of the chi-squared divergence in the place of the KL."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, RewardBatch, hookimpl

LARGEST = 10.0  # log-ratio beyond which the ratio goes on as a straight line (the authors')
SMALLEST = 1e-4  # chi^2 below which the root is held (the authors')


class ChiSquared:
    """Penalise the root of the chi-squared divergence from the reference policy."""

    paper = (
        "Laidlaw et al. 2025, Correlated Proxies: A New Definition and Improved Mitigation for "
        "Reward Hacking (arXiv 2403.03185)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        coefficient: float = Field(
            0.05, gt=0, description="reward that a unit of the root costs (the paper sweeps it)"
        )

    config: Config

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """r - c (rho - 1) / sqrt(chi^2), rho = pi(y | x) / pi_ref(y | x) of whole responses (B,).

        chi^2 = E_pi[rho - 1], estimated by the rollout's mean of rho + 1 / rho - 2, which has the
        same expectation and is never negative. The mean penalty is c sqrt(chi^2), and a policy
        gradient that holds the penalties constant is the gradient of c sqrt(chi^2).
        """
        log_ratio = (rewards.logprobs - rewards.ref_logprobs).double()
        log_ratio = log_ratio.masked_fill(~rewards.mask, 0.0).sum(1)
        above, below = exceeding(log_ratio), exceeding(-log_ratio)  # rho - 1, 1 / rho - 1
        root = (above + below).mean().clamp_min(SMALLEST).sqrt()
        penalty = self.config.coefficient * above / root
        beyond = (log_ratio > LARGEST).double().mean()
        ctx.log(**{"chi_squared/root": float(root), "chi_squared/beyond": float(beyond)})
        return replace(rewards, score=rewards.score - penalty.to(rewards.score))


def exceeding(x: Tensor) -> Tensor:
    """exp(x) - 1, which goes on along its tangent beyond LARGEST."""
    near = x.clamp_max(LARGEST)
    return near.expm1() + (x - near) * near.exp()
