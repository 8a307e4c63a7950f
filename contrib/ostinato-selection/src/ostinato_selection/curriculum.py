"""RL prompts by what their rewards have been so far: those that still teach something."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, PromptSet, RewardBatch, RunConfig, hookimpl


class Curriculum:
    """Draw RL prompts by mean and spread of their rewards in the rollouts before."""

    paper = "none: the idea is old (Bengio et al. 2009, Curriculum Learning), the rule is ours"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        spread: float = Field(1.0, description="weight of a prompt's standard deviation (ours)")
        mean: float = Field(
            0.0, description="weight of a prompt's mean; below 0 the hard ones come first (ours)"
        )
        temperature: float = Field(
            1.0, gt=0, description="of the draw; a large one is uniform (ours)"
        )
        fresh: float = Field(
            0.5, ge=0, le=1, description="share of a rollout for prompts not drawn yet (ours)"
        )
        memory: float = Field(
            0.8, ge=0, le=1, description="weight of what is known when a new reward comes (ours)"
        )

    config: Config

    def __init__(self) -> None:
        self.iteration = 0
        self.known: dict[str, list[float]] = {}  # prompt: weight, mean, sum of squared deviations

    def state_dict(self) -> dict[str, Any]:
        """What is known of each prompt's rewards in this iteration."""
        return {"iteration": self.iteration, "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.iteration = state["iteration"]
        self.known = {prompt: list(facts) for prompt, facts in state["known"].items()}

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """One of both counts."""
        if self.config.spread == 0 and self.config.mean == 0:
            yield "plugins.curriculum: spread and mean are both 0, which tells no prompts apart"

    @hookimpl
    def reward_transform(self, rewards: RewardBatch, ctx: Context) -> RewardBatch:
        """Learn from the scores (B,) as they are at this place of the chain; they stay."""
        self._begin(ctx)
        for prompt, score in zip(rewards.samples.prompts, rewards.score.tolist(), strict=True):
            weight, mean, squares = self.known.get(prompt, [0.0, 0.0, 0.0])
            weight, squares = self.config.memory * weight, self.config.memory * squares
            change = score - mean
            mean += change / (weight + 1)
            self.known[prompt] = [weight + 1, mean, squares + change * (score - mean)]
        return rewards

    @hookimpl
    def choose_prompts(self, prompts: PromptSet, count: int, step: int, ctx: Context) -> list[int]:
        """``fresh`` of the rows unseen, the rest without replacement with P ~ exp(u / temperature).

        u = spread * z(std of the prompt's rewards) + mean * z(mean of them), z over the prompts
        that were seen; both are drawn half an observation's worth towards all prompts' own.
        """
        self._begin(ctx)
        order = torch.randperm(len(prompts), generator=ctx.generator("curriculum fresh")).tolist()
        unseen = [row for row in order if prompts.texts[row] not in self.known]
        seen = sorted(set(order) - set(unseen))
        chosen = unseen[: max(round(self.config.fresh * count), count - len(seen))]
        utility = self.utilities([prompts.texts[row] for row in seen]) / self.config.temperature
        noise = torch.rand(len(seen), dtype=torch.double, generator=ctx.generator("curriculum"))
        ranked = (utility - (-noise.clamp_min(1e-300).log()).log()).argsort(descending=True)
        chosen += [seen[place] for place in ranked.tolist()]
        ctx.log(**{"curriculum/unseen": len(unseen)})
        rows = chosen or order
        return [rows[place % len(rows)] for place in range(count)]

    def utilities(self, texts: list[str]) -> Tensor:
        """u of these prompts, in fp64."""
        if not texts:
            return torch.zeros(0, dtype=torch.double)
        facts = torch.tensor([self.known[text] for text in texts], dtype=torch.double)
        weight, mean, squares = facts.unbind(1)
        middle = (weight * mean).sum() / weight.sum()
        whole = (squares + weight * (mean - middle).square()).sum() / weight.sum()
        std = ((squares + 0.5 * whole) / (weight + 0.5)).sqrt()
        level = (weight * mean + 0.5 * middle) / (weight + 0.5)
        return self.config.spread * standard(std) + self.config.mean * standard(level)

    def _begin(self, ctx: Context) -> None:
        """Another iteration has another reward and another policy."""
        if self.iteration != ctx.iteration:
            self.iteration, self.known = ctx.iteration, {}


def standard(x: Tensor) -> Tensor:
    """x (n,) with mean 0 and standard deviation 1; 0 where all are equal."""
    centred = x - x.mean()
    std = math.sqrt(float(centred.square().mean()))
    return centred / std if std > 1e-12 else torch.zeros_like(x)
