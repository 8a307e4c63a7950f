"""Gradient regularisation of the policy: a penalty on its gradient, by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, hookimpl


class GradientRegularisation:
    """Seek flat regions, where rewards are more accurate (Ackermann et al. 2026).

    The regularised loss is L + γ/2 |∇L|², whose gradient is, by a forward difference with step ε,

        ∇L(θ) + γ/ε (∇L(θ + ε g) - ∇L(θ)),  g = ∇L(θ)

    With ε = γ this is ∇L(θ + γ g): the gradient at a displaced point, which is what the hook
    answers γ g for. On a quadratic loss every ε gives the same. ``g`` is that of the minibatch's
    whole loss, cut to the norm ``clip``. Two backward passes an update instead of one.
    """

    paper = "Ackermann et al. 2026 (arXiv 2602.18037); Karakida et al. 2023, finite differences"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        strength: float = Field(
            1e-2, gt=0, description="γ, weight of the penalty, and the step (authors' RLHF script)"
        )
        clip: float = Field(
            10.0, gt=0, description="norm that the gradient g is cut to (authors' code)"
        )
        exclude: list[str] = Field(
            ["embed", "lm_head", "value_"],
            description="parts of names of parameters that are not displaced (authors' code: "
            "embeddings and heads)",
        )

    config: Config

    @hookimpl
    def policy_meta_update(
        self, parameters: Mapping[str, Tensor], loss: Callable[[], Tensor], ctx: Context
    ) -> dict[str, Tensor]:
        """γ g for every parameter that is not excluded, shaped as it."""
        found = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        gradient = {n: g for n, g in zip(parameters, found, strict=True) if g is not None}
        norm = torch.stack([g.norm() for g in gradient.values()]).norm()
        ctx.log(**{"gradient_regularisation/norm": float(norm)})
        scale = self.config.strength * (self.config.clip / (norm + 1e-6)).clamp_max(1.0)
        left = self.config.exclude
        return {n: scale * g for n, g in gradient.items() if not any(part in n for part in left)}
