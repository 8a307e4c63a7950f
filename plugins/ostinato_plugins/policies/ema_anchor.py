"""A KL anchor that follows the policy."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Policy, Reward, follow, hookimpl


class EmaAnchor:
    """Anchor the KL to a moving average of the policy itself, not to pi_k_init (WARP 3.1)."""

    paper = "Rame et al. 2024 (WARP, arXiv 2406.16768), section 3.1"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        mu: float = Field(
            0.01,
            ge=0,
            le=1,
            description="share of the policy that each optimiser update adds to the anchor "
            "(the paper's 0.01); 0 is the fixed anchor",
        )

    config: Config

    @hookimpl
    def train_policy(self, optimise: Any, initial: Policy, reward_model: Reward) -> Policy:
        """anchor <- (1 - mu) anchor + mu theta after each optimiser update."""

        def on_update(policy: Policy, anchor: Policy) -> None:
            follow(anchor, policy, self.config.mu)

        trained: Policy = optimise(initial, reward_model, on_update=on_update)
        return trained
