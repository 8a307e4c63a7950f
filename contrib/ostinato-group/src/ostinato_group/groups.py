"""What the successors of GRPO share: advantages among a prompt's responses, and a KL in the loss.

Shapes: B responses of a rollout, G to each prompt, T tokens of the longest.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl
from ostinato.measures import kl_k3


class GroupSettings(BaseModel):
    """What every one of them can be told."""

    model_config = ConfigDict(extra="forbid")
    responses: int = Field(8, ge=2, description="responses a prompt, G (ours)")


class GroupAlgorithm(PolicyAlgorithm):
    """Advantages among a prompt's responses; the KL to the reference is a term of the loss."""

    config: GroupSettings
    kl_in_reward = False
    standardised = True  # whether advantages are divided by the group's standard deviation

    def __init__(self) -> None:
        self.responses_per_prompt = self.config.responses

    @hookimpl
    def policy_algorithm(self) -> PolicyAlgorithm:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """r_i - mean(r) among the G, over (std + 1e-4) of ddof 1 if standardised; both (B, T)."""
        rows = rollout.group.argsort(stable=True).view(-1, self.config.responses)  # (prompts, G)
        score = rollout.score[rows]
        std, mean = torch.std_mean(score, dim=1, keepdim=True)
        found = (score - mean) / (std + 1e-4) if self.standardised else score - mean
        made = torch.empty_like(rollout.score).index_put((rows,), found)
        return made[:, None] * rollout.mask, torch.zeros_like(rollout.rewards)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """Minus the gain, and k3 of the KL to the reference times each response's coefficient."""
        mask = batch.mask
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~mask, 0.0)  # (B, T)
        gain, cut = self.gain(log_ratio, batch, outputs)
        kl = kl_k3(outputs.logprobs, batch.ref_logprobs).masked_fill(~mask, 0.0)
        return {
            "policy": -self.mean(gain.masked_fill(~mask, 0.0), mask, ctx),
            "kl": self.mean(batch.kl_coefficient[:, None] * kl, mask, ctx),
            "log/kl": kl.detach().sum() / mask.sum(),
            "log/clipped": (cut & mask).sum() / mask.sum(),
            "log/ratio": log_ratio.detach().exp().masked_fill(~mask, 0.0).sum() / mask.sum(),
        }

    @abstractmethod
    def gain(
        self, log_ratio: Tensor, batch: Rollout, outputs: PolicyOutputs
    ) -> tuple[Tensor, Tensor]:
        """What is maximised at each token, and whether its ratio was cut; both (B, T)."""

    def mean(self, x: Tensor, mask: Tensor, ctx: Context) -> Tensor:
        """Mean of x (B, T), 0 on padding, over all real tokens: a scalar."""
        return x.sum() / mask.sum()


def surrogate(
    log_ratio: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """min(ρ A, clip(ρ, 1 - low, 1 + high) A) with ρ = exp(log_ratio), and where the second is less.

    Any one shape. Where the clipped product is the smaller, there is no gradient.
    """
    ratio = log_ratio.exp()
    whole, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return torch.minimum(whole, clipped), clipped.detach() < whole.detach()
