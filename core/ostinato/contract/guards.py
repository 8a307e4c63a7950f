"""What a hook is given is the run's: whoever changes it in place is found, and named.

A tensor tells by its version counter, which costs next to nothing; a change through ``.data`` or
NumPy does not move it. Where a hook is asked once an iteration, weights are compared themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ostinato.config.errors import UserError
from ostinato.contract.batches import (
    PolicyHistory,
    PolicyOutputs,
    PreferenceBatch,
    RewardBatch,
    Rollout,
)
from ostinato.contract.context import Evaluation
from ostinato.contract.hookspecs import KINDS
from ostinato.models.reward import Reward
from ostinato.models.samples import RMOutputs, Samples

BATCHES = (PreferenceBatch, RMOutputs, RewardBatch, Rollout, PolicyOutputs, Samples, Evaluation)
SELDOM = {  # once an iteration or so: to read every weight before and after costs nothing
    "combine_rm",
    "draw_responses",
    "init_policy",
    "select_comparisons",
    "train_policy",
    "train_rm",
    "wrap_reward",
}
OFTEN = {"sampling_logits"}  # asked for each token: the models of ctx are watched around them all
SETTINGS = ("temperature", "calibration", "zero", "reader", "settings")  # of a model
_PARAMETERS: WeakKeyDictionary[nn.Module, list[nn.Parameter]] = WeakKeyDictionary()

Found = Iterator[tuple[str, Any, Any]]  # what stands where; it, or its weights; what it is now


@contextmanager
def watched(plugin: str, hook: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the plugin gets: batches as shallow copies, so that it may set their fields.

    ``hook``: its name, or that of an algorithm's method. Raises UserError where a tensor or a
    model was changed in place.
    """
    given = {key: value for key, value in arguments.items() if key != "ctx"}
    parts = {} if hook in OFTEN else getattr(arguments.get("ctx"), "parts", {})
    given |= {f"ctx.{name}": part for name, part in parts.items()}
    look = _models if hook in SELDOM else _versions

    def state() -> dict[str, tuple[Any, Any]]:
        seen = (each for name, value in given.items() for each in look(value, name))
        return {path: (what, now) for path, what, now in seen}

    before = state()
    yield {k: copy.copy(v) if isinstance(v, BATCHES) else v for k, v in arguments.items()}
    after = state()
    for path, (what, then) in before.items():
        found, now = after.get(path, (None, None))
        if found is not what or now != then:
            whose = f"plugin '{plugin}': {'hook' if hook in KINDS else 'its'} '{hook}'"
            fault = f"changed {path} in place, which it is given to read; change a copy"
            raise UserError(f"{whose} {fault}")


def _versions(value: Any, path: str) -> Found:
    """Every tensor in an argument, and all weights of a model, with their versions."""
    if isinstance(value, Tensor):
        if not value.is_inference():  # such a tensor counts none
            yield path, value, value._version
    elif isinstance(value, BATCHES):
        for name, part in vars(value).items():
            yield from _versions(part, f"{path}.{name}")
    elif isinstance(value, nn.Module):
        known = _PARAMETERS.get(value)
        if known is None:
            known = _PARAMETERS[value] = list(value.parameters())
        yield f"the weights of {path}", known, [p._version for p in known]
    elif isinstance(value, PolicyHistory):  # another than the SFT policy is loaded for who asks
        yield from _versions(value.sft.load(), "the SFT policy")
    elif isinstance(value, Reward):
        for number, member in enumerate(value.members):
            yield from _versions(member, f"{path}.members[{number}]")
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _versions(part, f"{path}['{name}']")


def _models(value: Any, path: str) -> Found:
    """Every model in an argument: the fingerprint of its weights, and its settings."""
    if isinstance(value, PolicyHistory):
        yield from _models(value.sft.load(), "the SFT policy")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _models(part, f"{path}[{number}]")
    elif isinstance(value, nn.Module | Reward):
        if isinstance(value, nn.Module):
            yield f"the weights of {path}", value, fingerprint(value)
        for key in (key for key in SETTINGS if hasattr(value, key)):
            yield f"{path}.{key}", value, copy.copy(getattr(value, key))
        if not isinstance(value, nn.Module):
            yield from _models(value.members, f"{path}.members")


@torch.no_grad()
def fingerprint(model: nn.Module) -> list[float]:
    """Sum and norm of every parameter, in float64: they tell changed weights, without a copy."""
    found = [
        fact
        for p in model.parameters()
        for fact in (p.sum(dtype=torch.float64), torch.linalg.vector_norm(p, dtype=torch.float64))
    ]
    return torch.stack(found).tolist() if found else []
