"""Keep each reward at the value up to which it is a good proxy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

import ostinato
from ostinato import Context, Reward, RewardBatch, UserError, hookimpl


class Constrained:
    """Hold each reward at its threshold by a multiplier that is learnt."""

    paper = (
        "Moskovitz et al. 2024, Confronting Reward Model Overoptimization with Constrained RLHF "
        "(arXiv 2310.04373)"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        thresholds: list[float] = Field(
            [1.0],
            min_length=1,
            description="where the run's reward is held, in its own units, then each function",
        )
        of: Literal["score", "parts"] = Field(
            "score", description="what is held: R_k, or each member (and head) that it is made of"
        )
        functions: list[str] = Field(
            [], description="further rewards: file.py:name or module:name of plain functions"
        )
        constraint: Literal["equal", "at_least"] = Field(
            "equal",
            description="equal: multipliers in (-1, 1), xi-PPO; at_least: in (0, 1), mu-PPO",
        )
        lr: float = Field(
            0.1, gt=0, description="step of the multipliers at each rollout (the authors' 0.1)"
        )

        @model_validator(mode="after")
        def _alike(self) -> Constrained.Config:
            if len(self.thresholds) != 1 + len(self.functions):
                counts = f"{len(self.thresholds)} thresholds for 1 reward and {len(self.functions)}"
                raise ValueError(f"{counts} functions, expected one each")
            return self

    config: Config

    def __init__(self) -> None:
        self._weights = torch.zeros(0)  # (N,) what the multipliers are squashed from
        self._functions: list[Reward] = []

    @property
    def functions(self) -> list[str]:
        """What `ostinato check` asks once."""
        return self.config.functions

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """sum_i lambda_i r_i - (N - sum_i lambda_i) KL, lambda_i = tanh(w_i) or sigmoid(w_i).

        Then w_i <- w_i - lr d/dw_i [lambda_i (mean r_i - theta_i)], of N rewards r_i (B,) with
        thresholds theta_i. The multipliers start at w = 0 in each run of the optimiser, and move
        once a rollout. Raises UserError where the number of parts changes under them.
        """
        dense = rewards.token_score.masked_fill(~rewards.mask, 0.0)
        held = (rewards.score + dense.sum(1))[:, None]
        if self.config.of == "parts":
            held, dense = rewards.parts.flatten(1), torch.zeros_like(dense)
        added = [f.score_samples(rewards.samples).score[:, None] for f in self._made(ctx)]
        proxies = torch.cat([held, *added], dim=1).to(rewards.score)  # (B, N)
        multipliers = self._moved(proxies.double().mean(0).cpu(), held.shape[1], ctx)
        by = multipliers.to(proxies)
        return replace(
            rewards,
            score=proxies @ by - by[0] * dense.sum(1),  # which its tokens are given
            token_score=by[0] * dense,
            kl_scale=rewards.kl_scale * (len(by) - by.sum()),
        )

    def _made(self, ctx: Context) -> list[Reward]:
        if len(self._functions) != len(self.functions):
            self._functions = [ostinato.reward(name, ctx.columns) for name in self.functions]
        return self._functions

    def _moved(self, means: Tensor, held: int, ctx: Context) -> Tensor:
        """The multipliers (N,) of this rollout; those of the next one follow from its means."""
        first, *others = self.config.thresholds
        thresholds = means.new_tensor([first] * held + others)
        if ctx.step == 0 and ctx.attempt == 0:
            self._weights = torch.zeros_like(means)
        if len(self._weights) != len(means):
            counts = f"{len(means)} rewards, expected {len(self._weights)} as in the one before"
            raise UserError(f"plugin 'constrained': this rollout has {counts}")
        if self.config.constraint == "equal":
            multipliers = self._weights.tanh()
            slope = 1 - multipliers.square()
        else:
            multipliers = self._weights.sigmoid()
            slope = multipliers * (1 - multipliers)
        if ctx.attempt == 0:  # a rollout that is refilled counts once
            self._weights = self._weights - self.config.lr * slope * (means - thresholds)
        for i, (multiplier, mean) in enumerate(zip(multipliers, means, strict=True)):
            ctx.log(**{f"constrained/multiplier_{i}": multiplier, f"constrained/mean_{i}": mean})
        return multipliers

    def state_dict(self) -> dict[str, Any]:
        """What the multipliers are squashed from."""
        return {"weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Those of a run that is resumed."""
        self._weights = state["weights"]
