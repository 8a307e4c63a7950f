"""Take off the reward what its length alone explains."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Reward, Samples, Scores, hookimpl, wrapped
from ostinato_shaping.lowess import along, lowess
from ostinato_shaping.odin import correlation


class LengthCalibration:
    """Take off the reward a smooth curve of it over the length of the response."""

    paper = (
        "Huang et al. 2025, Post-hoc Reward Calibration: A Case Study on Length Bias "
        "(arXiv 2409.17407)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        fraction: float = Field(
            0.5,
            gt=0,
            le=1,
            description="share of the responses that each point of the curve is fitted to (the "
            "authors' .5 on RewardBench; .1 on AlpacaEval)",
        )
        strength: float = Field(
            1.0, gt=0, description="share of the curve that is taken off (the paper's 1)"
        )
        responses: int = Field(
            4096, ge=2, description="at most so many responses of D_k help to fit the curve (ours)"
        )

    config: Config

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """r'(x, y) = r(x, y) - s b(|y|): (B,), b a local regression of r on the length in tokens.

        b is fitted once an iteration, to the SFT responses of the ruler and to those of D_k, which
        former policies gave; beyond the shortest and the longest of them it is constant.
        """
        seen = self._responses(ctx)
        lengths = torch.cat([samples.lengths for samples in seen]).cpu()
        worth = torch.cat([reward.score_samples(samples).total for samples in seen]).cpu()
        places, values = lowess(lengths, worth, self.config.fraction)

        def bias(samples: Samples) -> Tensor:
            found = along(places, values, samples.lengths.cpu()) * self.config.strength
            return found.float().to(samples.mask.device)

        def calibrated(samples: Samples, scores: Scores) -> Scores:
            return replace(scores, score=scores.score - bias(samples).to(scores.score))

        left = worth.double() - self.config.strength * along(places, values, lengths)
        for name, of in (("before", worth.double()), ("after", left)):
            found = correlation(of, lengths.double())
            ctx.log(**{f"length_calibration/correlation_{name}": float(found)})
        return wrapped(reward, calibrated)

    def _responses(self, ctx: Context) -> list[Samples]:
        """Responses of the SFT policy, and of D_k where the run learns a reward."""
        assert ctx.ruler is not None
        found = [ctx.ruler.evaluation, ctx.ruler.rl]
        if ctx.data is None:
            return found
        step = max(1, -(-2 * len(ctx.data) // self.config.responses))
        rows = ctx.data.select(range(0, len(ctx.data), step))
        return [*found, *(ctx.responses(rows, side) for side in ("chosen", "rejected"))]
