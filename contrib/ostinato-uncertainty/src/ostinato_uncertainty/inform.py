"""A reward model that reads a response through an information bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ostinato import Context, PreferenceBatch, RewardModel, RMOutputs, Scores, hookimpl


class InfoRM:
    """Score a latent code that keeps only what preferences need (InfoRM)."""

    paper = "Miao et al. 2024 (InfoRM), arXiv 2402.09345"
    consumes = ("margin",)

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        latent: int = Field(16, ge=1, description="size of the code z (ours; the paper's is 128)")
        beta: float = Field(
            0.1, ge=0, description="weight of the KL of z to N(0, I), a mean over z's dimensions"
        )

    config: Config

    def modules(self, hidden_size: int) -> nn.Module:
        """The decoder, which makes a score of z."""
        return nn.Linear(self.config.latent, 1, bias=False)

    @staticmethod
    def read(logits: Tensor, zeros: Tensor, modules: Mapping[str, nn.Module]) -> Scores:
        """The decoder's score of the mean of z, which is ``hidden``: logits (N, 2 latent)."""
        z, _ = logits.chunk(2, dim=-1)
        score = modules["inform"](z) - zeros  # (N, 1)
        return Scores(score[:, 0], score[:, None], hidden=z.float()[:, None])

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """The head is the encoder: means and log-variances of z, 2 ``latent`` outputs."""
        start = initial.with_head(
            ctx.draws,
            2 * self.config.latent,
            reader="inform",
            purpose=f"inform encoder {ctx.member}",
        )
        trained: RewardModel = fit(start, data)
        return trained

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> Tensor:
        """(V, C): Bradley-Terry of f(z), z = mean + std noise; of the score of other models."""
        score = outputs.score
        if outputs.logits.shape[-1] == 2 * self.config.latent:
            mean, log_variance = outputs.logits.chunk(2, dim=-1)  # (V, N, latent)
            noise = torch.randn(mean.shape, generator=ctx.generator("inform noise")).to(mean)
            z = mean + (log_variance / 2).exp() * noise
            score = outputs.modules["inform"](z).squeeze(-1)
        chosen, rejected = (score[:, rows] for rows in batch.pairs.T)
        gap = chosen - rejected - batch.margin
        return -(batch.label * logsigmoid(gap) + (1 - batch.label) * logsigmoid(-gap))

    @hookimpl
    def rm_loss(self, outputs: RMOutputs) -> dict[str, Tensor]:
        """``kl``: beta times KL(N(mean, std^2) || N(0, I)), a mean over responses and z."""
        mean, log_variance = outputs.logits.chunk(2, dim=-1)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return {"kl": self.config.beta * kl.mean()}
