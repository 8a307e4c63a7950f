"""Locally weighted regression (Cleveland 1979)."""

from __future__ import annotations

import torch
from torch import Tensor


def lowess(x: Tensor, y: Tensor, fraction: float, again: int = 3) -> tuple[Tensor, Tensor]:
    """(places, values): the distinct x in order, and a smooth curve of y (N,) over x (N,) there.

    Each value is that of a straight line, fitted with tricube weights to the nearest ``fraction``
    of the points; then ``again`` times more, with bisquare weights against outliers. In float64.
    """
    x, y = x.double(), y.double()
    places, index = x.unique(return_inverse=True)
    far = (places[:, None] - x).abs()  # (places, N)
    count = min(len(x), max(2, int(fraction * len(x))))
    width = far.kthvalue(count, dim=1, keepdim=True).values
    # where more points than asked for share one place, those alone
    near = torch.where(width > 0, (1 - (far / width).pow(3)).clamp_min(0).pow(3), far == 0)
    values = _lines(x, y, near, places)
    for _ in range(again):
        residual = y - values[index]
        spread = 6 * residual.abs().median()
        if spread <= 1e-12 * y.abs().max():
            break
        trusted = (1 - (residual / spread).square()).clamp_min(0).square().clamp_min(1e-9)
        values = _lines(x, y, near * trusted, places)
    return places, values


def _lines(x: Tensor, y: Tensor, weights: Tensor, at: Tensor) -> Tensor:
    """The weighted straight line through (x, y) for each row of weights (places, N), at its place.

    A constant where all of its weight is on one x.
    """
    weights = weights / weights.sum(1, keepdim=True)
    mean_x, mean_y = weights @ x, weights @ y
    away = x - mean_x[:, None]
    squares = (weights * away.square()).sum(1)
    slope = (weights * away * y).sum(1) / squares.clamp_min(1e-12)
    return mean_y + torch.where(squares > 1e-9, slope, 0.0) * (at - mean_x)


def along(places: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """The curve at x (N,), straight between places; the first and last value beyond them."""
    x = x.double().clamp(places[0], places[-1])
    right = torch.searchsorted(places, x).clamp(min=1, max=max(1, len(places) - 1))
    if len(places) == 1:
        return values.expand(len(x))
    left = right - 1
    share = (x - places[left]) / (places[right] - places[left])
    return torch.lerp(values[left], values[right], share)
