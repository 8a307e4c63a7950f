"""A penalty on responses that a reward model has never seen the like of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Reward, Samples, Scores, hookimpl, wrapped
from ostinato_uncertainty.features import factor, features, known, length, whitened, without


class IBL:
    """Take the Mahalanobis distance of a response from SFT responses off its reward (IBL)."""

    paper = "Miao et al. 2025, Information-Theoretic Reward Modeling, arXiv 2510.13694"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        gamma: float = Field(0.1, gt=0, description="weight of the distance (ours)")
        power: Literal[1, 2] = Field(
            1, description="of the distance: 1 as in the authors' code, or 2"
        )
        ridge: float = Field(
            1e-4, gt=0, description="added to the covariance, in mean variances (ours)"
        )
        outlier: float = Field(
            0.01, gt=0, lt=1, description="p value below which a response counts as an outlier"
        )

    config: Config

    def check_run(self, plugins: Mapping[str, Any]) -> Iterator[str]:
        """The reward has features."""
        yield from without("ibl", plugins)

    @hookimpl
    def wrap_reward(self, reward: Reward, ctx: Context) -> Reward:
        """r - gamma D^power, D the distance of ``hidden`` in the covariance of SFT responses.

        Those are the ruler's. With ``inform`` the features are its code z, else the body's last
        state. Raises UserError where the reward has no features.
        """
        assert ctx.ruler is not None
        parts = [ctx.ruler.evaluation, ctx.ruler.rl]
        known_z = torch.cat([features(reward, part, "ibl") for part in parts if len(part)])
        centred = (known_z - known_z.mean(0)).transpose(0, 1)  # (members, N, D)
        covariance = centred.transpose(1, 2) @ centred / (len(known_z) - 1)
        scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        self._inner, self._mean = reward, known_z.mean(0)
        self._root = factor(covariance + self.config.ridge * scale[:, None, None] * eye)

        def nearer(samples: Samples, scores: Scores) -> Scores:
            far = self.distances(known(scores.hidden, "ibl")) ** self.config.power
            return replace(
                scores, score=scores.score - self.config.gamma * far.mean(1).to(scores.score)
            )

        return wrapped(reward, nearer)

    def distances(self, z: Tensor) -> Tensor:
        """D (B, members) of features (B, members, D)."""
        return length(whitened(z - self._mean, self._root))

    @hookimpl
    def evaluate(self, ctx: Context) -> dict[str, float]:
        """``distance``: the mean D. ``outliers``: the share with D^2 beyond chi^2's p value."""
        z = features(self._inner, ctx.evaluation.samples, "ibl")
        far = self.distances(z)
        half = torch.full_like(far, z.shape[-1] / 2)
        p = torch.special.gammaincc(half, far.square() / 2)
        return {
            "distance": float(far.mean()),
            "outliers": float((p < self.config.outlier).double().mean()),
        }
