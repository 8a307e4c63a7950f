"""What the hooks see: batches of preferences, reward-model outputs, rewards and rollouts.

Letters in shapes: N responses, C comparisons, T tokens, V views, D hidden size, B rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from ostinato.models.samples import Samples

if TYPE_CHECKING:
    from ostinato.models.policy import Policy


@dataclass
class PreferenceBatch:
    """One batch of comparisons for a reward model: rows are responses, in which pairs point."""

    prompt: list[str]
    response: list[str]
    input_ids: Tensor  # (N, T) prompt and response joined, padded right
    mask: Tensor  # (N, T)
    response_mask: Tensor  # (N, T)
    group: Tensor  # (N,) responses to one prompt of one collection
    rank: Tensor  # (N,) 0 the most preferred of its group
    prompt_id: Tensor  # (N,)
    iteration: Tensor  # (N,)
    pairs: Tensor  # (C, 2) rows of chosen and rejected
    label: Tensor  # (C,) P(chosen preferred)
    margin: Tensor  # (C,) 0 unless a plugin sets it
    weight: Tensor  # (C,) applied by the core
    extra: dict[str, Any] = field(default_factory=dict)  # what plugins added, one a comparison

    def differences(self, features: Tensor) -> Tensor:
        """Features (N, D) -> (2C, D): chosen minus rejected of each comparison, then its negative.

        The "preference difference" of Secrets of RLHF II, section 3.1.1.
        """
        difference = features[self.pairs[:, 0]] - features[self.pairs[:, 1]]
        return torch.cat([difference, -difference])


@dataclass
class RewardBatch:
    """The rewards of B rollouts on their way to the policy optimiser."""

    samples: Samples
    score: Tensor  # (B,)
    parts: Tensor  # (B, members, heads) as in Scores, and so is part_std
    part_std: Tensor | None
    logprobs: Tensor  # (B, T) nats per token, at the sampling temperature
    ref_logprobs: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    finished: Tensor  # (B,)
    group: Tensor  # (B,)
    kl_scale: Tensor  # (B,) multiplies kl_coefficient, the controller's
    iteration: int
    step: int
    kl_coefficient: float = 0.0


@dataclass
class Rollout:
    """What a policy algorithm learns from: B responses with their rewards."""

    samples: Samples
    mask: Tensor  # (B, T)
    score: Tensor  # (B,)
    rewards: Tensor  # (B, T) the score at the end, less the KL where the algorithm takes it so
    logprobs: Tensor  # (B, T)
    ref_logprobs: Tensor  # (B, T)
    values: Tensor  # (B, T) zeros without a value head
    kl_coefficient: Tensor  # (B,) the controller's times kl_scale
    group: Tensor  # (B,)
    finished: Tensor  # (B,)
    advantages: Tensor  # (B, T)
    returns: Tensor  # (B, T)

    def rows(self, index: Tensor) -> Rollout:
        """The rollouts at ``index``, cut to their longest response."""
        samples = self.samples.rows(index)
        width = samples.mask.shape[1]
        tensors = {name: x for name, x in vars(self).items() if name != "samples"}
        rows = {n: x[index] if x.ndim == 1 else x[index, :width] for n, x in tensors.items()}
        return replace(self, samples=samples, **rows)


@dataclass
class PolicyOutputs:
    """The policy's answers for a Rollout, and the models, for terms that need another pass."""

    logprobs: Tensor  # (B, T) nats per token
    values: Tensor  # (B, T)
    policy: Policy
    reference: Policy  # takes no gradient


class PolicyAlgorithm(Protocol):
    """Advantage estimator and loss, and maybe ``keep(rollout)``; the engine does the rest."""

    responses_per_prompt: int
    uses_values: bool
    kl_in_reward: bool
    mean_over: Literal["tokens", "responses"]  # of the loss, so that micro-batches add up

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantages and returns, each (B, T), zero on padding."""

    def loss(self, batch: Rollout, outputs: PolicyOutputs) -> dict[str, Tensor]:
        """Named terms; their sum is minimised. Entries named ``log/...`` are only logged."""


@dataclass(frozen=True)
class PolicyHandle:
    """A policy of the run by name (``sft``, ``iteration-2/policy``); weights load when asked."""

    name: str
    load: Callable[[], Policy]


@dataclass(frozen=True)
class PolicyHistory:
    """The policies so far: ``sft``; ``initial[i]`` and ``final[i]`` of iteration i + 1."""

    sft: PolicyHandle
    initial: list[PolicyHandle] = field(default_factory=list)
    final: list[PolicyHandle] = field(default_factory=list)
