"""REINFORCE with a running mean as its baseline."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl
from ostinato.measures import clipped_surrogate


class Reinforce(PolicyAlgorithm):
    """REINFORCE with the mean reward of all rollouts before as its baseline (Williams 1992)."""

    paper = (
        "Williams 1992, REINFORCE; Ahmadian et al. 2024 (arXiv 2402.14740), moving-average "
        "baseline; Book, section 11.1.2"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        clip: float | None = Field(
            0.2,
            gt=0,
            description="clip range of a response's probability ratio, for updates after the "
            "first of a rollout; null is off (paper: one update, no ratio)",
        )

    config: Config
    mean_over = "responses"

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    @hookimpl
    def policy_algorithm(self) -> Reinforce:
        """The plugin itself; each policy begins with a baseline of its own."""
        self.total, self.count = 0.0, 0
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """R minus the mean R of all rollouts before, at every real token; both (B, T).

        The first rollout, which has none before it, takes the mean of its other responses: no
        baseline may contain the response's own reward, or the gradient is biased.
        """
        reward = rollout.rewards.masked_fill(~rollout.mask, 0.0).sum(1)  # (B,), its KL taken off
        size, total = len(reward), reward.sum()
        first = (total - reward) / max(1, size - 1)
        baseline = torch.full_like(reward, self.total / self.count) if self.count else first
        self.total += float(reward.double().sum())
        self.count += size
        found = (reward - baseline)[:, None] * rollout.mask
        return found, torch.zeros_like(rollout.rewards)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """REINFORCE on log pi(y|x) as a whole, mean over responses.

        Through the ratio of whole responses: at the first update its gradient is that of
        -A log pi(y|x), and later ones are corrected for the policy that sampled.
        """
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0).sum(1)
        gain = clipped_surrogate(log_ratio, batch.advantages[:, 0], self.config.clip)
        return {"policy": -gain.mean(), "log/ratio": log_ratio.detach().exp().mean()}

    def state_dict(self) -> dict[str, Any]:
        """What the baseline is the mean of."""
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a baseline."""
        self.total, self.count = state["total"], state["count"]
