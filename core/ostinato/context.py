"""What a hook may ask of the run beside its own arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ostinato.batches import PolicyHandle, Samples, Scorer
from ostinato.config import RunConfig
from ostinato.draws import Draws

if TYPE_CHECKING:
    from datasets import Dataset

    from ostinato.policy import Policy
    from ostinato.reward_model import Reward


def _absent(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this part of the context is not there during this hook")


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` hooks measure: one sample of responses to the evaluation prompts.

    ``proxy`` and ``latest`` (B,) calibrated scores of R_k and of the newest reward model alone;
    ``gold`` (B,) in units of its std over SFT responses, None without a gold model; ``kl`` (B,)
    exact KL to the SFT policy, nats per response.
    """

    policy: Policy
    reward: Reward
    samples: Samples
    proxy: torch.Tensor
    latest: torch.Tensor
    gold: torch.Tensor | None
    kl: torch.Tensor


@dataclass(frozen=True)
class Context:
    """The run as a hook sees it.

    ``iteration`` counts from 1, ``step`` in rollouts or optimiser steps of the current stage.
    ``sft`` is the SFT policy, ``gold`` the gold model or None, ``device`` where models live.
    In ``refine_data`` there are also ``fit(data, purpose, epochs=...)`` -> RewardModel, trained
    from R_init on the preference loss alone, and ``cached(name, make)`` -> Dataset, made once an
    iteration.
    """

    config: RunConfig
    draws: Draws
    device: torch.device
    sft: PolicyHandle
    gold: Scorer | None = None
    iteration: int = 0
    step: int = 0
    fit: Callable[..., Any] = _absent
    cached: Callable[[str, Callable[[], Dataset]], Dataset] = _absent
    evaluation: Evaluation | None = None
    logged: dict[str, float] = field(default_factory=dict)

    def at(self, **changes: Any) -> Context:
        """The same context at another place."""
        return replace(self, **changes)

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for this purpose at this iteration and step."""
        return self.draws.generator(purpose, self.step, device)

    def log(self, **values: float) -> None:
        """Add numbers to the next row of metrics.jsonl."""
        self.logged.update(values)
