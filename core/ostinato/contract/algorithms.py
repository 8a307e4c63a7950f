"""A policy algorithm, asked: what is wrong with its answers is one sentence that names its plugin.

Its methods are no hooks, so the checks of hook answers do not see them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ostinato.config.errors import UserError
from ostinato.contract.answers import blamed, terms_fault
from ostinato.contract.batches import PolicyAlgorithm, PolicyOutputs, Rollout


def _answer(plugin: str, algorithm: PolicyAlgorithm, call: str, *arguments: Any) -> tuple[Any, str]:
    """What the algorithm answers to ``call``, and how a sentence about that begins."""
    with blamed(plugin, f"its {call}"):
        answer = getattr(algorithm, call.partition("(")[0])(*arguments)
    return answer, f"plugin '{plugin}': its {call} answered"


def advantages_of(
    plugin: str, algorithm: PolicyAlgorithm, rollout: Rollout
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, each (B, T); UserError where they are something else."""
    answer, said = _answer(plugin, algorithm, "advantages(rollout)", rollout)
    pair = isinstance(answer, tuple | list) and len(answer) == 2
    if not pair or not all(isinstance(x, Tensor) for x in answer):
        raise UserError(f"{said} a {type(answer).__name__}, expected advantages and returns")
    wanted = tuple(rollout.mask.shape)
    for name, x in zip(("advantages", "returns"), answer, strict=True):
        if tuple(x.shape) != wanted:
            raise UserError(f"{said} {name} of shape {tuple(x.shape)}, expected {wanted}")
    return answer[0], answer[1]


def kept_of(plugin: str, algorithm: PolicyAlgorithm, rollout: Rollout) -> Rollout:
    """The rows that the algorithm keeps, all without a ``keep``; UserError for what is no row."""
    if not hasattr(algorithm, "keep"):
        return rollout
    index, said = _answer(plugin, algorithm, "keep(rollout)", rollout)
    size = len(rollout.mask)
    wanted = f"expected row numbers from 0 to {size - 1}, at least one and none twice"
    if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype != torch.int64:
        tensor = isinstance(index, Tensor)
        kind = f"{index.dtype} {tuple(index.shape)}" if tensor else type(index).__name__
        raise UserError(f"{said} a {kind}, expected an int64 tensor of row numbers (rows,)")
    if not len(index):
        raise UserError(f"{said} no row, {wanted}")
    if outside := [row for row in index.tolist() if not 0 <= row < size]:
        raise UserError(f"{said} row {outside[0]}, {wanted}")
    if len(index.unique()) < len(index):
        raise UserError(f"{said} a row twice, {wanted}")
    return rollout.rows(index.to(rollout.mask.device))


def terms_of(
    plugin: str, algorithm: PolicyAlgorithm, batch: Rollout, outputs: PolicyOutputs
) -> dict[str, Tensor]:
    """The terms of its loss, scalars; UserError where none of them trains the policy."""
    answer, said = _answer(plugin, algorithm, "loss(batch, outputs)", batch, outputs)
    if fault := terms_fault(answer):
        raise UserError(f"{said} {fault}")
    if not any(x.requires_grad for key, x in answer.items() if not key.startswith("log/")):
        raise UserError(f"{said} no term with a gradient, expected one computed from `outputs`")
    return dict(answer)
