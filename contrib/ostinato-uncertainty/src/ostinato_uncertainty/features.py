"""Features of responses, distances between them in a metric of their own, and who has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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


def combiner(plugins: Mapping[str, Any]) -> tuple[str, Any, bool]:
    """Who owns combine_rm, by name and itself, and whether R_k is made of reward models."""
    name, owner = next((n, p) for n, p in plugins.items() if hasattr(p, "combine_rm"))
    return name, owner, getattr(owner, "reward_models", True)


def without(whose: str, plugins: Mapping[str, Any]) -> Iterator[str]:
    """Why the run's reward has no features."""
    name, _, of_models = combiner(plugins)
    if not of_models:
        yield (
            f"plugin '{whose}' needs the features of reward models, and the reward is of plugin "
            f"'{name}', which uses none; leave one of the two out"
        )


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
