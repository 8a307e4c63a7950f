"""The log-sigmoid of the reward, centred on a good response of the SFT policy."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from ostinato import Context, Reward, Samples, Scores, hookimpl, wrapped
from ostinato_shaping.references import Referenced, of_sft


class LSC(Referenced):
    """Reward the log-probability that a response is good, against a good one of the SFT policy."""

    paper = (
        "Wang et al. 2024, Transforming and Combining Rewards for Aligning Large Language Models "
        "(arXiv 2402.00742)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        references: int = Field(
            10, ge=2, description="SFT responses a prompt that the quantile is estimated from"
        )
        quantile: float = Field(
            0.85, gt=0, lt=1, description="of the SFT policy's rewards, where the centre lies"
        )
        estimate: Literal["normal", "empirical"] = Field(
            "normal", description="the quantile: of a fitted normal distribution, or of the sample"
        )

    config: Config

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """r'(x, y) = log sigma(r(x, y) - r_ref(x)): (B,), at most 0 before it is centred.

        r_ref(x) is a quantile q of r(x, y_m), y_m ~ pi_sft(. | x): mean + std z_q with ddof 1 where
        it is ``normal``. r is a response's total; ``token_score`` is part of it, so none is left.
        """
        self.begin(ctx.iteration)
        respond = of_sft(ctx, "lsc", self.config.references)

        def good(samples: Samples, scores: Scores) -> Scores:
            total = scores.total
            centre = self._centre(self.references(samples, reward, respond)).to(total)
            return replace(scores, score=logsigmoid(total - centre), token_score=None)

        made = wrapped(reward, good)
        if ctx.ruler is not None:
            sft = ctx.ruler.evaluation
            centre = self._centre(self.references(sft, reward, respond))
            above = (reward.score_samples(sft).total > centre).float()
            ctx.log(**{"lsc/centre": float(centre.mean()), "lsc/sft_above": float(above.mean())})
        return made

    def _centre(self, rewards: Tensor) -> Tensor:
        """The quantile (B,) of rewards (B, M)."""
        if self.config.estimate == "empirical":
            return rewards.quantile(self.config.quantile, dim=1)
        return rewards.mean(1) + rewards.std(1) * NormalDist().inv_cdf(self.config.quantile)
