"""How strongly reward models trained on the data itself believe in each of its labels."""

from __future__ import annotations

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, hookimpl


class Strength:
    """Measure preference strength by the votes of M reward models (Secrets II, section 2.2)."""

    paper = "Secrets of RLHF II, section 2.2, equation 4"
    provides = ("strength_mean", "strength_std")

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        models: int = Field(10, ge=1, description="reward models that vote (M, the paper's 10)")
        epochs: float = Field(
            1.0,
            gt=0,
            description="passes over the data (ours); longer training memorises the noise",
        )

    config: Config

    @hookimpl
    def refine_data(self, data: Dataset, ctx: Context) -> Dataset:
        """Add the mean and population std of d_i = r(x, chosen) - r(x, rejected) over M models.

        The votes are in-sample; each model sees the data in an order of its own. Made once an
        iteration and kept in the run directory.
        """
        votes = ctx.cached("strength", lambda: self._vote(data, ctx))
        for column in self.provides:
            data = data.add_column(column, votes[column][:])
        return data

    def _vote(self, data: Dataset, ctx: Context) -> Dataset:
        margins = []
        for m in range(self.config.models):
            model = ctx.fit(data, purpose=f"strength {m}", epochs=self.config.epochs)
            chosen, rejected = (
                model.score(data["prompt"][:], data[side][:], data[f"{side}_finished"][:])
                for side in ("chosen", "rejected")
            )
            margins.append((chosen - rejected).double().cpu())
        stacked = torch.stack(margins)  # (models, comparisons)
        return Dataset.from_dict(
            {
                "strength_mean": stacked.mean(0).tolist(),
                "strength_std": stacked.std(0, correction=0).tolist(),
            }
        )
