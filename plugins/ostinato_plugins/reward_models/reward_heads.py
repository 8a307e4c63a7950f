"""Several linear heads on one frozen body, for a cheap variance of the reward."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, RewardModel, hookimpl


class RewardHeads:
    """Train one reward model, freeze its body, and train H linear heads on it (UA, section 4)."""

    paper = "Uncertainty-aware RLHF, section 4"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        heads: int = Field(10, ge=2, description="linear heads on the frozen body (H, paper's)")
        body_loss: float = Field(
            0.4, gt=0, description="stage 1 stops at this training loss (paper's)"
        )
        head_loss: float = Field(
            0.2, gt=0, description="stage 2 stops at this loss a head (paper's)"
        )
        head_lr: float | None = Field(
            None, gt=0, description="learning rate of the heads; the run's when left out"
        )

    config: Config

    @property
    def heads(self) -> int:
        """Heads of each reward model: what a plugin that needs members counts."""
        return self.config.heads

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """One forward pass gives all H rewards; the loss is the sum over heads.

        The first head goes on from the one that the body was trained with. On a frozen body the
        problem is convex, so the heads' spread shrinks as they train; the spread (mean std over
        heads, in units of the scores' std) is logged.
        """
        body = fit(initial, data, stop_loss=self.config.body_loss)
        headed = body.with_head(
            ctx.draws, outputs=self.config.heads, purpose=f"reward heads {ctx.member}"
        )
        with torch.no_grad():
            headed.model.score.weight[:1] = body.model.score.weight
        trained: RewardModel = fit(
            headed,
            data,
            lr=self.config.head_lr,
            stop_loss=self.config.heads * self.config.head_loss,
            train="head",
            purpose="reward heads",
        )
        part = data[: min(len(data), 256)]
        scores = trained.score_text(part["prompt"], part["chosen"], part["chosen_finished"])
        spread = scores.parts.flatten(1).std(1).mean() / scores.score.std().clamp_min(1e-6)
        ctx.log(**{"reward_heads/spread": float(spread)})
        return trained
