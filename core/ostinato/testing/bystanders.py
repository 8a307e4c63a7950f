"""Plugins to stand beside another one, for the hooks that no built-in method answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ostinato.contract.batches import Rollout
from ostinato.contract.context import Context
from ostinato.contract.events import Event
from ostinato.contract.hookspecs import hookimpl
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward, wrapped
from ostinato.models.samples import Samples


class Draws:
    """Compare warmer responses."""

    @hookimpl
    def draw_responses(self, policy: Policy, prompts: PromptSet, ctx: Context) -> Samples:
        """At a temperature of 1.3."""
        count = ctx.config.preferences.responses
        return ctx.sample(policy, prompts, "bystander", count=count, temperature=1.3)


class Chooses:
    """Draw prompts with replacement."""

    @hookimpl
    def choose_prompts(self, prompts: PromptSet, count: int, ctx: Context) -> Sequence[int]:
        """Rows of RL prompts."""
        drawn = torch.randint(len(prompts), (count,), generator=ctx.generator("bystander"))
        return [int(row) for row in drawn]


class Looks:
    """Change a little wherever several may: selection, sampling, filter, gradient."""

    @hookimpl
    def select_comparisons(
        self, comparisons: Dataset, reward_models: Sequence[Reward], ctx: Context
    ) -> Dataset:
        """All but the last."""
        return comparisons.select(range(max(1, len(comparisons) - 1)))

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """A little less of it."""
        return wrapped(reward, lambda _, scores: replace(scores, score=0.9 * scores.score))

    @hookimpl
    def sampling_logits(self, logits: Tensor, ctx: Context) -> Tensor:
        """Sharper ones."""
        return 1.1 * logits

    @hookimpl
    def filter_rollout(self, rollout: Rollout, ctx: Context) -> Tensor:
        """All of it."""
        return torch.arange(len(rollout.mask))

    @hookimpl
    def policy_meta_update(
        self, parameters: Mapping[str, Tensor], ctx: Context
    ) -> dict[str, Tensor]:
        """A step of a millionth."""
        return {name: 1e-6 * p.detach() for name, p in parameters.items()}

    @hookimpl
    def after_rollout(self, row: Mapping[str, Any], policy: Policy, ctx: Context) -> str | None:
        """Never stops."""
        return None

    @hookimpl
    def observe(self, event: Event) -> None:
        """Told of everything."""
