"""A KL coefficient that steers the KL to a target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, RunConfig, hookimpl


class AdaptiveKL:
    """Raise the KL coefficient above a target KL and lower it below (Ziegler et al. 2019)."""

    paper = "Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, section 2.2"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        target: float = Field(6.0, gt=0, description="KL to hold, nats per response")
        horizon: float = Field(
            10000.0,
            gt=0,
            description="responses in which an error of 1 would double it (the paper's code)",
        )

    config: Config

    def __init__(self) -> None:
        self.coefficient = 0.0

    @hookimpl
    def kl_coefficient(self, kl: float | None, ctx: Context) -> float:
        """beta (1 + e n / horizon), e = clip(KL / target - 1, -.2, .2), n responses a rollout.

        Each policy starts from ``kl.coefficient``.
        """
        if kl is None:
            self.coefficient = ctx.config.kl.coefficient
            return self.coefficient
        error = min(0.2, max(-0.2, kl / self.config.target - 1))
        self.coefficient *= 1 + error * ctx.config.rl.rollout_size / self.config.horizon
        return self.coefficient

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """No factor changes a coefficient of 0, and a short horizon's could be 0 or less."""
        if config.kl.coefficient == 0:
            yield "kl.coefficient: is 0, which plugin 'adaptive_kl' cannot raise"
        if config.rl.rollout_size >= 5 * self.config.horizon:
            yield (
                f"plugins.adaptive_kl.horizon: {self.config.horizon:g} is no more than a fifth of "
                "rl.rollout_size; one rollout could turn the coefficient's sign"
            )

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a coefficient."""
        self.coefficient = state["coefficient"]
