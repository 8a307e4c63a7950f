"""Policy filtration: train on the responses whose rewards say most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Rollout, UserError, hookimpl

ONE = (
    "plugin 'pf_ppo': each prompt has one response; list an algorithm with several, such as rloo, "
    "or set plugins.pf_ppo.pool: rollout"
)


class PFPPO:
    """Leave out responses whose rewards are least reliable, the middling ones."""

    paper = "Zhang et al. 2024, PF-PPO (arXiv 2409.06957), section 4"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        keep: Literal["best_random", "best_worst", "best", "power"] = Field(
            "best_random",
            description="the best and others at random (paper: BR), the best and the worst (BW), "
            "the best (BoN), or a draw by |reward|^power (verl's)",
        )
        pool: Literal["prompt", "rollout"] = Field(
            "prompt", description="rank among a prompt's responses (paper), or in the rollout"
        )
        share: float = Field(
            0.5, gt=0, le=1, description="share of a pool that is kept (ours; paper: 2 of N)"
        )
        power: float = Field(2.0, ge=0, description="with `keep: power`, the exponent (verl's)")

    config: Config

    def check_run(self, plugins: Mapping[str, Any]) -> Iterator[str]:
        """Something to rank; only an algorithm that is the plugin itself says what it draws."""
        algorithm = next(p for p in plugins.values() if hasattr(p, "policy_algorithm"))
        if self.config.pool == "prompt" and getattr(algorithm, "responses_per_prompt", 2) < 2:
            yield ONE

    @hookimpl
    def filter_rollout(self, rollout: Rollout, ctx: Context) -> Tensor:
        """Of each pool of n responses m = max(1, round(share n)) rows, by ``rollout.score``.

        With N responses a prompt and m = 2, best_random has the weights 1/2 on the best and
        1/(2 (N - 1)) on each other, best_worst 1/2 on the best and on the worst. Advantages were
        worked out on all of them. A response that another filter has left alone in its pool stays.
        Raises UserError where each prompt has had one from the start.
        """
        generator = ctx.generator("pf_ppo")
        group = rollout.group if self.config.pool == "prompt" else torch.zeros_like(rollout.group)
        score = rollout.score.double().cpu()
        pools = [(group.cpu() == number).nonzero()[:, 0] for number in group.unique().tolist()]
        if max(map(len, pools)) < 2 and len(score) >= ctx.config.rl.rollout_size:
            raise UserError(ONE)
        rows = torch.cat([pool[self.picked(score[pool], generator)] for pool in pools])
        ctx.log(**{"pf_ppo/score": float(score[rows].mean())})
        return rows.sort().values

    def picked(self, score: Tensor, generator: torch.Generator) -> Tensor:
        """The places of a pool's scores (n,) that stay."""
        count = max(1, round(self.config.share * len(score)))
        if self.config.keep == "power":
            weight = score.abs().pow(self.config.power).clamp_min(1e-8)  # as verl's
            return weight.multinomial(count, replacement=False, generator=generator)
        order = score.argsort(descending=True, stable=True)
        if self.config.keep == "best":
            return order[:count]
        top = (count + 1) // 2
        rest = order[top:]
        if self.config.keep == "best_random":
            rest = rest[torch.randperm(len(rest), generator=generator)]
        return torch.cat([order[:top], rest[len(rest) - (count - top) :]])
