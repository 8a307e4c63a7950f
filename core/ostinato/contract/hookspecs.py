"""The contract: every hook of Ostinato, what it is given and what it answers.

docs/hooks has a page for each, and says in index.md what the four kinds are and how a plugin is
written. Shapes: C comparisons, V views, B rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from ostinato.contract.batches import (
        PolicyAlgorithm,
        PolicyHandle,
        PolicyHistory,
        PolicyOutputs,
        PreferenceBatch,
        RewardBatch,
        Rollout,
    )
    from ostinato.contract.context import Context
    from ostinato.contract.events import Event
    from ostinato.models.policy import Policy
    from ostinato.models.reward import Reward
    from ostinato.models.samples import RMOutputs

hookimpl = pluggy.HookimplMarker("ostinato")
KINDS: dict[str, str] = {}  # every hook's kind
F = TypeVar("F", bound=Callable[..., Any])


def _hook(kind: str) -> Callable[[F], F]:
    def declared(function: F) -> F:
        KINDS[function.__name__] = kind
        return pluggy.HookspecMarker("ostinato")(function)

    return declared


@_hook("one")
def combine_data(datasets: Sequence[Dataset], ctx: Context) -> Dataset:
    """One: form the training set D_k from the labelled pairs of iterations 1..k (Wolf, Alg. 1)."""


@_hook("one")
def combine_rm(  # type: ignore[empty-body]
    reward_models: Sequence[Reward], datasets: Sequence[Dataset], ctx: Context
) -> Reward:
    """One: form the reward R_k that the policy is optimised on, from R~_1..R~_k (Wolf 2.2)."""


@_hook("one")
def init_policy(history: PolicyHistory, ctx: Context) -> PolicyHandle | Policy:  # type: ignore[empty-body]
    """One: choose where iteration k's policy starts; it is also the KL reference (Wolf 2.2)."""


@_hook("chain")
def reward_transform(rewards: RewardBatch, ctx: Context) -> RewardBatch:  # type: ignore[empty-body]
    """Chain: change the rewards of B rollouts: ``score`` (B,) or ``kl_scale`` (B,)."""


@_hook("sum")
def rm_loss(batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Sum: auxiliary terms of the reward-model loss, {term: scalar}, added as they are."""


@_hook("sum")
def meta_update(  # type: ignore[empty-body]
    parameters: Mapping[str, Tensor],
    loss: Callable[[], Tensor],
    score: Callable[[], Tensor],
    meta_batch: Any,
    ctx: Context,
) -> dict[str, Tensor]:
    """Sum: displace the point at which the reward model's gradient is taken."""


@_hook("one")
def label(comparisons: Dataset, ctx: Context) -> Sequence[float]:  # type: ignore[empty-body]
    """One: P(first response preferred) in [0, 1], one a comparison."""


@_hook("chain")
def refine_data(data: Dataset, ctx: Context) -> Dataset:
    """Chain: clean or re-weight D_k before the reward model trains."""


@_hook("one")
def preference_loss(batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> Tensor:  # type: ignore[empty-body]
    """One: the loss of each comparison (V, C) or (C,), unreduced; the core applies ``weight``."""


@_hook("one")
def train_rm(fit: Callable[..., Any], initial: Any, data: Dataset, ctx: Context) -> Any:
    """One: train R~_k from R_init. Default: ``fit(initial, data)`` once."""


@_hook("one")
def train_policy(
    optimise: Callable[..., Any], initial: Any, reward_model: Any, ctx: Context
) -> Any:
    """One: optimise pi_k from pi_k_init on R_k. Default: ``optimise(initial, reward_model)``."""


@_hook("one")
def policy_algorithm(ctx: Context) -> PolicyAlgorithm:  # type: ignore[empty-body]
    """One: the advantage estimator and the loss; called once per iteration."""


@_hook("sum")
def policy_loss(batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Sum: further terms of the policy loss, {term: scalar}, added as they are."""


@_hook("one")
def kl_coefficient(kl: float | None, step: int, ctx: Context) -> float:  # type: ignore[empty-body]
    """One: the KL coefficient of the rollout at ``step``."""


@_hook("sum")
def evaluate(ctx: Context) -> dict[str, float]:  # type: ignore[empty-body]
    """Sum: more numbers for an ``eval`` row; ``ctx.evaluation`` holds policy, samples, scores."""


@_hook("all")
def observe(event: Event) -> None:
    """All: told of everything that happens in a run (trackers, progress). Answers are ignored."""
