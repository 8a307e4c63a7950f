"""Rewards that are distributions, and a penalty on those that cannot be told from others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ostinato import (
    Context,
    PreferenceBatch,
    RewardBatch,
    RewardModel,
    RMOutputs,
    Scores,
    UserError,
    hookimpl,
)
from ostinato_uncertainty.features import combiner


class PURM:
    """Learn a normal distribution of each reward, and penalise overlap with others (PURM)."""

    paper = "Sun et al. 2025 (PURM), arXiv 2503.22480"
    consumes = ("margin",)

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        penalty: float = Field(
            1.0, ge=0, description="weight of the uncertainty, which is 0 to 1 (ours); 0 is off"
        )
        window: int = Field(
            1024, ge=1, description="latest responses that overlap is measured with (ours)"
        )
        points: int = Field(
            16, ge=2, description="of the quadrature of the expected preference (paper: samples)"
        )

    config: Config

    def __init__(self) -> None:
        self._seen = torch.zeros(0, 2, 1)  # (responses, mean and std, members * heads)
        self._iteration = 0

    def check_run(self, plugins: Mapping[str, Any]) -> Iterator[str]:
        """Every part of the reward has a standard deviation, where that is penalised."""
        name, owner, of_models = combiner(plugins)
        if self.config.penalty and (not of_models or getattr(owner, "heads", 1) > 1):
            yield (
                "plugin 'purm' needs a standard deviation of every part of the reward, and plugin "
                f"'{name}' brings parts that have none; leave one of the two out, or set "
                "plugins.purm.penalty: 0"
            )

    @staticmethod
    def read(logits: Tensor, zeros: Tensor, modules: Mapping[str, nn.Module]) -> Scores:
        """mu is the score and exp of the second output its std: logits (N, 2)."""
        mean, log_std = logits[:, :1] - zeros, logits[:, 1:]
        return Scores(mean[:, 0], mean[:, None], log_std.exp()[:, None])

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """One head with two outputs: mu and log sigma."""
        purpose = f"purm head {ctx.member}"
        trained: RewardModel = fit(initial.with_head(ctx.draws, 2, "purm", purpose), data)
        return trained

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> Tensor:
        """(V, C): -log E[sigma(z)], z ~ N(mu_c - mu_r - margin, sigma_c^2 + sigma_r^2).

        The expectation is a Gauss-Hermite sum. A model with one output has sigma 0, which is
        Bradley-Terry.
        """
        means = outputs.score  # (V, N)
        stds = outputs.logits[..., 1].exp() if outputs.logits.shape[-1] == 2 else 0 * means
        chosen, rejected = batch.pairs.T
        gap = means[:, chosen] - means[:, rejected] - batch.margin
        spread = (stds[:, chosen].square() + stds[:, rejected].square() + 1e-12).sqrt()
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.config.points)
        z = gap[..., None] + spread[..., None] * gap.new_tensor(nodes)  # (V, C, points)
        log_weights = gap.new_tensor(np.log(weights / weights.sum()))
        preferred, other = ((logsigmoid(s * z) + log_weights).logsumexp(-1) for s in (1, -1))
        return -(batch.label * preferred + (1 - batch.label) * other)

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """r - penalty u, u the mean Bhattacharyya coefficient with the latest responses.

        Those are of this iteration's rollouts, this one among them. Raises UserError where the
        reward has no standard deviations.
        """
        if not self.config.penalty:
            return rewards
        if rewards.part_std is None:
            raise UserError(
                "plugin 'purm': the reward has no standard deviations; expected one whose Scores "
                "have `part_std`, as those of `purm` and of combinations of its models have"
            )
        if self._iteration != rewards.iteration:  # other reward models
            self._iteration, self._seen = rewards.iteration, self._seen[:0]
        both = rewards.parts.flatten(1), rewards.part_std.flatten(1)  # (B, members * heads)
        now = torch.stack(both, dim=1).double()
        earlier = self._seen.to(now).view(-1, 2, now.shape[-1]) if len(self._seen) else now[:0]
        known = torch.cat([earlier, now])
        self._seen = known[-self.config.window :].cpu()
        u = overlap(now[:, None], known[None]).mean((1, 2)).to(rewards.score)
        ctx.log(**{"purm/uncertainty": float(u.mean()), "purm/std": float(both[1].mean())})
        return replace(rewards, score=rewards.score - self.config.penalty * u)

    def state_dict(self) -> dict[str, Any]:
        """The latest responses' means and standard deviations."""
        return {"iteration": self._iteration, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._iteration, self._seen = state["iteration"], state["seen"]


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Bhattacharyya coefficients of normals (..., [mean, std], n) -> (..., n), each 0 to 1.

    sqrt(2 s t / (s^2 + t^2)) exp(-(m - n)^2 / (4 (s^2 + t^2))).
    """
    mean, std = first.unbind(-2)
    other, other_std = second.unbind(-2)
    total = std.square() + other_std.square()
    log_height = 0.5 * (math.log(2) + std.log() + other_std.log() - total.log())
    return (log_height - (mean - other).square() / (4 * total)).exp()
