"""Ostinato: iterated RLHF from plugins.

Names load when they are first used, so that ``import ostinato`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ostinato.config.errors import NonFiniteError, Pause, UserError
from ostinato.contract.hookspecs import hookimpl

if TYPE_CHECKING:
    from ostinato.config.reading import load_config
    from ostinato.config.sections import RunConfig
    from ostinato.contract.batches import (
        PolicyHandle,
        PolicyHistory,
        PolicyOutputs,
        PreferenceBatch,
        RewardBatch,
        Rollout,
    )
    from ostinato.contract.context import Context
    from ostinato.contract.events import Event
    from ostinato.data.preferences import swapped
    from ostinato.data.prompts import read_rows
    from ostinato.loop import Run, run
    from ostinato.models.loading import padded, prompt_tokens, response_tokens
    from ostinato.models.policy import Policy
    from ostinato.models.reward import Reward, combine
    from ostinato.models.reward_model import RewardModel, trained_reward
    from ostinato.models.ruler import calibrated
    from ostinato.models.samples import RMOutputs, Samples, Scores
    from ostinato.models.weights import average, distance, follow, lerp, slerp, slerp_all

_HOME = {
    name: module
    for module, names in {
        "config.reading": ("load_config",),
        "config.sections": ("RunConfig",),
        "models.loading": ("padded", "prompt_tokens", "response_tokens"),
        "models.policy": ("Policy",),
        "models.reward": ("Reward", "combine"),
        "models.reward_model": ("RewardModel", "trained_reward"),
        "models.ruler": ("Ruler", "calibrated"),
        "models.samples": ("RMOutputs", "Samples", "Scores"),
        "models.weights": ("average", "distance", "follow", "lerp", "slerp", "slerp_all"),
        "contract.batches": (
            "PolicyHandle",
            "PolicyHistory",
            "PolicyOutputs",
            "PreferenceBatch",
            "RewardBatch",
            "Rollout",
        ),
        "contract.context": ("Context",),
        "contract.events": ("Event",),
        "data.preferences": ("swapped",),
        "data.prompts": ("read_rows",),
        "loop": ("Run", "run"),
    }.items()
    for name in names
}

__all__ = [
    "Context",
    "Event",
    "NonFiniteError",
    "Pause",
    "Policy",
    "PolicyHandle",
    "PolicyHistory",
    "PolicyOutputs",
    "PreferenceBatch",
    "RMOutputs",
    "Reward",
    "RewardBatch",
    "RewardModel",
    "Rollout",
    "Ruler",
    "Run",
    "RunConfig",
    "Samples",
    "Scores",
    "UserError",
    "average",
    "calibrated",
    "combine",
    "distance",
    "follow",
    "hookimpl",
    "lerp",
    "load_config",
    "padded",
    "prompt_tokens",
    "read_rows",
    "response_tokens",
    "run",
    "slerp",
    "slerp_all",
    "swapped",
    "trained_reward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ostinato' has no attribute '{name}'")
    return getattr(import_module(f"ostinato.{_HOME[name]}"), name)
