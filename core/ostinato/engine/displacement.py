"""Gradients taken at another point than the one they are applied to: MetaRM, SAM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.config.errors import NonFiniteError
from ostinato.contract.answers import wrong
from ostinato.contract.plugins import Plugins


def displacement(
    plugins: Plugins, hook: str, parameters: Mapping[str, nn.Parameter], **given: Any
) -> dict[str, Tensor]:
    """The sum of what the plugins with this hook answer, by parameter name."""
    total: dict[str, Tensor] = {}
    for name, answer in plugins.each(hook, parameters=parameters, **given):
        if unknown := set(answer) - set(parameters):
            raise wrong(name, hook, f"names no parameter '{min(unknown)}'")
        squares = sum(float(d.detach().square().sum()) for d in answer.values())
        if not math.isfinite(squares):
            raise NonFiniteError(f"plugin '{name}': its displacement is not finite")
        plugins.acted(name, hook, math.sqrt(squares))
        for key, value in answer.items():
            total[key] = total[key] + value.detach() if key in total else value.detach()
    return total


@contextmanager
def displaced(parameters: Mapping[str, nn.Parameter], by: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters stand elsewhere; afterwards exactly where they stood."""
    held = {name: parameters[name].detach().clone() for name in by}
    with torch.no_grad():
        for name, step in by.items():
            parameters[name].add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, kept in held.items():
                parameters[name].copy_(kept)
