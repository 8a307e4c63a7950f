"""What optimises a policy: the class that a policy algorithm derives from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from ostinato.contract.batches import PolicyOutputs, Rollout
from ostinato.contract.context import Context


class PolicyAlgorithm(ABC):
    """Advantage estimator and loss; the engine samples, scores, and steps the optimiser."""

    responses_per_prompt: int = 1
    value_heads: int = 0
    kl_in_reward: bool = True
    mean_over: Literal["tokens", "responses"] = "tokens"  # of the loss: micro-batches add up
    whole_groups: bool = False  # the responses to one prompt stay in one micro-batch

    @abstractmethod
    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """Advantages (B, T) and returns, as ``rollout.values``; zero on padding."""

    @abstractmethod
    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """Named terms; their sum is minimised. Entries named ``log/...`` are only logged."""
