"""Labels from the gold reward model."""

from __future__ import annotations

from typing import Literal

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, hookimpl


class GoldLabels:
    """Prefer the response with the higher gold score, with label noise where asked (Wolf 2.1)."""

    paper = "Wolf 2025, section 2.1; Gao et al. 2023"
    needs_gold = True

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        mode: Literal["deterministic", "sampled"] = Field(
            "deterministic", description="the higher score wins, or Bradley-Terry draws the winner"
        )
        temperature: float = Field(
            1.0, gt=0, description="gold difference that counts as one nat, when sampled"
        )
        flip: float = Field(0.0, ge=0, le=0.5, description="share of labels turned round at random")

    config: Config

    @hookimpl
    def label(self, comparisons: Dataset, ctx: Context) -> list[float]:
        """1 where the first response wins, 0 where the second does, .5 where gold ties them."""
        first = torch.tensor(comparisons["first_gold"][:], dtype=torch.float64)
        second = torch.tensor(comparisons["second_gold"][:], dtype=torch.float64)
        difference = first - second
        generator = ctx.generator("labels")
        if self.config.mode == "sampled":
            chance = (difference / self.config.temperature).sigmoid()
            wins = torch.rand(len(chance), generator=generator, dtype=torch.float64) < chance
            labels = wins.double()
        else:
            labels = 0.5 + 0.5 * difference.sign()
        noise = torch.rand(len(labels), generator=generator, dtype=torch.float64)
        return torch.where(noise < self.config.flip, 1 - labels, labels).tolist()
