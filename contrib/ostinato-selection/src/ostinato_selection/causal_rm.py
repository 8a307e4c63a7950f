"""Causal reward model: features that do not tell how long a response is."""

from __future__ import annotations

from itertools import combinations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import PreferenceBatch, RMOutputs, hookimpl


class CausalRM:
    """Make the reward model's features look alike for all lengths, by MMD over bins of length."""

    paper = "Wang et al. 2025, Beyond Reward Hacking: Causal Rewards (arXiv 2501.09620)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        weight: float = Field(1.0, gt=0, description="weight of the term, lambda (ours)")
        bins: int = Field(4, ge=2, description="bins of length, of equal numbers (ours)")
        conditional: bool = Field(
            False, description="apart for chosen and rejected, the paper's conditional form"
        )

    config: Config

    @hookimpl
    def rm_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> dict[str, Tensor]:
        """weight * mean over pairs of bins m, n of MMD^2(h | length in m, h | length in n).

        h (V, N, D): the state at the final token, mean over the V views. The paper sums over
        pairs; their mean does not grow with the number of bins. 0 where a batch fills one bin.
        """
        hidden, length = outputs.hidden.float().mean(0), batch.response_mask.sum(1)
        sides = [batch.pairs.flatten()]
        if self.config.conditional:
            sides = list(batch.pairs.T)
        terms = []
        for side in sides:
            rows = side.unique()
            for a, b in combinations(binned(length[rows], self.config.bins), 2):
                terms.append(mmd2(hidden[rows[a]], hidden[rows[b]], hidden.detach()))
        mean = torch.stack(terms).mean() if terms else 0.0 * hidden.sum()
        return {"mmd": self.config.weight * mean}


def binned(length: Tensor, bins: int) -> list[Tensor]:
    """Places of ``length`` (N,) by bins of equal numbers; equal lengths share a bin, none empty."""
    levels = torch.linspace(0, 1, bins + 1, device=length.device, dtype=torch.double)[1:-1]
    edges = length.double().quantile(levels, interpolation="lower").contiguous()
    number = torch.bucketize(length.double(), edges)  # edge itself belongs to the lower bin
    found = [(number == n).nonzero()[:, 0] for n in range(bins)]
    return [places for places in found if len(places)]


def mmd2(x: Tensor, y: Tensor, pooled: Tensor) -> Tensor:
    """Squared MMD of two samples (n, D) and (m, D), a scalar of 0 or more, differentiable.

    The V-statistic (Gretton et al. 2012, equation 5) of k(a, b) = exp(-|a - b|^2 / (2 s^2)); s^2 is
    half the median squared distance between the ``pooled`` rows, so k is exp(-1) there.
    """
    distance = torch.pdist(pooled).square()
    scale = distance.median().clamp_min(1e-12) if len(distance) else distance.new_ones(())

    def mean(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b[None]).square().sum(-1)
        return (-squared / scale).exp().mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)
