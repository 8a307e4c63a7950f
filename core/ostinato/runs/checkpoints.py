"""Checkpoints of an unfinished policy: when one is due, and what it holds, as tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass
class Training:
    """What training moves: policies, by a name each, and their optimiser; and weights kept."""

    policies: Mapping[str, Policy]
    optimiser: torch.optim.Optimizer
    kept: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, tied ones once, and the optimiser's state, for safetensors: no pickle."""
        found = dict(self.kept)
        for name, policy in self.policies.items():
            found |= parameters_of(policy, name)
        for index, state in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{index}.{key}": value for key, value in state.items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill policies and optimiser in place with what :meth:`tensors` gave."""
        for name, policy in self.policies.items():
            fill(policy, tensors, name)
        self.kept = {name: value for name, value in tensors.items() if name.startswith("kept.")}
        state: dict[int, dict[str, Tensor]] = {}
        for name in (n for n in tensors if n.startswith("optimiser.")):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensors[name]
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})

    def keep(self, name: str) -> None:
        """Copy a policy's weights as they are now, off the device; those kept before are gone."""
        found = parameters_of(self.policies[name], "kept").items()
        self.kept = {key: p.to("cpu", copy=True) for key, p in found}

    def take_kept(self, name: str) -> None:
        """Fill a policy in place with what was kept."""
        fill(self.policies[name], self.kept, "kept")


def parameters_of(policy: Policy, name: str) -> dict[str, Tensor]:
    """Parameters by the policy's name and their own, tied ones once."""
    return {f"{name}.{key}": p.detach() for key, p in policy.named_parameters()}


@torch.no_grad()
def fill(policy: Policy, tensors: Mapping[str, Tensor], name: str) -> None:
    """Fill a policy's parameters in place with what :func:`parameters_of` gave."""
    for key, p in policy.named_parameters():
        p.copy_(tensors[f"{name}.{key}"])
