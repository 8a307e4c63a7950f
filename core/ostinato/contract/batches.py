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
    """One batch of comparisons for a reward model.

    Rows are responses (N): text ``prompt`` and ``response``; ``input_ids`` and ``mask`` (N, T), the
    two joined and padded right; ``group`` (N,), responses to one prompt of one collection;
    ``rank`` (N,), 0 the most preferred of its group; ``prompt_id`` and ``iteration`` (N,).
    Comparisons (C): ``pairs`` (C, 2), rows of chosen and rejected; ``label`` (C,) =
    P(chosen preferred); ``margin`` (C,), 0 unless a plugin sets it; ``weight`` (C,), applied by the
    core. Columns that plugins added to the data are in ``extra``, one entry a comparison.
    """

    prompt: list[str]
    response: list[str]
    input_ids: Tensor
    mask: Tensor
    response_mask: Tensor
    group: Tensor
    rank: Tensor
    prompt_id: Tensor
    iteration: Tensor
    pairs: Tensor
    label: Tensor
    margin: Tensor
    weight: Tensor
    extra: dict[str, Any] = field(default_factory=dict)

    def differences(self, features: Tensor) -> Tensor:
        """Features (N, D) -> (2C, D): chosen minus rejected of each comparison, then its negative.

        The "preference difference" of Secrets of RLHF II, section 3.1.1.
        """
        difference = features[self.pairs[:, 0]] - features[self.pairs[:, 1]]
        return torch.cat([difference, -difference])


@dataclass
class RewardBatch:
    """The rewards of B rollouts on their way to the policy optimiser.

    ``score`` (B,); ``parts`` (B, members, heads) and ``part_std`` as in Scores; ``logprobs``,
    ``ref_logprobs`` (B, T) nats per token, at the sampling temperature; ``mask`` (B, T);
    ``finished``, ``group`` (B,); ``kl_scale`` (B,) multiplies ``kl_coefficient``, the controller's.
    """

    samples: Samples
    score: Tensor
    parts: Tensor
    part_std: Tensor | None
    logprobs: Tensor
    ref_logprobs: Tensor
    mask: Tensor
    finished: Tensor
    group: Tensor
    kl_scale: Tensor
    iteration: int
    step: int
    kl_coefficient: float = 0.0


@dataclass
class Rollout:
    """What a policy algorithm learns from: B responses with their rewards.

    ``rewards`` (B, T): the score on the last real token and, where the algorithm takes the KL in
    the reward, -coefficient * KL on every real token. ``values`` (B, T) zeros without a value head.
    ``kl_coefficient`` (B,): the controller's times kl_scale; ``advantages``, ``returns`` (B, T).
    """

    samples: Samples
    mask: Tensor
    score: Tensor
    rewards: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    kl_coefficient: Tensor
    group: Tensor
    finished: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> Rollout:
        """The rollouts at ``index``, cut to their longest response."""
        samples = self.samples.rows(index)
        width = samples.mask.shape[1]
        tensors = {name: x for name, x in vars(self).items() if name != "samples"}
        rows = {n: x[index] if x.ndim == 1 else x[index, :width] for n, x in tensors.items()}
        return replace(self, samples=samples, **rows)


@dataclass
class PolicyOutputs:
    """The policy's answers for a Rollout: ``logprobs`` (nats per token) and ``values``, (B, T).

    ``policy`` and ``reference`` are the models themselves, for terms that need another forward
    pass; the reference takes no gradient.
    """

    logprobs: Tensor
    values: Tensor
    policy: Policy
    reference: Policy


class PolicyAlgorithm(Protocol):
    """Advantage estimator and loss; the engine does the rest.

    ``mean_over`` says what the terms of ``loss`` are means over, so that micro-batches add up:
    real tokens, or responses. An optional ``keep(rollout)`` answers the rows (rows,) to train on,
    int64; its rollout has the advantages. Without it every response is trained on.
    """

    responses_per_prompt: int
    uses_values: bool
    kl_in_reward: bool
    mean_over: Literal["tokens", "responses"]

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
