"""Contrastive learning on the reward model's own features."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ostinato import PreferenceBatch, RMOutputs, hookimpl


class SimCSE:
    """Pull two dropout views of a response together, away from all others (Secrets II, eq 9)."""

    paper = "Secrets of RLHF II, section 3.1, equation 9; Gao et al. 2021 (SimCSE)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        beta: float = Field(0.1, gt=0, description="weight of the contrastive term (ours)")
        temperature: float = Field(0.05, gt=0, description="InfoNCE temperature (SimCSE's)")
        dropout: float = Field(
            0.1, gt=0, lt=1, description="dropout that makes the two views (SimCSE's)"
        )
        samples: Literal["pairs", "difference"] = Field(
            "pairs", description="contrast responses, or differences of chosen and rejected"
        )

    config: Config

    @property
    def needs(self) -> dict[str, Any]:
        """Two views of every response under dropout."""
        return {"views": 2, "dropout": self.config.dropout}

    @hookimpl
    def rm_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> dict[str, Tensor]:
        """InfoNCE over the micro-batch: accumulation does not make it any larger."""
        first, second = outputs.hidden[0], outputs.hidden[1]  # (N, D)
        if self.config.samples == "difference":
            first, second = batch.differences(first), batch.differences(second)
        similarity = normalize(first, dim=-1) @ normalize(second, dim=-1).T  # (rows, rows)
        own = torch.arange(len(similarity), device=similarity.device)
        return {
            "contrastive": self.config.beta
            * cross_entropy(similarity / self.config.temperature, own)
        }
