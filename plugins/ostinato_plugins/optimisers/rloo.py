"""REINFORCE with a leave-one-out baseline."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl
from ostinato.measures import clipped_surrogate


class RLOO(PolicyAlgorithm):
    """REINFORCE whose baseline is the mean of a prompt's other responses (Ahmadian et al. 2024)."""

    paper = "Ahmadian et al. 2024, Back to Basics (arXiv 2402.14740); Book, section 11.1.3"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        responses: int = Field(4, ge=2, description="responses a prompt (K; paper: 2 and 4)")
        clip: float | None = Field(
            0.2,
            gt=0,
            description="clip range of a response's probability ratio, for updates after the "
            "first of a rollout; null is off (paper: one update, no ratio)",
        )

    config: Config
    mean_over = "responses"

    def __init__(self) -> None:
        self.responses_per_prompt = self.config.responses

    @hookimpl
    def policy_algorithm(self) -> RLOO:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """R_i minus the mean of the prompt's other R_j, at every real token; both (B, T).

        R is the reward of the whole response, its KL taken off.
        """
        reward = rollout.rewards.masked_fill(~rollout.mask, 0.0).sum(1)  # (B,)
        rows = rollout.group.argsort(stable=True).view(-1, self.config.responses)  # (prompts, K)
        mine = reward[rows]
        others = (mine.sum(1, keepdim=True) - mine) / (self.config.responses - 1)
        found = torch.empty_like(reward).index_put((rows,), mine - others)
        return found[:, None] * rollout.mask, torch.zeros_like(rollout.rewards)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """REINFORCE on log pi(y|x) as a whole, mean over responses.

        Through the ratio of whole responses: at the first update its gradient is that of
        -A log pi(y|x), and later ones are corrected for the policy that sampled.
        """
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0).sum(1)
        gain = clipped_surrogate(log_ratio, batch.advantages[:, 0], self.config.clip)
        return {"policy": -gain.mean(), "log/ratio": log_ratio.detach().exp().mean()}
