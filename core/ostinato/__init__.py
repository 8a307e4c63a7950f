"""Ostinato: iterated RLHF from plugins.

Names load when they are first used, so that ``import ostinato`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ostinato.errors import NonFiniteError, Pause, UserError
from ostinato.hookspecs import hookimpl

if TYPE_CHECKING:
    from ostinato.batches import (
        PolicyHandle,
        PolicyHistory,
        PolicyOutputs,
        PreferenceBatch,
        RewardBatch,
        RMOutputs,
        Rollout,
        Samples,
        Scores,
    )
    from ostinato.config import RunConfig, load_config
    from ostinato.context import Context
    from ostinato.events import Event
    from ostinato.loop import Run, run
    from ostinato.models import padded, prompt_tokens, response_tokens
    from ostinato.policy import Policy
    from ostinato.preferences import swapped
    from ostinato.prompts import read_rows
    from ostinato.reward_model import Reward, RewardModel, combine, trained_reward
    from ostinato.reward_training import calibrated
    from ostinato.weights import average, distance, follow, lerp, slerp, slerp_all

_HOME = {
    **dict.fromkeys(
        (
            "PolicyHandle",
            "PolicyHistory",
            "PolicyOutputs",
            "PreferenceBatch",
            "RMOutputs",
            "RewardBatch",
            "Rollout",
            "Samples",
            "Scores",
        ),
        "batches",
    ),
    **dict.fromkeys(("RunConfig", "load_config"), "config"),
    "Context": "context",
    "Event": "events",
    **dict.fromkeys(("Run", "run"), "loop"),
    **dict.fromkeys(("padded", "prompt_tokens", "response_tokens"), "models"),
    "Policy": "policy",
    "swapped": "preferences",
    "read_rows": "prompts",
    **dict.fromkeys(("Reward", "RewardModel", "combine", "trained_reward"), "reward_model"),
    "calibrated": "reward_training",
    **dict.fromkeys(("average", "distance", "follow", "lerp", "slerp", "slerp_all"), "weights"),
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
