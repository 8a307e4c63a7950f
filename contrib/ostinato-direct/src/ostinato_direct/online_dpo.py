"""Online DPO."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from ostinato_direct.pairs import OnlinePairs


class OnlineDPO(OnlinePairs):
    """DPO on two of the policy's own responses, which the run's reward compares (Guo et al. 2024).

    With y+ the response with the higher reward and y- the other, the loss is the mean over prompts
    of

        -log sigma(β (log π(y+|x)/π_ref(y+|x) - log π(y-|x)/π_ref(y-|x)))

    (Rafailov et al. 2023, equation 7, on pairs that are drawn anew in every rollout). β takes the
    place of the KL coefficient, which this algorithm does not read.
    """

    paper = "Guo et al. 2024, OAIF (arXiv 2402.04792), section 3; Rafailov et al. 2023, DPO"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        beta: float = Field(0.1, gt=0, description="β, weight of the KL to the reference (TRL's)")

    config: Config

    def of_margin(self, margin: Tensor) -> Tensor:
        """-log sigma(β margin)."""
        return -logsigmoid(self.config.beta * margin)
