"""What the hooks see: batches of preferences, reward-model outputs, rewards and rollouts.

Letters in shapes: N responses, C comparisons, T tokens, V views, D hidden size, B rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ostinato.models.samples import Samples, below

if TYPE_CHECKING:
    from ostinato.models.policy import Policy

OF_HEADS = {"parts", "part_std"}  # (B, members, heads), which have no tokens to cut


@dataclass
class PreferenceBatch:
    """One batch of comparisons for a reward model: rows are responses, in which pairs point."""

    prompt: list[str]  # N texts
    response: list[str]  # N texts
    input_ids: Tensor  # (N, T) prompt and response joined, padded right
    mask: Tensor  # (N, T) true where a token is real
    response_mask: Tensor  # (N, T) true where it is the response's
    group: Tensor  # (N,) responses to one prompt of one collection
    rank: Tensor  # (N,) 0 the most preferred of its group
    prompt_id: Tensor  # (N,) its row in the data of prompts
    iteration: Tensor  # (N,) in which it was drawn
    pairs: Tensor  # (C, 2) rows of chosen and rejected
    label: Tensor  # (C,) P(chosen preferred)
    margin: Tensor  # (C,) 0 unless a plugin sets it
    weight: Tensor  # (C,) applied by the core
    extra: dict[str, Any] = field(default_factory=dict)  # what plugins added, one a comparison
    tokenizer: Any = None  # whose tokens input_ids are

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
    parts: Tensor  # (B, members, heads) as in Scores
    part_std: Tensor | None  # (B, members, heads) where a model predicts one
    logprobs: Tensor  # (B, T) nats per token, at the sampling temperature
    ref_logprobs: Tensor  # (B, T) of the policy that the KL pulls to
    mask: Tensor  # (B, T) true where a token is real
    finished: Tensor  # (B,) true where the stop token came
    group: Tensor  # (B,) the number of the prompt in the rollout
    kl_scale: Tensor  # (B,) multiplies kl_coefficient, the controller's
    iteration: int
    step: int
    kl_coefficient: float = 0.0
    hidden: Tensor | None = None  # (B, members, D) fp32 features at the last token
    token_score: Tensor = None  # type: ignore[assignment]  # (B, T) of single tokens; zeros

    def __post_init__(self) -> None:
        if self.token_score is None:
            self.token_score = torch.zeros_like(self.logprobs)


@dataclass
class Rollout:
    """What a policy algorithm learns from: B responses with their rewards."""

    samples: Samples
    mask: Tensor  # (B, T) true where a token is real
    score: Tensor  # (B,) of the whole response, that of its tokens included
    rewards: Tensor  # (B, T) the score at the end, less the KL where the algorithm takes it so
    logprobs: Tensor  # (B, T) nats per token, at the sampling temperature
    ref_logprobs: Tensor  # (B, T) of the policy that the KL pulls to
    values: Tensor  # (B, T) zeros without a value head; (B, T, heads) of several
    kl_coefficient: Tensor  # (B,) the controller's times kl_scale
    group: Tensor  # (B,) the number of the prompt in the rollout
    finished: Tensor  # (B,) true where the stop token came
    advantages: Tensor  # (B, T) the algorithm's; zeros while it makes them
    returns: Tensor  # (B, T), or (B, T, heads), as values
    behaviour_logprobs: Tensor = None  # type: ignore[assignment]  # (B, T) those drawn from
    parts: Tensor = None  # type: ignore[assignment]  # (B, members, heads) as in RewardBatch
    part_std: Tensor | None = None  # (B, members, heads) likewise

    def __post_init__(self) -> None:
        if self.behaviour_logprobs is None:
            self.behaviour_logprobs = self.logprobs
        if self.parts is None:
            self.parts = self.score[:, None, None]

    def rows(self, index: Tensor) -> Rollout:
        """The rollouts at ``index``, cut to their longest response."""
        samples = self.samples.rows(index)
        width = samples.mask.shape[1]
        rows = {
            name: x[index] if x.ndim == 1 or name in OF_HEADS else x[index, :width]
            for name, x in vars(self).items()
            if isinstance(x, Tensor)
        }
        return replace(self, samples=samples, **rows)

    @classmethod
    def joined(cls, parts: Sequence[Rollout]) -> Rollout:
        """Several, one below the other, padded to the longest response."""
        names = [name for name, x in vars(parts[0]).items() if isinstance(x, Tensor)]
        found = {name: below([getattr(part, name) for part in parts]) for name in names}
        return cls(samples=Samples.joined([part.samples for part in parts]), **found)


@dataclass
class PolicyOutputs:
    """The policy's answers for a Rollout, and the models, for terms that need another pass."""

    logprobs: Tensor  # (B, T) nats per token
    values: Tensor  # (B, T), or (B, T, heads)
    policy: Policy
    reference: Policy  # takes no gradient


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
