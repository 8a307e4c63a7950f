"""Keep scores around 0, which a preference loss alone leaves free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import PreferenceBatch, RMOutputs, hookimpl


class Centre:
    """Pull the scores of chosen and rejected towards opposite signs (Eisenstein et al. 2023)."""

    paper = "Eisenstein et al. 2023 (Helping or Herding?), equation 2"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        weight: float = Field(0.01, gt=0, description="weight of (r_chosen + r_rejected)^2 (TRL's)")

    config: Config

    @hookimpl
    def rm_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> dict[str, Tensor]:
        """weight * (r_chosen + r_rejected)^2, mean over views and comparisons.

        r is the score (V, N), not the logits: of some heads they are no rewards.
        """
        chosen, rejected = (outputs.score[:, batch.pairs[:, side]] for side in (0, 1))  # (V, C)
        return {"squared": self.config.weight * (chosen + rejected).square().mean()}
