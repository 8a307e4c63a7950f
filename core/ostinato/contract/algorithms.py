"""A policy algorithm, asked: what is wrong with its answers is one sentence that names its plugin.

Its methods are no hooks, so the checks of hook answers do not see them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ostinato.config.errors import UserError, blamed
from ostinato.config.sections import RLSection
from ostinato.contract.answers import terms_fault
from ostinato.contract.batches import PolicyOutputs, Rollout
from ostinato.contract.context import Context
from ostinato.contract.guards import watched
from ostinato.contract.plugins import Plugins
from ostinato.contract.policy_algorithm import PolicyAlgorithm


def _answer(plugin: str, algorithm: PolicyAlgorithm, call: str, *arguments: Any) -> tuple[Any, str]:
    """What the algorithm answers to ``call``, and how a sentence about that begins."""
    method, _, names = call.removesuffix(")").partition("(")
    given = dict(zip(names.split(", "), arguments, strict=True))
    with watched(plugin, method, given) as safe, blamed(plugin, f"its {call}"):
        answer = getattr(algorithm, method)(*safe.values())
    return answer, f"plugin '{plugin}': its {call} answered"


def size_fault(plugin: str, algorithm: PolicyAlgorithm, settings: RLSection) -> str | None:
    """Why the sizes of a rollout and its parts do not fit its groups, or None."""
    k, size = algorithm.responses_per_prompt, settings.rollout_size
    its = f"is no multiple of the {k} responses a prompt of plugin '{plugin}'"
    if size % k:
        return f"rl.rollout_size: {size} {its}"
    micro = settings.minibatch // settings.accumulate
    if algorithm.whole_groups and micro % k:
        parts = f" / rl.accumulate {settings.accumulate}" if settings.accumulate > 1 else ""
        return f"rl.minibatch: {settings.minibatch}{parts} {its}, which it keeps together"
    return None


def refills(plugins: Plugins) -> int:
    """How often a rollout may be drawn anew at most: the largest ``refill`` of its filters."""
    found = [0]
    for name in plugins.implementing("filter_rollout"):
        asked = getattr(plugins[name].instance, "refill", 0)
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
            raise UserError(f"plugin '{name}': refill is {asked!r}, expected a whole number")
        found.append(asked)
    return max(found)


def advantages_of(
    plugin: str, algorithm: PolicyAlgorithm, rollout: Rollout, ctx: Context
) -> tuple[Tensor, Tensor]:
    """Advantages (B, T), 0 on padding, and returns as values are; else UserError."""
    answer, said = _answer(plugin, algorithm, "advantages(rollout, ctx)", rollout, ctx)
    pair = isinstance(answer, tuple | list) and len(answer) == 2
    if not pair or not all(isinstance(x, Tensor) for x in answer):
        raise UserError(f"{said} a {type(answer).__name__}, expected advantages and returns")
    names = {"advantages": rollout.mask, "returns": rollout.values}
    for (name, like), x in zip(names.items(), answer, strict=True):
        if x.shape != like.shape:
            shapes = f"{tuple(x.shape)}, expected {tuple(like.shape)}"
            raise UserError(f"{said} {name} of shape {shapes}")
    return answer[0].masked_fill(~rollout.mask, 0.0), answer[1]


def terms_of(
    plugin: str, algorithm: PolicyAlgorithm, batch: Rollout, outputs: PolicyOutputs, ctx: Context
) -> dict[str, Tensor]:
    """The terms of its loss, scalars; UserError where none of them trains the policy."""
    answer, said = _answer(plugin, algorithm, "loss(batch, outputs, ctx)", batch, outputs, ctx)
    if fault := terms_fault(answer):
        raise UserError(f"{said} {fault}")
    if not any(x.requires_grad for key, x in answer.items() if not key.startswith("log/")):
        raise UserError(f"{said} no term with a gradient, expected one computed from `outputs`")
    return dict(answer)
