"""Preference as reward: how probably a response is preferred to the SFT policy's."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, Reward, Samples, Scores, hookimpl, wrapped
from ostinato_shaping.references import Referenced, of_sft


class PAR(Referenced):
    """Reward a response by how probably it is preferred to the SFT policy's own."""

    paper = "Fu et al. 2025, Reward Shaping to Mitigate Reward Hacking in RLHF (arXiv 2502.18770)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        references: int = Field(
            10, ge=1, description="SFT responses a prompt that it is compared with (the paper's M)"
        )
        steepness: float = Field(
            1.0, gt=0, description="factor of the difference in the sigmoid (the paper's 1)"
        )

    config: Config

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """r'(x, y) = 1/M sum_m sigma(k (r(x, y) - r(x, y_m))), y_m ~ pi_sft(. | x): (B,).

        r is a response's total, in units of the calibrated reward; r' lies in (0, 1) before the
        core takes its mean off. ``token_score`` is part of r, so none is left.
        """
        self.begin(ctx.iteration)
        respond = of_sft(ctx, "par", self.config.references)

        def preference(samples: Samples, scores: Scores) -> Scores:
            total = scores.total
            against = self.references(samples, reward, respond).to(total)  # (B, M)
            won = (self.config.steepness * (total[:, None] - against)).sigmoid().mean(1)
            return replace(scores, score=won, token_score=None)

        made = wrapped(reward, preference)
        if ctx.ruler is not None:
            sft = made.score_samples(ctx.ruler.evaluation).score
            ctx.log(**{"par/sft": float(sft.mean()), "par/sft_std": float(sft.std())})
        return made
