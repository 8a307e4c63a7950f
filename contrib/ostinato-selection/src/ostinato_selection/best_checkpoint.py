"""Keep the policy that the reward models, taken pessimistically, rate best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import KEEP, Context, Policy, hookimpl
from ostinato_selection.votes import probe


class BestCheckpoint:
    """Keep the policy with the best pessimistic reward; the stage answers it, not the last one."""

    paper = "Coste et al. 2024 (arXiv 2310.02743), worst-case and uncertainty-weighted; ours"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        value: Literal["worst", "penalised"] = Field(
            "worst", description="a response's value: its lowest vote, or mean less penalty * std"
        )
        penalty: float = Field(
            1.0, ge=0, description="with `value: penalised`, standard deviations taken off (ours)"
        )
        every: int = Field(5, ge=1, description="rollouts between looks (ours)")
        prompts: int = Field(64, ge=2, description="RL prompts answered for a look (ours)")

    config: Config

    def __init__(self) -> None:
        self.best: dict[str, float] = {}  # by run of `optimise`

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, by run of `optimise`."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = dict(state["best"])

    @hookimpl
    def after_rollout(self, row: Mapping[str, Any], policy: Policy, ctx: Context) -> str | None:
        """KEEP where the mean value of fresh responses is above all looks before in this run.

        The responses are the updated policy's, to RL prompts of the ruler. With one vote a
        response the value is the reward itself.
        """
        if row["step"] % self.config.every:
            return None
        votes, _ = probe(policy, self.config.prompts, ctx, "best_checkpoint")
        mean = float(self.value_of(votes).mean())
        ctx.log(**{"best_checkpoint/value": mean})
        run = f"{ctx.iteration}/{row['name']}"
        if run in self.best and mean <= self.best[run]:
            return None
        self.best[run] = mean
        return KEEP

    def value_of(self, votes: Tensor) -> Tensor:
        """The value (B,) of responses with these votes (B, E)."""
        if self.config.value == "worst" or votes.shape[1] == 1:
            return votes.amin(1)
        return votes.mean(1) - self.config.penalty * votes.std(1)
