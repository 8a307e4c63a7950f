"""Group relative policy optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl
from ostinato.measures import clipped_surrogate, kl_k1, kl_k2, kl_k3, masked_mean

KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


class GRPO(PolicyAlgorithm):
    """PPO's clipped loss on rewards standardised among a prompt's responses (Shao et al. 2024)."""

    paper = "Shao et al. 2024, DeepSeekMath (arXiv 2402.03300), equations 3 and 4; Book, 11.1.5"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        responses: int = Field(4, ge=2, description="responses a prompt (G; paper: 64)")
        clip: float = Field(0.2, gt=0, description="clip range of a token's probability ratio")
        estimator: Literal["k1", "k2", "k3"] = Field(
            "k3", description="the KL of a token in the loss (paper: k3)"
        )
        mean: Literal["responses", "tokens"] = Field(
            "responses",
            description="mean over each response's tokens, then over responses (paper), or over "
            "all tokens",
        )

    config: Config
    kl_in_reward = False

    def __init__(self) -> None:
        self.responses_per_prompt = self.config.responses
        self.mean_over = self.config.mean

    @hookimpl
    def policy_algorithm(self) -> GRPO:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """(r_i - mean) / (std + 1e-4) in the group, ddof 1, at every real token; both (B, T)."""
        rows = rollout.group.argsort(stable=True).view(-1, self.config.responses)  # (prompts, G)
        score = rollout.score[rows]
        std, mean = torch.std_mean(score, dim=1, keepdim=True)
        made = torch.empty_like(rollout.score).index_put((rows,), (score - mean) / (std + 1e-4))
        return made[:, None] * rollout.mask, torch.zeros_like(rollout.rewards)

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """The clipped surrogate, and the KL to the reference times each response's coefficient."""
        log_ratio = (outputs.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0)
        gain = clipped_surrogate(log_ratio, batch.advantages, self.config.clip)
        kl = KL[self.config.estimator](outputs.logprobs, batch.ref_logprobs)  # (B, T)
        ratio = log_ratio.detach().exp()
        return {
            "policy": -self._mean(gain, batch.mask),
            "kl": self._mean(batch.kl_coefficient[:, None] * kl, batch.mask),
            "log/kl": self._mean(kl.detach(), batch.mask),
            "log/clipped": self._mean(((ratio - 1).abs() > self.config.clip).float(), batch.mask),
            "log/ratio": self._mean(ratio, batch.mask),
        }

    def _mean(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mean of x (B, T) over real tokens as the setting says, a scalar."""
        if self.config.mean == "tokens":
            return masked_mean(x, mask)
        return (x.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)).mean()
