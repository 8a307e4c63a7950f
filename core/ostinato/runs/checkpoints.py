"""What a checkpoint of an unfinished policy holds: parameters and optimiser state as tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ostinato.models.policy import Policy


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
    """Give the optimiser back its state."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
