"""Turn round the labels that the votes say are wrong."""

from __future__ import annotations

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, hookimpl, swapped


class Flip:
    """Swap chosen and rejected where the preference strength is low (Secrets of RLHF II, 2.4.1)."""

    paper = "Secrets of RLHF II, section 2.4.1"
    consumes = ("strength_mean",)

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        threshold: float = Field(
            0.0, description="flip where the mean strength is below this (ours)"
        )
        lowest: float | None = Field(
            None,
            gt=0,
            lt=1,
            description="flip this share with the lowest strength instead (paper's .2)",
        )

    config: Config

    @hookimpl
    def refine_data(self, data: Dataset, ctx: Context) -> Dataset:
        """Flip, and negate strength and margin, which point from chosen to rejected, with it."""
        strength = torch.tensor(data["strength_mean"][:], dtype=torch.float64)
        if self.config.lowest is None:
            flip = strength < self.config.threshold
        else:
            flip = torch.zeros(len(strength), dtype=torch.bool)
            count = round(self.config.lowest * len(strength))
            flip[strength.argsort(stable=True)[:count]] = True
        ctx.log(**{"flip/share": float(flip.double().mean())})
        data = swapped(data, flip.tolist())
        table = data.to_dict()
        for column in ("strength_mean", "margin"):
            kept = torch.tensor(table[column], dtype=torch.float64)
            table[column] = torch.where(flip, -kept, kept).tolist()
        return Dataset.from_dict(table, features=data.features)
