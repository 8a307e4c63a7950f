"""Weight averaged rewarded policies: three averages of weights at three stages of a run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ostinato import (
    Context,
    Policy,
    PolicyHandle,
    PolicyHistory,
    Reward,
    distance,
    follow,
    hookimpl,
    lerp,
    slerp_all,
)


class Warp:
    """Anchor by EMA, merge M runs by SLERP, start anew by LITI (WARP, algorithm 1)."""

    paper = "Rame et al. 2024 (WARP, arXiv 2406.16768), section 3, algorithm 1"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        runs: int = Field(
            2, ge=1, description="RL runs an iteration, each of rl.rollouts (M; the paper's 2)"
        )
        mu: float = Field(
            0.01,
            ge=0,
            le=1,
            description="share of the policy that each optimiser update adds to the anchor "
            "(the paper's 0.01)",
        )
        eta: float = Field(
            0.3,
            ge=0,
            le=1,
            description="how far the next start goes from the last one towards the merged policy "
            "(the paper's 0.3)",
        )

    config: Config

    @hookimpl
    def init_policy(self, history: PolicyHistory) -> PolicyHandle | Policy:
        """LITI: pi_k_init = (1 - eta) pi_{k-1}_init + eta pi_{k-1}."""
        if not history.final:
            return history.sft
        first, last = history.initial[-1].load(), history.final[-1].load()
        mixed = first.copy()
        mixed.lm.load_state_dict(lerp(first.lm.state_dict(), last.lm.state_dict(), self.config.eta))
        return mixed

    @hookimpl
    def train_policy(
        self, optimise: Any, initial: Policy, reward_model: Reward, ctx: Context
    ) -> Policy:
        """M runs, each anchored to its own moving average; pi_k is their SLERP."""
        assert ctx.config.rl.rollouts is not None

        def on_update(policy: Policy, anchor: Policy) -> None:
            follow(anchor, policy, self.config.mu)

        def run(m: int) -> Any:
            settings = {"name": f"run-{m}", "on_update": on_update, "evaluate": False}
            return optimise(initial, reward_model, **settings).lm

        count = self.config.runs
        optimise.evaluate(initial, 0)
        runs = [run(m) for m in range(1, count + 1)]
        merged = initial.copy()
        weights = slerp_all(initial.lm.state_dict(), [one.state_dict() for one in runs])
        merged.lm.load_state_dict(weights)
        reached = sum(distance(one, initial.lm) for one in runs) / count
        moved = distance(merged.lm, initial.lm)
        ctx.log(**{"warp/run_distance": reached, "warp/distance": moved})
        optimise.evaluate(merged, count * ctx.config.rl.rollouts)
        return merged
