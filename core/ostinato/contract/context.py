"""What a hook may ask of the run beside its own arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ostinato.config.draws import Draws
from ostinato.config.errors import NonFiniteError
from ostinato.config.sections import RunConfig
from ostinato.contract.batches import PolicyHandle
from ostinato.models.gold import gold_scores
from ostinato.models.reward_model import MEAN, Reader
from ostinato.models.ruler import Ruler
from ostinato.models.samples import Samples, Scorer

if TYPE_CHECKING:
    from datasets import Dataset

    from ostinato.models.policy import Policy
    from ostinato.models.reward import Reward


def _absent(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this part of the context is not there during this hook")


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` hooks measure: one sample of responses to the evaluation prompts."""

    policy: Policy
    sft: Policy
    reward: Reward  # R_k
    samples: Samples
    proxy: torch.Tensor  # (B,) calibrated scores of R_k
    latest: torch.Tensor  # (B,) and of the newest reward model
    gold: torch.Tensor | None  # (B,) standardised on SFT responses, None where that cannot be
    kl: torch.Tensor  # (B,) exact, to the SFT policy, nats per response
    sft_samples: Samples  # to the same prompts
    sft_gold: torch.Tensor | None
    draw: Callable[..., Samples]  # (purpose) samples once more, (purpose, other) another policy
    proxy_of: Callable[[Samples], torch.Tensor]  # this and those below: any samples, on the CPU
    latest_of: Callable[[Samples], torch.Tensor]
    gold_of: Callable[[Samples], torch.Tensor | None]


@dataclass(frozen=True)
class Context:
    """The run as a hook sees it."""

    config: RunConfig
    draws: Draws
    device: torch.device
    sft: PolicyHandle
    gold: Scorer | None = None
    readers: Mapping[str, Reader] = field(default_factory=lambda: MEAN)  # of the run's plugins
    iteration: int = 0  # from 1; this and the five below seed `generator`
    step: int = 0  # rollouts or optimiser steps of the current stage
    member: int = 0  # the reward model in training
    update: int = 0  # the policy's optimiser update
    micro_batch: int = 0  # the part of it
    training: str = ""  # one of several in a stage: the `name` or `purpose` that was asked for
    directory: Path = Path()  # the run's folder
    ruler: Ruler | None = None  # the SFT responses on which every reward has mean 0
    # in refine_data: (data, purpose, epochs=...) -> RewardModel, on the preference loss alone
    fit: Callable[..., Any] = _absent
    cached: Callable[[str, Callable[[], Dataset]], Dataset] = _absent
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext  # around forward passes
    evaluation: Evaluation | None = None
    logged: dict[str, float] = field(default_factory=dict)

    def gold_scores(self, samples: Samples) -> torch.Tensor | None:
        """Raw golds (B,) in fp32 on the CPU; None without a gold model. Raises NonFiniteError."""
        if self.gold is None:
            return None
        assert self.config.gold is not None
        return gold_scores(self.gold, samples, self.config.gold.batch)

    def at(self, **changes: Any) -> Context:
        return replace(self, **changes)

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for this purpose at this place of the run."""
        return self.draws.generator(self.purpose(purpose), self.step, device)

    def purpose(self, purpose: str) -> str:
        """The purpose with training, member, update and micro-batch, where not the first."""
        place: dict[str, int | str] = {"training": self.training, "member": self.member}
        place |= {"update": self.update, "micro-batch": self.micro_batch}
        return "/".join([purpose, *(f"{name} {n}" for name, n in place.items() if n)])

    @contextmanager
    def located(self) -> Iterator[None]:
        """Inside, a NonFiniteError says at which iteration and step it arose."""
        try:
            yield
        except NonFiniteError as error:
            where = f"at iteration {self.iteration}, step {self.step + 1}"
            raise NonFiniteError(f"{error} {where}") from error

    def log(self, **values: float) -> None:
        """Add numbers to the next row of metrics.jsonl."""
        self.logged.update(values)
