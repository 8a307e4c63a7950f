"""One reward model whose weights are the mean of several that were trained unlike each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, Reward, RewardModel, RunConfig, average, hookimpl
from ostinato_uncertainty.uarm import UARM


class WARM:
    """Average the weights of members trained at other rates, in other orders (WARM)."""

    paper = "Rame et al. 2024 (WARM), arXiv 2401.12187"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        rates: list[float] = Field(
            [1.0, 0.5, 1.5],
            min_length=1,
            description="learning rates of the members over reward_model.lr, in turn (ours)",
        )
        probe: float = Field(
            1.0,
            ge=0,
            description="passes in which the head that members share is fitted first (linear "
            "probing, section 3.2); 0 leaves it random",
        )
        over: Literal["newest", "all"] = Field(
            "newest", description="average the newest iteration's members, or all iterations'"
        )

    config: Config

    def __init__(self) -> None:
        self._start: RewardModel | None = None

    def check_run(self, config: RunConfig, plugins: Mapping[str, Any]) -> Iterator[str]:
        """A mean needs several models, and leaves one, which has no variance over members."""
        for name, other in plugins.items():
            if not isinstance(other, UARM) and not getattr(other, "needs", {}).get("members"):
                continue
            yield (
                f"plugins: '{name}' needs the variance of members, and 'warm' makes one model of "
                "them; leave one of the two out"
            )
        if config.reward_model.members < 2:
            yield (
                f"reward_model.members: is {config.reward_model.members}, expected 2 at least: "
                "plugin 'warm' averages the weights of members"
            )
        if any(rate <= 0 for rate in self.config.rates):
            yield f"plugins.warm.rates: expected numbers above 0, got {self.config.rates}"

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """theta_m from one body and one head; member m has its own order of the data and rate.

        Members are trained one after the other from the first: it makes the head for all.
        """
        if ctx.member == 0 or self._start is None:
            start = initial.with_head(ctx.draws, purpose="warm head")
            probe = self.config.probe
            settings = {"epochs": probe, "train": "head", "purpose": "warm probe"}
            self._start = fit(start, data, **settings) if probe else start
        rate = self.config.rates[ctx.member % len(self.config.rates)]
        trained: RewardModel = fit(self._start, data, lr=rate * ctx.config.reward_model.lr)
        return trained

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """phi = 1/M sum of phi_m, in fp32; the core calibrates the new model."""
        chosen = reward_models if self.config.over == "all" else reward_models[-1:]
        members: list[RewardModel] = [member for one in chosen for member in one.members]
        merged = members[-1].copy()
        for name in list(merged.plugin_modules):
            del merged.plugin_modules[name]  # what served their training plays no part in a score
        merged.lm_head = None
        merged.model.load_state_dict(average([m.model.state_dict() for m in members]))
        return merged
