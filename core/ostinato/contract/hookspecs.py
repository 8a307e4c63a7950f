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
        PolicyHandle,
        PolicyHistory,
        PolicyOutputs,
        PreferenceBatch,
        RewardBatch,
        Rollout,
    )
    from ostinato.contract.context import Context
    from ostinato.contract.events import Event
    from ostinato.contract.policy_algorithm import PolicyAlgorithm
    from ostinato.models.policy import Policy
    from ostinato.models.prompts import PromptSet
    from ostinato.models.reward import Reward
    from ostinato.models.samples import RMOutputs, Samples

CONTRACT = "2"  # docs/contract.md says what may change, and how it is warned of
STOP, KEEP = "stop", "keep"  # what `after_rollout` may answer
hookimpl = pluggy.HookimplMarker("ostinato")
KINDS: dict[str, str] = {}  # every hook's kind
F = TypeVar("F", bound=Callable[..., Any])


def _hook(kind: str, **leaving: Any) -> Callable[[F], F]:
    """``leaving``: pluggy's ``warn_on_impl`` or ``warn_on_impl_args``, for what will be removed."""

    def declared(function: F) -> F:
        KINDS[function.__name__] = kind
        return pluggy.HookspecMarker("ostinato")(function, **leaving)

    return declared


@_hook("one")
def combine_data(datasets: Sequence[Dataset], ctx: Context) -> Dataset:
    """One: form the training set D_k from the labelled pairs of iterations 1..k (Wolf, Alg. 1)."""


@_hook("one")
def combine_rm(  # type: ignore[empty-body]
    reward_models: Sequence[Reward], datasets: Sequence[Dataset], ctx: Context
) -> Reward:
    """One: form the reward R_k that the policy is optimised on, from R~_1..R~_k (Wolf 2.2)."""


@_hook("chain")
def wrap_reward(reward: Reward, ctx: Context) -> Reward:  # type: ignore[empty-body]
    """Chain: lay something around R_k: shaping, a penalty, a rule (``ostinato.wrapped``)."""


@_hook("one")
def init_policy(history: PolicyHistory, ctx: Context) -> PolicyHandle | Policy:  # type: ignore[empty-body]
    """One: choose where iteration k's policy starts; it is also the KL reference (Wolf 2.2)."""


@_hook("chain")
def reward_transform(rewards: RewardBatch, ctx: Context) -> RewardBatch:  # type: ignore[empty-body]
    """Chain: change the rewards of B rollouts: ``score``, ``kl_scale`` (B,), ``token_score``."""


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


@_hook("sum")
def policy_meta_update(  # type: ignore[empty-body]
    parameters: Mapping[str, Tensor], loss: Callable[[], Tensor], ctx: Context
) -> dict[str, Tensor]:
    """Sum: displace the point at which the policy's gradient is taken (SAM)."""


@_hook("one")
def draw_responses(policy: Policy, prompts: PromptSet, ctx: Context) -> Samples:  # type: ignore[empty-body]
    """One: which responses are compared, K a prompt side by side. Default: K of the policy's."""


@_hook("chain")
def select_comparisons(
    comparisons: Dataset, reward_models: Sequence[Reward], ctx: Context
) -> Dataset:
    """Chain: leave the comparisons that are worth a label; only those are asked for."""


@_hook("one")
def label(comparisons: Dataset, ctx: Context) -> Sequence[float]:  # type: ignore[empty-body]
    """One: P(first response preferred) in [0, 1], one a comparison."""


@_hook("chain")
def refine_data(data: Dataset, ctx: Context) -> Dataset:
    """Chain: clean, re-weight or augment D_k before the reward model trains."""


@_hook("one")
def preference_loss(batch: PreferenceBatch, outputs: RMOutputs, ctx: Context) -> Tensor:  # type: ignore[empty-body]
    """One: the loss of each comparison (V, C) or (C,), unreduced; the core applies ``weight``."""


@_hook("one")
def train_rm(fit: Callable[..., Any], initial: Any, data: Dataset, ctx: Context) -> Any:
    """One: train R~_k from R_init. Default: ``fit(initial, data)`` once."""


@_hook("one")
def train_policy(
    optimise: Callable[..., Any],
    initial: Policy,
    reward_model: Reward,
    data: Dataset,
    prompts: PromptSet,
    ctx: Context,
) -> Any:
    """One: optimise pi_k from pi_k_init on R_k. Default: ``optimise(initial, reward_model)``."""


@_hook("one")
def policy_algorithm(ctx: Context) -> PolicyAlgorithm:  # type: ignore[empty-body]
    """One: the advantage estimator and the loss; called once per iteration."""


@_hook("one")
def choose_prompts(  # type: ignore[empty-body]
    prompts: PromptSet, count: int, step: int, ctx: Context
) -> Sequence[int]:
    """One: the rows of ``count`` RL prompts for the rollout at ``step``. Default: permutations."""


@_hook("chain")
def sampling_logits(logits: Tensor, reference: Tensor | None, ctx: Context) -> Tensor:  # type: ignore[empty-body]
    """Chain: the logits (B, vocabulary) from which a rollout's next tokens are drawn."""


@_hook("chain")
def filter_rollout(rollout: Rollout, ctx: Context) -> Tensor:  # type: ignore[empty-body]
    """Chain: the rows (int64) of a rollout that are trained on; ``refill`` draws others."""


@_hook("all")
def after_rollout(row: Mapping[str, Any], policy: Policy, ctx: Context) -> str | None:
    """All: told of each rollout's row; may answer ``ostinato.STOP`` or ``ostinato.KEEP``."""


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
