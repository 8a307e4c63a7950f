"""DAPO: clip higher, a mean over tokens, groups that differ, less for overlong responses."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from ostinato import Context, PolicyOutputs, RewardBatch, Rollout, hookimpl
from ostinato_group.groups import GroupAlgorithm, GroupSettings, surrogate

EQUAL = 1e-4  # calibrated reward; the same that the standard deviation is kept above


class DAPO(GroupAlgorithm):
    """GRPO with clip-higher, a token mean, and groups of one reward drawn anew (Yu et al.).

    With A_i = (r_i - mean(r)) / std(r), the loss is minus the mean over all tokens of

        min(ρ_it A_i, clip(ρ_it, 1 - ε_low, 1 + ε_high) A_i)

    on prompts whose responses do not all have one reward (equations 8 and 9): others have no
    gradient, and rollouts are drawn until the batch is full. A response of n tokens loses
    min(1, max(0, n - (L - c)) / c) of reward, L the most tokens it may have and c the last
    ``overlong`` share of them (equation 13).
    """

    paper = "Yu et al. 2025, DAPO (arXiv 2503.14476), equations 8, 9, 12 and 13"

    class Config(GroupSettings):
        """Settings."""

        responses: int = Field(16, ge=2, description="responses a prompt, G (paper's)")
        clip_low: float = Field(
            0.2, gt=0, le=1, description="a token's ratio is cut below 1 - this (paper's)"
        )
        clip_high: float = Field(
            0.28, gt=0, description="a token's ratio is cut above 1 + this (paper's)"
        )
        refill: int = Field(
            9,
            ge=0,
            description="further draws at most of a rollout that lacks groups (paper: no bound; "
            "9 is that of verl's recipe)",
        )
        overlong: float = Field(
            0.2,
            ge=0,
            le=1,
            description="last share of generation.max_new_tokens in which length costs reward, up "
            "to 1 (paper: 4096 of 20480); 0 is off",
        )

    config: Config

    def __init__(self) -> None:
        super().__init__()
        self.refill = self.config.refill

    def gain(
        self, log_ratio: Tensor, batch: Rollout, outputs: PolicyOutputs
    ) -> tuple[Tensor, Tensor]:
        """The surrogate (B, T), clipped higher than low."""
        bounds = self.config.clip_low, self.config.clip_high
        return surrogate(log_ratio, batch.advantages, *bounds)

    @hookimpl
    def filter_rollout(self, rollout: Rollout, ctx: Context) -> Tensor:
        """The rows of groups whose scores are not all the same, to 1e-4."""
        groups, place = rollout.group.unique(return_inverse=True)
        spread = rollout.score.new_zeros(2, len(groups))  # highest and lowest of each group
        for row, which in zip(spread, ("amax", "amin"), strict=True):
            row.scatter_reduce_(0, place, rollout.score, which, include_self=False)
        differ = spread[0] - spread[1] > EQUAL
        ctx.log(**{"dapo/groups_of_one_reward": float((~differ).float().mean())})
        return differ[place].nonzero().flatten()

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """The score less the soft punishment of long responses, each (B,)."""
        longest = ctx.config.generation.max_new_tokens
        last = self.config.overlong * longest
        over = (rewards.samples.lengths - (longest - last)).clamp_min(0).to(rewards.score.dtype)
        punished = (over / last).clamp_max(1) if last else over * 0
        ctx.log(**{"dapo/overlong": float(punished.mean())})
        return replace(rewards, score=rewards.score - punished)
