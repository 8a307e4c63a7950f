"""Iterative data smoothing: labels that move, epoch by epoch, to what the model has learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, RewardModel, RunConfig, hookimpl


class IDS:
    """Smooth the labels with the model's own probabilities after each epoch (Zhu et al. 2024)."""

    paper = "Zhu et al. 2024, Iterative Data Smoothing (arXiv 2401.16335)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        beta: float = Field(0.3, gt=0, le=1, description="step of the labels (ours)")
        epochs: int | None = Field(
            None, ge=2, description="epochs; reward_model.epochs, rounded up, when left out"
        )

    config: Config

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """Labels move between epochs."""
        if self.config.epochs is None and (config.reward_model.epochs or 0) <= 1:
            yield (
                "plugins.ids.epochs: is not set, and reward_model.epochs is not above 1; labels "
                "move between epochs, expected 2 or more"
            )

    @hookimpl
    def train_rm(self, fit: Any, initial: RewardModel, data: Dataset, ctx: Context) -> RewardModel:
        """Between epochs y_{t+1} = (1 - beta) y_t + beta sigmoid(r_t(chosen) - r_t(rejected)).

        r_t is the model after epoch t, uncalibrated; the labels start from ``label``, also a soft
        one. Each epoch is a fit of its own: the order of the data, the warm-up and Adam's moments
        begin anew. The learning rate starts each time where a straight line from ``lr`` to
        ``lr_final`` over all epochs has come, and falls to ``lr_final``.
        """
        section = ctx.config.reward_model
        epochs = self.config.epochs or math.ceil(section.epochs or 1)
        start = label = torch.tensor(data["label"][:], dtype=torch.double)
        model = initial
        for epoch in range(epochs):
            if epoch:
                label = (1 - self.config.beta) * label + self.config.beta * chances(model, data)
                ctx.log(**{"ids/moved": float((label - start).abs().mean())})
            lr = section.lr + (min(section.lr_final, section.lr) - section.lr) * epoch / epochs
            purpose = f"ids {epoch}" if epoch else "reward model"
            model = fit(model, labelled(data, label), epochs=1, lr=lr, purpose=purpose)
        return model


def chances(model: RewardModel, data: Dataset) -> Tensor:
    """P(chosen preferred) of each comparison by the model, in fp64 on the CPU."""
    chosen, rejected = (
        model.score(data["prompt"][:], data[side][:], data[f"{side}_finished"][:])
        for side in ("chosen", "rejected")
    )
    return (chosen - rejected).double().cpu().sigmoid()


def labelled(data: Dataset, label: Tensor) -> Dataset:
    """The data with other labels."""
    return Dataset.from_dict(data.to_dict() | {"label": label.tolist()}, features=data.features)
