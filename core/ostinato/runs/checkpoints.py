"""Checkpoints of an unfinished policy: when one is due, and what it holds, as tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from ostinato.config.sections import seconds
from ostinato.models.policy import Policy

LARGE = 50_000_000  # parameters from which a checkpoint takes longer than many a rollout


class Schedule:
    """When an unfinished policy is saved: every so many rollouts, or after so much time."""

    def __init__(self, every: int | str | None, policy: Policy) -> None:
        small = sum(p.numel() for p in policy.lm.parameters()) < LARGE
        self.every = every or (1 if small else "5 min")
        self.last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether rollout ``step``, from 1, is to be kept; asked once a rollout."""
        if isinstance(self.every, int):
            return step % self.every == 0
        now = time.monotonic()
        if now - self.last < seconds(self.every):
            return False
        self.last = now
        return True


def parameters_of(policy: Policy, prefix: str) -> dict[str, Tensor]:
    """Parameters by name, tied ones once."""
    return {prefix + name: p.detach() for name, p in policy.named_parameters()}


@torch.no_grad()
def load_parameters(policy: Policy, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Fill a policy's parameters in place."""
    for name, p in policy.named_parameters():
        p.copy_(tensors[prefix + name])


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as named tensors, for safetensors instead of a pickle."""
    return {
        f"optimiser.{index}.{key}": value
        for index, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
