"""Optimise on reward models of different origins, brought to one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ostinato import (
    Context,
    Event,
    Reward,
    RewardModel,
    calibrated,
    combine,
    hookimpl,
    trained_reward,
)


class RewardFusion:
    """Fuse reward models of other bases and scales with the run's own (BRME, appendix F)."""

    paper = "Reward-Robust RLHF in LLMs (2024), appendix F (heterologous reward fusion)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        models: list[str] = Field(
            min_length=1, description="paths or hub names of trained reward models (decoders)"
        )
        own: Literal["latest", "all", "none"] = Field(
            "latest", description="which of the run's own R~_1..R~_k are fused with them"
        )
        reduce: Literal["mean", "min"] = Field(
            "mean", description="the reward is the mean or the minimum over all models (ours)"
        )

        @field_validator("models")
        @classmethod
        def _there(cls, models: list[str]) -> list[str]:
            """Whether the folders exist; hub names are tried when the run starts."""
            models = [expanduser(name) for name in models]
            for name in models:
                if name.startswith((".", "/", "~")) and not Path(name).is_dir():
                    raise ValueError(f"no folder '{name}'")
            return models

    config: Config

    @property
    def heads(self) -> int:
        """Models that R_k has beside members: what a plugin that needs members counts."""
        return len(self.config.models) + (self.config.own != "none")

    def __init__(self) -> None:
        self.external: list[RewardModel] = []

    def load(self, readers: Mapping[str, Any]) -> list[RewardModel]:
        """The reward models that the run file names, loaded once."""
        if not self.external:
            key = "plugins.reward_fusion.models"
            found = [trained_reward(name, key, readers=readers) for name in self.config.models]
            self.external = [member for reward in found for member in reward.members]
        return self.external

    @hookimpl
    def observe(self, event: Event) -> None:
        """A model that cannot be loaded ends the run before anything is computed."""
        if event.kind == "run_started":
            self.load(event.data["plugins"].readers)

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward], ctx: Context) -> Reward:
        """Each model normalised by its mean and std on the ruler, then reduced.

        The ruler's SFT responses are one fixed reference set at every k. The run's own models are
        copied, so R~_i keeps the unit of the run file.
        """
        chosen = {"latest": reward_models[-1:], "all": reward_models, "none": []}[self.config.own]
        own = [member.copy() for reward in chosen for member in reward.members]
        models = [*own, *self.load(ctx.readers)]
        assert ctx.ruler is not None
        for model in models:
            calibrated(model.to(ctx.device), ctx.ruler)
        for i, model in enumerate(self.external):
            scale = model.calibration
            mean = scale.mean + sum(scale.zeros) / len(scale.zeros)
            ctx.log(**{f"reward_fusion/mean_{i}": mean, f"reward_fusion/std_{i}": scale.unit})

        def reduce(each: Tensor) -> Tensor:
            return each.mean(1) if self.config.reduce == "mean" else each.amin(1)

        return combine(models, reduce)
