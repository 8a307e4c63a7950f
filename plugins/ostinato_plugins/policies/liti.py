"""Linear interpolation towards initialisation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Policy, PolicyHandle, PolicyHistory, hookimpl, lerp


class Liti:
    """Start between the last initial and the last final policy, in weight space (Wolf 2.2)."""

    paper = "Wolf 2025, section 2.2; Rame et al. 2024 (WARP); Wortsman et al. 2022 (WiSE-FT)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        eta: float = Field(
            0.5, ge=0, le=1, description="0 never moves, 1 takes the last policy as it is"
        )

    config: Config

    @hookimpl
    def init_policy(self, history: PolicyHistory) -> PolicyHandle | Policy:
        """pi_k_init = (1 - eta) pi_{k-1}_init + eta pi_{k-1}."""
        if not history.final:
            return history.sft
        first, last = history.initial[-1].load(), history.final[-1].load()
        mixed = first.copy()
        mixed.lm.load_state_dict(lerp(first.lm.state_dict(), last.lm.state_dict(), self.config.eta))
        return mixed
