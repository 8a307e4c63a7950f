"""A KL coefficient that steers the KL to a target."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, UserError, hookimpl


class AdaptiveKL:
    """Raise the KL coefficient above a target KL and lower it below (Ziegler et al. 2019)."""

    paper = "Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, section 2.2"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        target: float = Field(6.0, gt=0, description="KL to hold, nats per response")
        horizon: float = Field(
            10000.0, gt=0, description="responses in which an error of 1 would double it (paper)"
        )

    config: Config

    def __init__(self) -> None:
        self.coefficient = 0.0

    @hookimpl
    def kl_coefficient(self, kl: float | None, ctx: Context) -> float:
        """beta (1 + e n / horizon), e = clip(KL / target - 1, -.2, .2), n responses a rollout.

        Each policy starts from ``kl.coefficient``. Raises UserError where that is 0, which no
        factor changes, and where the horizon is so short that a factor could be 0 or less.
        """
        share = ctx.config.rl.rollout_size / self.config.horizon
        if kl is None:
            self.coefficient = self._start(ctx.config.kl.coefficient, share)
            return self.coefficient
        error = min(0.2, max(-0.2, kl / self.config.target - 1))
        self.coefficient *= 1 + error * share
        return self.coefficient

    def _start(self, coefficient: float, share: float) -> float:
        if coefficient == 0:
            raise UserError("kl.coefficient: is 0, which plugin 'adaptive_kl' cannot raise")
        if share >= 5:
            raise UserError(
                f"plugins.adaptive_kl.horizon: {self.config.horizon:g} is no more than a fifth of "
                "rl.rollout_size; one rollout could turn the coefficient's sign"
            )
        return coefficient

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a coefficient."""
        self.coefficient = state["coefficient"]
