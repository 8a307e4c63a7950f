"""Ostinato: iterated RLHF from plugins.

Names load when they are first used, so that ``import ostinato`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ostinato.config.errors import NonFiniteError as NonFiniteError
from ostinato.config.errors import Pause as Pause
from ostinato.config.errors import UserError as UserError
from ostinato.contract.hookspecs import CONTRACT as CONTRACT
from ostinato.contract.hookspecs import KEEP as KEEP
from ostinato.contract.hookspecs import STOP as STOP
from ostinato.contract.hookspecs import hookimpl as hookimpl

if TYPE_CHECKING:
    from ostinato.config.reading import load_config as load_config
    from ostinato.config.sections import RunConfig as RunConfig
    from ostinato.contract.batches import PolicyHandle as PolicyHandle
    from ostinato.contract.batches import PolicyHistory as PolicyHistory
    from ostinato.contract.batches import PolicyOutputs as PolicyOutputs
    from ostinato.contract.batches import PreferenceBatch as PreferenceBatch
    from ostinato.contract.batches import RewardBatch as RewardBatch
    from ostinato.contract.batches import Rollout as Rollout
    from ostinato.contract.context import Context as Context
    from ostinato.contract.events import Event as Event
    from ostinato.contract.policy_algorithm import PolicyAlgorithm as PolicyAlgorithm
    from ostinato.data.preferences import swapped as swapped
    from ostinato.data.prompts import read_rows as read_rows
    from ostinato.loop import Run as Run
    from ostinato.loop import run as run
    from ostinato.models.functions import plain_function as plain_function
    from ostinato.models.functions import reward as reward
    from ostinato.models.loading import padded as padded
    from ostinato.models.loading import prompt_tokens as prompt_tokens
    from ostinato.models.loading import response_tokens as response_tokens
    from ostinato.models.policy import Policy as Policy
    from ostinato.models.prompts import PromptSet as PromptSet
    from ostinato.models.reward import Reward as Reward
    from ostinato.models.reward import combine as combine
    from ostinato.models.reward import wrapped as wrapped
    from ostinato.models.reward_model import RewardModel as RewardModel
    from ostinato.models.reward_model import trained_reward as trained_reward
    from ostinato.models.ruler import Ruler as Ruler
    from ostinato.models.ruler import calibrated as calibrated
    from ostinato.models.samples import RMOutputs as RMOutputs
    from ostinato.models.samples import Samples as Samples
    from ostinato.models.samples import Scores as Scores
    from ostinato.models.weights import average as average
    from ostinato.models.weights import distance as distance
    from ostinato.models.weights import follow as follow
    from ostinato.models.weights import lerp as lerp
    from ostinato.models.weights import slerp as slerp
    from ostinato.models.weights import slerp_all as slerp_all

_MODULES = {
    "config.reading": ["load_config"],
    "config.sections": ["RunConfig"],
    "contract.batches": [
        "PolicyHandle",
        "PolicyHistory",
        "PolicyOutputs",
        "PreferenceBatch",
        "RewardBatch",
        "Rollout",
    ],
    "contract.context": ["Context"],
    "contract.events": ["Event"],
    "contract.policy_algorithm": ["PolicyAlgorithm"],
    "data.preferences": ["swapped"],
    "data.prompts": ["read_rows"],
    "loop": ["Run", "run"],
    "models.functions": ["plain_function", "reward"],
    "models.loading": ["padded", "prompt_tokens", "response_tokens"],
    "models.policy": ["Policy"],
    "models.prompts": ["PromptSet"],
    "models.reward": ["Reward", "combine", "wrapped"],
    "models.reward_model": ["RewardModel", "trained_reward"],
    "models.ruler": ["Ruler", "calibrated"],
    "models.samples": ["RMOutputs", "Samples", "Scores"],
    "models.weights": ["average", "distance", "follow", "lerp", "slerp", "slerp_all"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

EAGER = ["CONTRACT", "KEEP", "NonFiniteError", "Pause", "STOP", "UserError", "hookimpl"]
__all__ = sorted([*_HOME, *EAGER])


def __getattr__(name: str) -> Any:
    if name in ("measures", "testing"):
        return import_module(f"ostinato.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'ostinato' has no attribute '{name}'")
    return getattr(import_module(f"ostinato.{_HOME[name]}"), name)
