"""Averages and interpolations of weights, as `dict[str, Tensor]` state dicts.

No input is changed and no output shares memory with one; only :func:`follow` works in place, on a
model. Arithmetic is in float32 (float64 where a weight is float64); each result is cast back to the
dtype of the first state. What is not floating point (position ids, counters) is taken from the
first state. ValueError on no states, or naming the first key whose presence, shape or kind of
dtype differs.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]

_PARALLEL = 1e-4  # sin W below which SLERP is linear: there they differ by W^2, under float32's eps


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """Mean of one or more states, every one with the same weight.

    Wolf et al. 2025, section 2.2 (weight averaging of reward models; Ramé et al. 2024, WARM, arXiv
    2401.12187).
    """
    return _merge(lambda *weights: functools.reduce(operator.add, weights) / len(weights), *states)


def lerp(a: State, b: State, t: float) -> dict[str, Tensor]:
    """(1 - t) a + t b: exactly a at t = 0 and b at t = 1, and beyond them outside [0, 1].

    Ramé et al. 2024 (WARP, arXiv 2406.16768, section 3.3) go so from the initial policy towards the
    trained one; Wolf et al. 2025, section 2.2.
    """
    return _merge(lambda x, y: (1 - t) * x + t * y, a, b)


def slerp(base: State, a: State, b: State, t: float) -> dict[str, Tensor]:
    """base + spherical interpolation of the task vectors a - base and b - base, tensor by tensor.

    slerp(d1, d2, t) = sin((1-t)W) / sin W d1 + sin(tW) / sin W d2, where W is the angle between d1
    and d2 (Ramé et al. 2024, WARP, arXiv 2406.16768, section 3.2; Shoemake 1985). Task vectors of
    equal norm keep it, where averaging shrinks it. Linear, (1-t) d1 + t d2, where sin W is near 0
    (parallel or opposite) or a task vector is 0.
    """
    return _merge(functools.partial(_slerp, t), base, a, b)


def slerp_all(base: State, states: Sequence[State]) -> dict[str, Tensor]:
    """SLERP of one or more states: the m-th is taken in with :func:`slerp` at t = 1/m.

    Ramé et al. 2024 (WARP, arXiv 2406.16768, algorithm 1 with lambda = 1/M, extended to M > 2). For
    two it is slerp at 1/2.
    """
    merged = average(states[:1])
    for m, state in enumerate(states[1:], start=2):
        merged = slerp(base, merged, state, 1 / m)
    return merged


@torch.no_grad()
def follow(anchor: nn.Module, model: nn.Module, rate: float) -> None:
    """One step of a moving average, in place: anchor <- (1 - rate) anchor + rate model.

    Only parameters that the anchor has are moved; what ``model`` has beside them, such as a value
    head, is passed over. Ramé et al. 2024 (WARP, arXiv 2406.16768, section 3.1) anchor the KL so.
    """
    theirs = dict(model.named_parameters())
    for name, p in anchor.named_parameters():
        p.lerp_(theirs[name].to(p.dtype), rate)


@torch.no_grad()
def distance(a: nn.Module, b: nn.Module) -> float:
    """Euclidean distance of two models' parameters, all together, tied ones once.

    What only one of them has, or has in another shape, is left out: a head that was replaced.
    """
    theirs = dict(b.named_parameters())
    both = [(p, theirs[name]) for name, p in a.named_parameters() if name in theirs]
    return math.sqrt(sum(float((x - y).square().sum()) for x, y in both if x.shape == y.shape))


def _slerp(t: float, origin: Tensor, x: Tensor, y: Tensor) -> Tensor:
    d1, d2 = x - origin, y - origin
    norm1, norm2 = d1.norm().item(), d2.norm().item()
    first, second = 1 - t, t
    if norm1 and norm2:
        unit1, unit2 = d1 / norm1, d2 / norm2
        # Kahan's form of the angle: acos of a cosine near 1 would lose half the digits.
        angle = 2 * math.atan2((unit1 - unit2).norm().item(), (unit1 + unit2).norm().item())
        if (sine := math.sin(angle)) >= _PARALLEL:
            first, second = math.sin((1 - t) * angle) / sine, math.sin(t * angle) / sine
    return origin + first * d1 + second * d2


@torch.no_grad()
def _merge(formula: Callable[..., Tensor], *states: State) -> dict[str, Tensor]:
    """formula applied to each floating-point tensor of states, upcast; the rest from the first."""
    if not states:
        raise ValueError("there are no states to merge")
    for state in states[1:]:
        _check_match(states[0], state)
    merged: dict[str, Tensor] = {}
    for key, first in states[0].items():
        if first.is_floating_point():
            wide = torch.promote_types(first.dtype, torch.float32)
            merged[key] = formula(*(state[key].to(wide) for state in states)).to(first.dtype)
        else:
            merged[key] = first.clone()
    return merged


def _check_match(first: State, other: State) -> None:
    """Raise ValueError naming the first key in which two states differ."""
    for key in {**first, **other}:
        if key not in first or key not in other:
            raise ValueError(f"states differ: {key!r} is missing from one")
        a, b = first[key], other[key]
        where = f"states differ: {key!r} has"
        if a.shape != b.shape:
            raise ValueError(f"{where} shapes {tuple(a.shape)} and {tuple(b.shape)}")
        if a.is_floating_point() != b.is_floating_point():
            raise ValueError(f"{where} dtypes {a.dtype} and {b.dtype}")
