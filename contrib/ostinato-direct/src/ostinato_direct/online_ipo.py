"""Online IPO."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato_direct.pairs import OnlinePairs


class OnlineIPO(OnlinePairs):
    """A squared loss on the margin of two of the policy's own responses (Azar et al. 2023).

    With y+ the response with the higher reward and y- the other, the loss is the mean over prompts
    of

        (log π(y+|x)/π_ref(y+|x) - log π(y-|x)/π_ref(y-|x) - 1/(2 τ))²

    (Azar et al., equation 17, on pairs that are drawn anew, as Calandriello et al. 2024, equation
    11). A preference that is certain asks for a margin of 1/(2 τ) nats and no more. τ takes the
    place of the KL coefficient, which this algorithm does not read.
    """

    paper = "Azar et al. 2023, IPO (arXiv 2310.12036); Calandriello et al. 2024 (arXiv 2403.08635)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        tau: float = Field(0.1, gt=0, description="τ, weight of the KL to the reference (TRL's)")

    config: Config

    def of_margin(self, margin: Tensor) -> Tensor:
        """(margin - 1 / (2 τ))²."""
        return (margin - 0.5 / self.config.tau).square()
