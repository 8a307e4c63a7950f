"""What the hooks see: batches of preferences, reward-model outputs, rewards and rollouts.

Letters in shapes: N responses, C comparisons, T tokens, V views, D hidden size, B rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from ostinato.models import prompt_texts

if TYPE_CHECKING:
    from ostinato.policy import Policy


@dataclass
class Samples:
    """Prompts with sampled responses, as tokens of one tokenizer; text is decoded when asked for.

    ``prompt_ids`` (B, P) is padded left, ``response_ids`` (B, T) right; masks are boolean and a
    response's stop token counts as its last real token. ``finished`` (B,): the stop token came.
    """

    tokenizer: Any
    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    mask: Tensor
    finished: Tensor

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @cached_property
    def prompts(self) -> list[str]:
        """Prompt texts; special tokens that a template put in are part of them."""
        return prompt_texts(self.tokenizer, self._real(self.prompt_ids, self.prompt_mask))

    @cached_property
    def responses(self) -> list[str]:
        """Response texts, without special tokens."""
        rows = self._real(self.response_ids, self.mask)
        return [str(t) for t in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @property
    def lengths(self) -> Tensor:
        """Real response tokens, the stop token included (B,)."""
        return self.mask.sum(1)

    @staticmethod
    def _real(ids: Tensor, mask: Tensor) -> list[list[int]]:
        pairs = zip(ids.tolist(), mask.tolist(), strict=True)
        return [[token for token, real in zip(*pair, strict=True) if real] for pair in pairs]

    def rows(self, index: Tensor) -> Samples:
        """The samples at ``index``; response columns that became all padding are cut off."""
        width = max(1, int(self.mask[index].sum(1).max()))
        return Samples(
            self.tokenizer,
            self.prompt_ids[index],
            self.prompt_mask[index],
            self.response_ids[index, :width],
            self.mask[index, :width],
            self.finished[index],
        )


@dataclass
class Scores:
    """What a reward model says of B samples.

    ``score`` (B,) calibrated; ``parts`` (B, members, heads) the same before members and heads were
    reduced; ``part_std`` of that shape where a model predicts a standard deviation, else None.
    """

    score: Tensor
    parts: Tensor
    part_std: Tensor | None = None


class Scorer(Protocol):
    """The contract of every reward model, gold or proxy: text in, one score a response out."""

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> Tensor:
        """Scores (B,). ``finished``: the response ended with its stop token."""


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
class RMOutputs:
    """A reward model's answers for a PreferenceBatch, V dropout views of each response.

    ``score`` (V, N), raw; ``logits`` (V, N, outputs); ``hidden`` (V, N, D) at the final token;
    ``lm_logits`` (V, N, T, vocabulary) if a plugin needs ``lm_head``. ``modules``: the plugin
    modules trained with this model, by plugin name.
    """

    score: Tensor
    logits: Tensor
    hidden: Tensor
    lm_logits: Tensor | None = None
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)


@dataclass
class RewardBatch:
    """The rewards of B rollouts on their way to the policy optimiser.

    ``score`` (B,); ``parts`` (B, members, heads) and ``part_std`` as in Scores; ``logprobs``,
    ``ref_logprobs`` (B, T) nats per token, at the sampling temperature; ``mask`` (B, T);
    ``finished``, ``group`` (B,); ``kl_scale`` (B,) multiplies the controller's KL coefficient.
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


@dataclass
class Rollout:
    """What a policy algorithm learns from: B responses with their rewards.

    ``rewards`` (B, T) per token: the score on the last real token and, where the algorithm takes
    the KL in the reward, -coefficient * KL (``kl.estimator``) on every real token. ``values``
    (B, T) zeros without a value head. ``kl_coefficient`` (B,): the controller's times kl_scale.
    ``advantages``, ``returns`` (B, T) are filled in from the algorithm's answer.
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
        cut = {
            name: getattr(self, name)[index, :width]
            for name in (
                "rewards",
                "logprobs",
                "ref_logprobs",
                "values",
                "advantages",
                "returns",
            )
        }
        return replace(
            self,
            samples=samples,
            mask=samples.mask,
            score=self.score[index],
            kl_coefficient=self.kl_coefficient[index],
            group=self.group[index],
            finished=self.finished[index],
            **cut,
        )


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
