"""Keep the reward model able to tell the current policy's responses apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import hookimpl


class MetaRM:
    """Take the gradient where responses of the current policy differ more (Secrets II, MetaRM)."""

    paper = "Secrets of RLHF II, section 3.2, algorithm 1, equations 11 to 14"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        responses: int = Field(
            4, ge=2, description="responses a prompt from the current policy (k, ours)"
        )
        eta: float = Field(1e-3, gt=0, description="step of the meta ascent, eq 12 (ours)")

    config: Config

    @property
    def needs(self) -> dict[str, Any]:
        """Unlabelled responses of the current policy."""
        return {"meta_responses": self.config.responses}

    @hookimpl
    def meta_update(
        self, parameters: Mapping[str, Tensor], score: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        """theta' = theta + eta grad J: the loss's gradient is taken there, the step at theta."""
        objective = difference_objective(score())
        gradients = torch.autograd.grad(objective, list(parameters.values()), allow_unused=True)
        return {
            name: self.config.eta * gradient
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }


def difference_objective(scores: Tensor) -> Tensor:
    """J = 2 / k^2 sum_{i<j} sigmoid(|r_i - r_j|), mean over prompts; scores (prompts, k)."""
    k = scores.shape[1]
    i, j = torch.triu_indices(k, k, offset=1, device=scores.device)
    return 2 / k**2 * (scores[:, i] - scores[:, j]).abs().sigmoid().sum(1).mean()
