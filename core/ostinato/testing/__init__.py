"""What authors of plugins test them with: batches, tiny models, a micro world, conformance.

Names load when they are first used, so that pytest finds its plugin without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ostinato.testing.batches import policy_outputs as policy_outputs
    from ostinato.testing.batches import rewards as rewards
    from ostinato.testing.batches import rollout as rollout
    from ostinato.testing.batches import samples as samples
    from ostinato.testing.conforming import conformance as conformance
    from ostinato.testing.data import comparisons as comparisons
    from ostinato.testing.data import preferences as preferences
    from ostinato.testing.data import rm_outputs as rm_outputs
    from ostinato.testing.micro import configured as configured
    from ostinato.testing.micro import run as run
    from ostinato.testing.models import FakeReward as FakeReward
    from ostinato.testing.models import context as context
    from ostinato.testing.models import prompts as prompts
    from ostinato.testing.models import tiny_policy as tiny_policy
    from ostinato.testing.models import tiny_reward_model as tiny_reward_model
    from ostinato.testing.models import tokenizer as tokenizer

_MODULES = {
    "batches": ["policy_outputs", "rewards", "rollout", "samples"],
    "conforming": ["conformance"],
    "data": ["comparisons", "preferences", "rm_outputs"],
    "micro": ["configured", "run"],
    "models": [
        "FakeReward",
        "context",
        "prompts",
        "tiny_policy",
        "tiny_reward_model",
        "tokenizer",
    ],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ostinato.testing' has no attribute '{name}'")
    return getattr(import_module(f"ostinato.testing.{_HOME[name]}"), name)
