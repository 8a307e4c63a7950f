"""A Bayesian last layer: the spread of heads that explain the comparisons as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ostinato import Context, Reward, RewardModel, Samples, Scores, hookimpl


class Centre(nn.Module):
    """Features of the ruler's mean response, against which a score is one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))


class LaplaceHead:
    """Give each score a std by a Laplace approximation of the last layer, and take it off."""

    paper = "Yang et al. 2026 (RewardUQ), Bayesian linear head; MacKay 1992"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        precision: float | None = Field(
            None,
            gt=0,
            description="of the prior N(0, 1 / precision) of each weight; D + 1, with which heads "
            "are drawn, when left out (ours)",
        )
        pessimism: float = Field(
            1.0, ge=0, description="standard deviations taken off a score (RewardUQ's lower bound)"
        )

    config: Config

    def modules(self, hidden_size: int) -> nn.Module:
        """What is taken off the features before their std is asked for."""
        return Centre(hidden_size)

    @staticmethod
    def read(
        logits: Tensor, zeros: Tensor, modules: Mapping[str, nn.Module], pessimism: float
    ) -> Scores:
        """mean - pessimism * std, std = |L'(h - h_ruler)|, of logits (N, 1 + D) = w'h, L'h."""
        mean = logits[:, :1] - zeros
        apart = logits[:, 1:] - modules["laplace_head"].get_buffer("centre")
        std = (apart.square().sum(1, keepdim=True) + 1e-12).sqrt()
        return Scores((mean - pessimism * std)[:, 0], mean[:, None], std[:, None])

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """Train on the preference loss; then L L' = H^-1 becomes D further rows of the head.

        H = precision I + sum of p (1 - p) d d', d = h_chosen - h_rejected and p the model's
        belief: the Hessian of Bradley-Terry's loss, and the prior's, in the head's weight.
        """
        trained: RewardModel = fit(initial, data)
        pair = [ctx.responses(data, side) for side in ("chosen", "rejected")]
        chosen, rejected = (_hidden(trained, samples) for samples in pair)
        weight = trained.model.score.weight.detach()  # (1, D)
        precision = self.config.precision or 1.0 + weight.shape[1]
        root = posterior_root(chosen - rejected, weight[0].double(), precision)
        settings = {"pessimism": self.config.pessimism}
        headed = trained.with_head(
            ctx.draws, 1 + len(root), "laplace_head", "laplace head", settings
        )
        with torch.no_grad():
            headed.model.score.weight.copy_(torch.cat([weight, root.T.to(weight)]))
        assert ctx.ruler is not None
        mean = torch.cat(
            [_hidden(trained, s) for s in (ctx.ruler.evaluation, ctx.ruler.rl) if len(s)]
        ).mean(0)
        centre = headed.plugin_modules["laplace_head"].get_buffer("centre")
        centre.copy_((mean @ root).to(centre))
        std = headed.read(headed.logits(pair[0])).part_std
        assert std is not None
        ctx.log(**{"laplace_head/std": float(std.mean())})
        return headed


def posterior_root(apart: Tensor, weight: Tensor, precision: float) -> Tensor:
    """L (D, D) of L L' = H^-1, of differences of features (C, D) in float64."""
    p = (apart @ weight).sigmoid()
    eye = torch.eye(len(weight), dtype=apart.dtype, device=apart.device)
    hessian = precision * eye + apart.T @ ((p * (1 - p))[:, None] * apart)
    root: Tensor = torch.linalg.cholesky(torch.linalg.inv(hessian))
    return root


def _hidden(model: Reward, samples: Samples) -> Tensor:
    """The body's features (B, D) of one model, in float64."""
    found = model.score_samples(samples).hidden
    assert found is not None  # a RewardModel has them
    return found[:, 0].double()
