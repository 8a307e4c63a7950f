"""Soften the labels that the votes doubt, or those that are learnt too easily."""

from __future__ import annotations

from typing import Literal

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, hookimpl


class SoftLabels:
    """Smooth the labels of negative or of the strongest comparisons (Secrets II, equation 5)."""

    paper = "Secrets of RLHF II, sections 2.4.1 and 2.4.2, equation 5"
    consumes = ("strength_mean",)

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        alpha: float = Field(
            0.1, gt=0, le=0.5, description="smoothing; at 0.5 the label is a tie (0.1 is ours)"
        )
        on: Literal["negative", "strongest"] = Field(
            "negative", description="where the mean strength is below 0, or where it is highest"
        )
        share: float = Field(
            0.1, gt=0, le=1, description="with `on: strongest`, the share of comparisons (paper's)"
        )

    config: Config

    @hookimpl
    def refine_data(self, data: Dataset, ctx: Context) -> Dataset:
        """Label p becomes (1 - alpha) p + alpha (1 - p): 1 - alpha where p = 1."""
        strength = torch.tensor(data["strength_mean"][:], dtype=torch.float64)
        soften = strength < 0
        if self.config.on == "strongest":
            soften = torch.zeros_like(soften)
            count = round(self.config.share * len(strength))
            soften[strength.argsort(stable=True, descending=True)[:count]] = True
        ctx.log(**{"soft_labels/share": float(soften.double().mean())})
        table, alpha = data.to_dict(), self.config.alpha
        label = torch.tensor(table["label"], dtype=torch.float64)
        smooth = (1 - alpha) * label + alpha * (1 - label)
        table["label"] = torch.where(soften, smooth, label).tolist()
        return Dataset.from_dict(table, features=data.features)
