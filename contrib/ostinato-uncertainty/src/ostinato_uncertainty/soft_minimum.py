"""A soft minimum over reward models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Reward, combine, hookimpl


class SoftMinimum:
    """Optimise on the entropic risk of the reward over reward models, between mean and minimum."""

    paper = "Hahami et al. 2026, A Unifying Lens on Reward Uncertainty in RLHF, arXiv 2606.09073"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        beta: float = Field(
            0.5,
            gt=0,
            description="in units of the reward: to 0 the minimum, to infinity the mean (ours; the "
            "paper ties it to the KL coefficient)",
        )
        estimator: Literal["exact", "gaussian"] = Field(
            "exact",
            description="-beta log mean exp(-r / beta), or mean - variance / (2 beta) (the paper's "
            "advice for few models)",
        )
        over: Literal["members", "heads"] = Field(
            "members", description="over reward models, or over all their heads"
        )

    config: Config

    @property
    def needs(self) -> dict[str, Any]:
        """Over heads, a reward model of one head would be its own minimum, at any iteration."""
        return {"members": 2} if self.config.over == "heads" else {}

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """Equation 14, or 15, of calibrated scores."""
        return combine(reward_models, self.reduce, heads=self.config.over == "heads")

    def reduce(self, scores: Tensor) -> Tensor:
        """(B, n) -> (B,)."""
        beta, count = self.config.beta, scores.shape[1]
        if self.config.estimator == "exact":
            return -beta * ((-scores / beta).logsumexp(1) - math.log(count))
        spread = scores.var(1) if count > 1 else 0.0
        return scores.mean(1) - spread / (2 * beta)
