"""Nash-MD: the reward is the chance to win against a mixture of policy and reference."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, RewardBatch, hookimpl


class NashMD:
    """Win against a mixture of the policy and its reference (Munos et al. 2023).

    The reward of a response y becomes P(y beats y'|x) - 1/2, its opponent y' drawn token by token
    from the geometric mixture

        π'(.) ∝ π(.)^(1 - β) π_ref(.)^β

    (section 7 and equation 15). The run's reward r stands in for a preference model: P is
    sigma((r(y) - r(y')) / scale). τ, which weighs the KL to the reference, is the run's KL
    coefficient. Any algorithm then follows the paper's gradient. Scores are (B,), calibrated.
    """

    paper = "Munos et al. 2023, Nash Learning from Human Feedback (arXiv 2312.00886), section 7"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        mixture: float = Field(
            0.125,
            ge=0,
            le=1,
            description="β, the reference's share of the opponent (paper: .125 to .375); 0 is "
            "self-play, 1 the best response to the reference",
        )
        scale: float = Field(
            1.0, gt=0, description="calibrated reward that is worth one logit of preference (ours)"
        )
        opponents: int = Field(
            1, ge=1, description="opponents of each response, P is their mean (paper's)"
        )

    config: Config

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """P(y beats y') - 1/2 for the score of B responses; rewards of tokens are in it."""
        count = self.config.opponents
        drawn = ctx.sample(
            ctx.policy,
            rewards.samples,
            "nash_md",
            count,
            shape=self.mix,
            reference=ctx.reference,
        )
        with ctx.autocast():
            theirs = ctx.reward.score_samples(drawn).total.to(rewards.score)
        mine = rewards.score + rewards.token_score.sum(1)
        chance = torch.sigmoid((mine[:, None] - theirs.view(-1, count)) / self.config.scale).mean(1)
        ctx.log(**{"nash_md/wins": float(chance.mean())})
        nothing = torch.zeros_like(rewards.token_score)
        return replace(rewards, score=chance - 0.5, token_score=nothing)

    def mix(self, logits: Tensor, reference: Tensor | None) -> Tensor:
        """Logits (B, vocabulary) of the geometric mixture, up to its normaliser."""
        assert reference is not None
        return torch.lerp(logits, reference, self.config.mixture)
