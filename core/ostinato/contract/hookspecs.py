"""The contract: every hook of Ostinato, what it is given and what it answers.

A plugin is a plain class whose hook methods carry ``@ostinato.hookimpl`` and name only the
arguments they want. A hook is of one of four kinds, stated in its first word:

* **one**: exactly one active plugin owns it; two are an error before any compute, none falls to
  the documented default.
* **chain**: each active plugin in the run file's order gets what the one before it answered; the
  core checks shape and finiteness after each link and names the plugin.
* **sum**: every answer counts, logged apart as ``plugin/term``.
* **all**: everyone is told, answers are ignored.

The core records a magnitude of what each call did (``actions`` in metrics.jsonl; ``observe`` does
nothing to a run and has none). A plugin that remembers anything has ``state_dict()``, made of what
JSON holds, and ``load_state_dict(state)``: a resumed run gives it back.

Shapes: N responses, C comparisons, T tokens, V views, B rollouts. ``ctx`` is an
:class:`ostinato.Context`. New arguments may be added to a hook at any time; removing one takes a
deprecation release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

hookspec = pluggy.HookspecMarker("ostinato")
hookimpl = pluggy.HookimplMarker("ostinato")

# The three kinds that answer, and the one that only listens.
KINDS: Mapping[str, str] = {
    "combine_data": "one",
    "combine_rm": "one",
    "init_policy": "one",
    "reward_transform": "chain",
    "rm_loss": "sum",
    "meta_update": "sum",
    "label": "one",
    "refine_data": "chain",
    "preference_loss": "one",
    "train_rm": "one",
    "train_policy": "one",
    "policy_algorithm": "one",
    "policy_loss": "sum",
    "kl_coefficient": "one",
    "evaluate": "sum",
    "observe": "all",
}


@hookspec
def combine_data(datasets: Sequence[Dataset], ctx: Context) -> Dataset:
    """One: form the training set D_k from the labelled pairs of iterations 1..k (Wolf, Alg. 1).

    ``datasets[i]`` holds iteration i + 1, one comparison a row (columns: docs/concepts). Answer a
    dataset with the same columns. It must not be empty.
    """


@hookspec
def combine_rm(  # type: ignore[empty-body]
    reward_models: Sequence[Reward], datasets: Sequence[Dataset], ctx: Context
) -> Reward:
    """One: form the reward R_k that the policy is optimised on, from R~_1..R~_k (Wolf 2.2).

    Each has ``members`` and scores with mean 0 on ``ctx.ruler``. Answer one of them, a lazy
    ``ostinato.combine(models, reduce)``, or a new ``RewardModel``; the core calibrates a new one
    unless its ``calibration`` is set, and gives R_k mean 0 on the ruler. ``datasets`` are
    D~_1..D~_k: the responses of the first, the SFT policy's, are the same in every iteration.
    """


@hookspec
def init_policy(history: PolicyHistory, ctx: Context) -> PolicyHandle | Policy:  # type: ignore[empty-body]
    """One: choose where iteration k's policy starts; it is also the KL reference (Wolf 2.2).

    Answer a handle from ``history`` as it is, or a new policy. Never change what is given.
    """


@hookspec
def reward_transform(rewards: RewardBatch, ctx: Context) -> RewardBatch:  # type: ignore[empty-body]
    """Chain: change the rewards of B rollouts: ``score`` (B,) or ``kl_scale`` (B,).

    Answer a batch of the same shape (``dataclasses.replace``); every number finite.
    """


@hookspec
def rm_loss(batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Sum: auxiliary terms of the reward-model loss, {term: scalar}, added as they are."""


@hookspec
def meta_update(  # type: ignore[empty-body]
    parameters: Mapping[str, Tensor],
    loss: Callable[[], Tensor],
    score: Callable[[], Tensor],
    meta_batch: Any,
    ctx: Context,
) -> dict[str, Tensor]:
    """Sum: displace the point at which the reward model's gradient is taken.

    The gradient of the whole loss is taken at theta + displacement and applied at theta, once per
    optimiser step. ``loss()`` is the whole loss at theta; ``score()`` gives raw scores
    (prompts, responses) at theta of the meta batch, with gradients, for plugins that need
    ``meta_responses`` (else it raises). Answer {parameter name: displacement}; missing names are 0.
    """


@hookspec
def label(comparisons: Dataset, ctx: Context) -> Sequence[float]:  # type: ignore[empty-body]
    """One: P(first response preferred) in [0, 1], one a comparison.

    Called once an iteration, with the held-out comparisons last. Rows hold ``prompt, prompt_id,
    group``, and for ``first`` and ``second`` the text, ``_finished``, ``_index`` and ``_gold``,
    which is null without a gold model. Raise ``ostinato.Pause`` to wait for people.
    """


@hookspec
def refine_data(data: Dataset, ctx: Context) -> Dataset:
    """Chain: clean or re-weight D_k before the reward model trains.

    May change ``chosen``/``rejected`` (and all columns named after them), ``label``, ``margin``,
    ``weight``, and add columns that it declares in ``provides``. Rows may go, not come.
    ``ctx.fit`` trains a reward model; ``ctx.cached`` keeps a result in the run directory.
    """


@hookspec
def preference_loss(batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> Tensor:  # type: ignore[empty-body]
    """One: the loss of each comparison (V, C) or (C,), unreduced; the core applies ``weight``."""


@hookspec
def train_rm(fit: Callable[..., Any], initial: Any, data: Dataset, ctx: Context) -> Any:
    """One: train R~_k from R_init. Default: ``fit(initial, data)`` once.

    ``fit(model, data, *, epochs, lr, stop_loss, train, purpose)`` answers a trained copy. Columns
    that the plugin adds to ``data`` come back in ``PreferenceBatch.extra``. Called once a member,
    ``ctx.member``.
    """


@hookspec
def train_policy(
    optimise: Callable[..., Any], initial: Any, reward_model: Any, ctx: Context
) -> Any:
    """One: optimise pi_k from pi_k_init on R_k. Default: ``optimise(initial, reward_model)`` once.

    ``optimise(initial, reward_model, *, reference, on_update, name, evaluate)`` answers a trained
    policy; give each of several runs a ``name`` of its own. ``optimise.evaluate(policy, step)``
    writes an ``eval`` row, for a policy that was merged: an iteration needs at least one.
    """


@hookspec
def policy_algorithm(ctx: Context) -> PolicyAlgorithm:  # type: ignore[empty-body]
    """One: the advantage estimator and the loss; called once per iteration."""


@hookspec
def policy_loss(batch: Rollout, outputs: PolicyOutputs, ctx: Context) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Sum: further terms of the policy loss, {term: scalar}, added as they are."""


@hookspec
def kl_coefficient(kl: float | None, step: int, ctx: Context) -> float:  # type: ignore[empty-body]
    """One: the KL coefficient of the rollout at ``step``.

    ``kl`` is the mean KL per response (nats) of the rollout before, None at the first.
    """


@hookspec
def evaluate(ctx: Context) -> dict[str, float]:  # type: ignore[empty-body]
    """Sum: more numbers for an ``eval`` row; ``ctx.evaluation`` holds policy, samples, scores.

    Every one finite: leave out what is undefined on this sample.
    """


@hookspec
def observe(event: Event) -> None:
    """All: told of everything that happens in a run (trackers, progress). Answers are ignored."""
