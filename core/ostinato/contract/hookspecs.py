"""The contract: every hook of Ostinato, what it is given and what it answers.

docs/hooks has a page for each, and says in index.md what the four kinds are and how a plugin is
written.

Shapes: N responses, C comparisons, T tokens, V views, B rollouts. ``ctx`` is an
:class:`ostinato.Context`. Removing an argument of a hook takes a deprecation release.
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
    """One: form the training set D_k from the labelled pairs of iterations 1..k (Wolf, Alg. 1).

    ``datasets[i]`` holds iteration i + 1. Answer one with the same columns, which is not empty.
    """


@_hook("one")
def combine_rm(  # type: ignore[empty-body]
    reward_models: Sequence[Reward], datasets: Sequence[Dataset], ctx: Context
) -> Reward:
    """One: form the reward R_k that the policy is optimised on, from R~_1..R~_k (Wolf 2.2).

    Each scores with mean 0 on ``ctx.ruler``, and so will R_k. Answer one of them, a lazy
    ``ostinato.combine(models, reduce)``, or a new ``RewardModel``, which the core calibrates
    unless its ``calibration`` is set.
    """


@_hook("one")
def init_policy(history: PolicyHistory, ctx: Context) -> PolicyHandle | Policy:  # type: ignore[empty-body]
    """One: choose where iteration k's policy starts; it is also the KL reference (Wolf 2.2).

    Answer a handle from ``history`` as it is, or a new policy. Never change what is given.
    """


@_hook("chain")
def reward_transform(rewards: RewardBatch, ctx: Context) -> RewardBatch:  # type: ignore[empty-body]
    """Chain: change the rewards of B rollouts: ``score`` (B,) or ``kl_scale`` (B,).

    Answer a batch of the same shape (``dataclasses.replace``); every number finite.
    """


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
    """Sum: displace the point at which the reward model's gradient is taken.

    ``loss()`` is the whole loss and ``score()`` gives raw scores (prompts, responses) of the meta
    batch, both with gradients. Answer {parameter name: displacement}; missing names are 0.
    """


@_hook("one")
def label(comparisons: Dataset, ctx: Context) -> Sequence[float]:  # type: ignore[empty-body]
    """One: P(first response preferred) in [0, 1], one a comparison.

    Held-out comparisons come last. Raise ``ostinato.Pause`` to wait for people.
    """


@_hook("chain")
def refine_data(data: Dataset, ctx: Context) -> Dataset:
    """Chain: clean or re-weight D_k before the reward model trains.

    May change ``chosen``/``rejected`` (and all columns named after them), ``label``, ``margin``,
    ``weight``, and add columns that it declares in ``provides``. Rows may go, not come.
    """


@_hook("one")
def preference_loss(batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> Tensor:  # type: ignore[empty-body]
    """One: the loss of each comparison (V, C) or (C,), unreduced; the core applies ``weight``."""


@_hook("one")
def train_rm(fit: Callable[..., Any], initial: Any, data: Dataset, ctx: Context) -> Any:
    """One: train R~_k from R_init. Default: ``fit(initial, data)`` once.

    ``fit(model, data, *, epochs, lr, stop_loss, train, purpose)`` answers a trained copy.
    """


@_hook("one")
def train_policy(
    optimise: Callable[..., Any], initial: Any, reward_model: Any, ctx: Context
) -> Any:
    """One: optimise pi_k from pi_k_init on R_k. Default: ``optimise(initial, reward_model)`` once.

    ``optimise(initial, reward_model, *, reference, on_update, name, evaluate)`` answers a trained
    copy; ``optimise.evaluate(policy, step)`` writes an ``eval`` row, of which it needs one.
    """


@_hook("one")
def policy_algorithm(ctx: Context) -> PolicyAlgorithm:  # type: ignore[empty-body]
    """One: the advantage estimator and the loss; called once per iteration."""


@_hook("sum")
def policy_loss(batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Sum: further terms of the policy loss, {term: scalar}, added as they are."""


@_hook("one")
def kl_coefficient(kl: float | None, step: int, ctx: Context) -> float:  # type: ignore[empty-body]
    """One: the KL coefficient of the rollout at ``step``.

    ``kl`` is the mean KL per response (nats) of the rollout before, None at the first.
    """


@_hook("sum")
def evaluate(ctx: Context) -> dict[str, float]:  # type: ignore[empty-body]
    """Sum: more numbers for an ``eval`` row; ``ctx.evaluation`` holds policy, samples, scores.

    Every one finite: leave out what is undefined on this sample.
    """


@_hook("all")
def observe(event: Event) -> None:
    """All: told of everything that happens in a run (trackers, progress). Answers are ignored."""
