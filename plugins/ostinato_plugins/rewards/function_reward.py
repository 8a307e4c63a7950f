"""Optimise on plain functions of text: rules, verifiers, judges. No reward model is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ostinato import Context, Reward, combine, hookimpl, reward


class FunctionReward:
    """Optimise the policy on functions of its texts, in the convention of TRL's reward_funcs."""

    paper = "TRL, GRPOTrainer's reward_funcs; verifiable rewards: Lambert et al. 2024 (Tulu 3)"
    reward_models = False

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        functions: list[str] = Field(
            min_length=1, description="file.py:name or module:name of each function"
        )
        weights: list[float] | None = Field(
            None, description="a weight for each function; 1 when left out"
        )

        @model_validator(mode="after")
        def _alike(self) -> FunctionReward.Config:
            if self.weights is not None and len(self.weights) != len(self.functions):
                counts = f"{len(self.weights)} weights for {len(self.functions)} functions"
                raise ValueError(f"{counts}, expected as many")
            return self

    config: Config

    @property
    def functions(self) -> list[str]:
        """What `ostinato check` asks once."""
        return self.config.functions

    @property
    def heads(self) -> int:
        """Parts of the reward: what a plugin that needs members counts."""
        return len(self.config.functions)

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward], ctx: Context) -> Reward:
        """R_k(x, y) = sum_i w_i f_i(x, y), the same in every iteration; ``parts`` are the f_i."""
        weights = torch.tensor(self.config.weights or [1.0] * self.heads)

        def weighted(each: Tensor) -> Tensor:
            return each @ weights.to(each)

        return combine([reward(name, ctx.columns) for name in self.config.functions], weighted)
