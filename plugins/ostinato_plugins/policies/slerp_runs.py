"""Several RL runs an iteration, merged on the sphere."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, Policy, Reward, distance, hookimpl, slerp_all


class SlerpRuns:
    """Optimise M policies from one start and merge their task vectors by SLERP (WARP 3.2)."""

    paper = "Rame et al. 2024 (WARP, arXiv 2406.16768), section 3.2"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        runs: int = Field(
            2, ge=2, description="RL runs an iteration, each of rl.rollouts (M; the paper's 2)"
        )

    config: Config

    @hookimpl
    def train_policy(
        self, optimise: Any, initial: Policy, reward_model: Reward, ctx: Context
    ) -> Policy:
        """pi_k = pi_k_init + slerp of the M task vectors, evaluated at the start and merged."""
        assert ctx.config.rl.rollouts is not None
        count = self.config.runs
        optimise.evaluate(initial, 0)
        runs = [
            optimise(initial, reward_model, name=f"run-{m}", evaluate=False).lm
            for m in range(1, count + 1)
        ]
        merged = initial.copy()
        weights = slerp_all(initial.lm.state_dict(), [run.state_dict() for run in runs])
        merged.lm.load_state_dict(weights)
        reached = sum(distance(run, initial.lm) for run in runs) / count
        moved = distance(merged.lm, initial.lm)
        ctx.log(**{"slerp_runs/run_distance": reached, "slerp_runs/distance": moved})
        optimise.evaluate(merged, count * ctx.config.rl.rollouts)
        return merged
