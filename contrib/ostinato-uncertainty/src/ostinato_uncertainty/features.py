"""Features of responses, and distances between them in a metric of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato import Reward, Samples, UserError


def features(reward: Reward, samples: Samples, plugin: str) -> Tensor:
    """What each member of a reward makes of samples (B, members, D), in float64."""
    return known(reward.score_samples(samples).hidden, plugin)


def known(hidden: Tensor | None, plugin: str) -> Tensor:
    """The features in float64. Raises UserError, naming the plugin, where there are none."""
    if hidden is None:
        raise UserError(
            f"plugin '{plugin}': the reward has no features; expected one whose Scores have "
            "`hidden`, as those of reward models of one size do"
        )
    return hidden.double()


def length(x: Tensor) -> Tensor:
    """Norms of x (..., D) -> (...)."""
    return x.square().sum(-1).sqrt()


def factor(matrix: Tensor) -> Tensor:
    """L of matrices (members, D, D) = L L', for :func:`whitened`."""
    root: Tensor = torch.linalg.cholesky(matrix)
    return root


def whitened(x: Tensor, root: Tensor) -> Tensor:
    """L^-1 x of x (B, members, D): its norm is sqrt(x' (L L')^-1 x)."""
    columns = x.permute(1, 2, 0)  # (members, D, B)
    solved: Tensor = torch.linalg.solve_triangular(root, columns, upper=False)
    return solved.permute(2, 0, 1)
