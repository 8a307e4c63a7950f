"""Pessimism about the last layer: the reward of the worst head that the data still allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import (
    Context,
    Reward,
    RewardBatch,
    Samples,
    Scores,
    UserError,
    hookimpl,
    wrapped,
)
from ostinato_uncertainty.features import factor, features, known, length, whitened, without


class AdvPO:
    """Optimise against the worst reward head within a confidence ellipsoid (AdvPO)."""

    paper = "Zhang et al. 2024 (AdvPO), arXiv 2403.05171"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        b: float = Field(
            5.0,
            gt=0,
            description="radius of the ellipsoid, in units of the reward (ours; paper: sqrt of 1 "
            "to 15, in raw ones)",
        )
        ridge: float = Field(1.0, gt=0, description="lambda of M (ours; the paper gives none)")
        references: int = Field(
            1,
            ge=0,
            description="SFT responses a prompt that a rollout is compared with (paper's 1); 0 is "
            "none; the form `sample` has none",
        )
        form: Literal["adversarial", "sample"] = Field(
            "adversarial",
            description="one worst head for a whole rollout (the paper's AdvPO), or each sample's "
            "own, its lower confidence bound",
        )

    config: Config

    def check_run(self, plugins: Mapping[str, Any]) -> Iterator[str]:
        """The reward has features."""
        yield from without("advpo", plugins)

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """Learns M = ridge I + sum of e e' over both responses of every comparison of D_k.

        One M a member (section 3). With `form: sample` r(x, y) - b sqrt(e' M^-1 e), else r as it
        is. Raises UserError where there is no D_k, or where the reward has no features.
        """
        if ctx.data is None:
            raise UserError(
                "plugin 'advpo': the run trains no reward model, so that there is no data of which "
                "a head could be sure; list an owner of combine_rm that uses reward models"
            )
        sides = [ctx.responses(ctx.data, side) for side in ("chosen", "rejected")]
        e = torch.cat([features(reward, side, "advpo") for side in sides])  # (2N, members, D)
        eye = torch.eye(e.shape[-1], dtype=e.dtype, device=e.device)
        self._inner = reward
        self._root = factor(torch.einsum("nmd,nme->mde", e, e) + self.config.ridge * eye)
        if self.config.form == "adversarial":
            return reward

        def pessimistic(samples: Samples, scores: Scores) -> Scores:
            unsure = length(whitened(known(scores.hidden, "advpo"), self._root)).mean(1)
            return replace(scores, score=scores.score - self.config.b * unsure.to(scores.score))

        return wrapped(reward, pessimistic)

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """With `form: adversarial` the rollout by the head that makes all of it worth least.

        r(x, y) - b e' M^-1 g / sqrt(g' M^-1 g), g the mean over the rollout of e less its
        reference's (section 4). A reward scores a response whatever it is scored with: this does
        not, so it is no reward.
        """
        if self.config.form == "sample":
            return rewards
        unsure = self._of_batch(rewards.samples, known(rewards.hidden, "advpo"), ctx)
        return replace(rewards, score=rewards.score - self.config.b * unsure.to(rewards.score))

    def _of_batch(self, samples: Samples, e: Tensor, ctx: Context) -> Tensor:
        """(B,) of features e (B, members, D): what the worst head takes off, mean over members."""
        own = whitened(e, self._root)
        worst = whitened(e - self._reference(samples, e, ctx), self._root).mean(0)  # (members, D)
        worst = worst / length(worst)[:, None].clamp_min(1e-12)
        return (own * worst).sum(-1).mean(1)

    def _reference(self, samples: Samples, e: Tensor, ctx: Context) -> Tensor:
        """Mean features of SFT responses to the same prompts, as e."""
        count = self.config.references
        if not count:
            return torch.zeros_like(e)
        drawn = ctx.sample(ctx.sft.load(), samples, "advpo references", count)
        found = features(self._inner, drawn, "advpo")
        return found.view(len(e), count, *e.shape[1:]).mean(1)

    @hookimpl
    def evaluate(self, ctx: Context) -> dict[str, float]:
        """``uncertainty``: mean over the evaluation samples of what times b is taken off."""
        samples = ctx.evaluation.samples
        e = features(self._inner, samples, "advpo")
        if self.config.form == "adversarial":
            return {"uncertainty": float(self._of_batch(samples, e, ctx).mean())}
        return {"uncertainty": float(length(whitened(e, self._root)).mean())}
