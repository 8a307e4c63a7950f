"""OCRM: comparisons weighted by how likely the present policy is to draw their responses."""

from __future__ import annotations

import math

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PolicyHandle, Samples, hookimpl

ROWS = 64  # responses in one forward pass


class OCRM:
    """Weigh comparisons by how likely the policy is to draw their responses now (Ackermann).

    A comparison of y+ and y- that π_old drew has the weight

        (w(y+) w(y-))^η,  w(y) = π(y|x) / (α π(y|x) + (1 - α) π_old(y|x))

    with π the newest policy. α > 0 makes w a relative density ratio, at most 1/α; η flattens it,
    for ratios of whole responses span many orders. π_old drew the comparison: the SFT policy those
    of iteration 1, with which alone the paper works. Pairs of the newest policy have the weight 1.
    The core divides by the sum of weights.
    """

    paper = "Ackermann et al. 2025, Off-Policy Corrected Reward Modeling (arXiv 2507.15507)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        power: float = Field(
            0.001, gt=0, le=1, description="η, power of the ratios (authors' scripts)"
        )
        relative: float = Field(
            0.1, ge=0, lt=1, description="α, share of the policy below the line (authors' code)"
        )

    config: Config

    @hookimpl
    def refine_data(self, data: Dataset, ctx: Context) -> Dataset:
        """``weight`` times the ratio; rows and all else stay."""
        drawn_by = [ctx.policies.sft, *ctx.policies.final]  # of iterations 1, 2, ...
        weight = torch.ones(len(data), dtype=torch.float64)
        iterations = torch.tensor(data["iteration"][:])
        for iteration in iterations.unique().tolist():
            if iteration == len(drawn_by):
                continue  # the newest policy's own
            rows = (iterations == iteration).nonzero().flatten()
            part = data.select(rows.tolist())
            both = Samples.joined([ctx.responses(part, side) for side in ("chosen", "rejected")])
            log = self.log_ratio(both, drawn_by[-1], drawn_by[iteration - 1], ctx)
            weight[rows] = (self.config.power * log.view(2, -1).sum(0)).exp()
        size = float(weight.sum() ** 2 / weight.square().sum()) / len(data)
        ctx.log(**{"ocrm/effective_share": size, "ocrm/largest": float(weight.max())})
        table = data.to_dict()
        table["weight"] = (weight * torch.tensor(table["weight"])).tolist()
        return Dataset.from_dict(table, features=data.features)

    def log_ratio(
        self, samples: Samples, new: PolicyHandle, old: PolicyHandle, ctx: Context
    ) -> Tensor:
        """log w (B,) in float64, of whole responses."""
        now, then = (logprobs(handle, samples, ctx) for handle in (new, old))
        share = self.config.relative
        if share == 0:
            return now - then
        return now - torch.logaddexp(math.log(share) + now, math.log1p(-share) + then)


@torch.no_grad()
def logprobs(handle: PolicyHandle, samples: Samples, ctx: Context) -> Tensor:
    """log π(y|x) of whole responses (B,), in float64 on the CPU."""
    policy = handle.load()
    found = []
    for rows in torch.arange(len(samples), device=ctx.device).split(ROWS):
        with ctx.autocast():
            found.append(policy.logprobs(samples.rows(rows)).double().sum(1).cpu())
    return torch.cat(found)
