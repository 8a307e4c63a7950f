"""Rules, verifiers and judges beside the reward model."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

import ostinato
from ostinato import Context, Reward, Samples, Scores, hookimpl, wrapped


class AddFunctions:
    """Add plain functions of the texts to the reward: rules, verifiers, judges."""

    paper = "TRL, reward_funcs and reward_weights of GRPOTrainer"

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
        def _alike(self) -> AddFunctions.Config:
            if self.weights is not None and len(self.weights) != len(self.functions):
                counts = f"{len(self.weights)} weights for {len(self.functions)} functions"
                raise ValueError(f"{counts}, expected as many")
            return self

    config: Config

    def __init__(self) -> None:
        self._made: list[Reward] = []

    @property
    def functions(self) -> list[str]:
        """What `ostinato check` asks once."""
        return self.config.functions

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """r'(x, y) = r(x, y) + sum_i w_i f_i(x, y): (B,), each f_i on a scale of its own."""
        self._made = [ostinato.reward(name, ctx.columns) for name in self.functions]
        weights = self.config.weights or [1.0] * len(self.functions)

        def added(samples: Samples, scores: Scores) -> Scores:
            each = self._each(samples).to(scores.score)
            return replace(scores, score=scores.score + each @ each.new_tensor(weights))

        return wrapped(reward, added)

    @hookimpl
    def evaluate(self, ctx: Context) -> dict[str, float]:
        """The mean of each function over the policy's responses, by the function's name."""
        each = self._each(ctx.evaluation.samples)
        names = [name.replace("\\", "/").rpartition("/")[2] for name in self.functions]
        return dict(zip(names, each.mean(0).tolist(), strict=True))

    def _each(self, samples: Samples) -> Tensor:
        """What each function says of each response, (B, functions)."""
        return torch.stack([one.score_samples(samples).score for one in self._made], dim=1)
