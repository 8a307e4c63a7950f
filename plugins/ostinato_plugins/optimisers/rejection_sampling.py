"""Rejection sampling: supervised fine-tuning on the best of the policy's own responses."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from ostinato import Context, PolicyAlgorithm, PolicyOutputs, Rollout, hookimpl
from ostinato.measures import masked_mean


class RejectionSampling(PolicyAlgorithm):
    """Fine-tune on the best of N responses to each prompt, or on the best of all (Book, 10)."""

    paper = "A Little Bit of RLHF, section 10 (rejection sampling)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        responses: int = Field(8, ge=2, description="responses a prompt (N; Book: 10 to 30)")
        select: Literal["per_prompt", "overall"] = Field(
            "per_prompt", description="the best response to each prompt, or the best of the rollout"
        )
        top: int | float | None = Field(
            None,
            gt=0,
            description="how many `overall` keeps: a number, or a share with a decimal point; "
            "as many as there are prompts when left out",
        )

        @field_validator("top")
        @classmethod
        def _share(cls, value: float | None) -> float | None:
            if isinstance(value, float) and value > 1:
                raise ValueError(f"a share should be at most 1.0, got {value:g}")
            return value

        @model_validator(mode="after")
        def _counts(self) -> RejectionSampling.Config:
            if self.top is not None and self.select == "per_prompt":
                raise ValueError("top goes with select: overall; per_prompt keeps one a prompt")
            return self

    config: Config
    kl_in_reward = False

    def __init__(self) -> None:
        self.responses_per_prompt = self.config.responses

    @hookimpl
    def policy_algorithm(self) -> RejectionSampling:
        """The algorithm is the plugin itself."""
        return self

    def advantages(self, rollout: Rollout, ctx: Context) -> tuple[Tensor, Tensor]:
        """1 on the real tokens of selected responses, else 0; both (B, T).

        Ranked by ``score`` without any KL; of equal ones the first is taken.
        """
        rows = rollout.group.argsort(stable=True).view(-1, self.config.responses)  # (prompts, N)
        if self.config.select == "per_prompt":
            best = rows.gather(1, rollout.score[rows].argmax(1, keepdim=True)).flatten()
        else:
            order = rollout.score.argsort(descending=True, stable=True)
            best = order[: self._count(len(order))]
        chosen = torch.zeros_like(rollout.rewards).index_fill(0, best, 1.0)
        return chosen * rollout.mask, torch.zeros_like(rollout.rewards)

    @hookimpl
    def filter_rollout(self, rollout: Rollout) -> Tensor:
        """The selected rows: no others are trained on."""
        return rollout.advantages.any(1).nonzero().flatten()

    def loss(self, batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:
        """Negative log-likelihood of the selected responses, nats per token."""
        return {"nll": -masked_mean(outputs.logprobs, batch.mask)}

    def _count(self, size: int) -> int:
        """How many of ``size`` responses are the best overall."""
        top = self.config.top
        if top is None:
            return size // self.config.responses
        return max(1, round(top * size)) if isinstance(top, float) else min(top, size)
