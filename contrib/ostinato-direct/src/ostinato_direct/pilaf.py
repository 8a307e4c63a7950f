"""PILAF: pairs drawn from either side of the policy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Policy, PromptSet, Samples, hookimpl


class PILAF:
    """Compare responses from either side of the policy, away from and to the SFT policy (Feng).

    With probability ``share`` the responses to a prompt are drawn, in turn, from

        π+ ∝ π (π / π_ref)^β   and   π- ∝ π (π / π_ref)^(-β)

    token by token, else from the policy π itself; π_ref is the SFT policy. The gradient of the
    preference loss then follows that of the regularised reward, since such pairs make up for the
    sigmoid's slope. In the first iteration π is π_ref, and nothing differs but the draws.
    """

    paper = "Feng et al. 2025, PILAF (arXiv 2502.04270), section 5"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        beta: float = Field(
            0.1, gt=0, description="β, how far from the policy: the KL's weight in DPO's reward"
        )
        share: float = Field(
            0.5, gt=0, le=1, description="chance of a prompt to be drawn so (paper's)"
        )

    config: Config

    @hookimpl
    def draw_responses(self, policy: Policy, prompts: PromptSet, ctx: Context) -> Samples:
        """K responses to each prompt, side by side; of a pair, the first is from π+."""
        k, top_p = ctx.config.preferences.responses, ctx.config.generation.preference_top_p
        chosen = torch.rand(len(prompts), generator=ctx.generator("pilaf")) < self.config.share
        plain, apart = ((chosen == so).nonzero().flatten() for so in (False, True))
        ctx.log(**{"pilaf/share": float(chosen.float().mean())})
        parts, places = [], []
        for name, rows, slots, beta in (
            ("policy", plain, range(k), 0.0),
            ("up", apart, range(0, k, 2), self.config.beta),
            ("down", apart, range(1, k, 2), -self.config.beta),
        ):
            if not len(rows):
                continue
            some = prompts.take(rows.tolist())
            asked = policy, some, f"pilaf {name}", len(slots), top_p
            if beta:
                shape = partial(away, beta=beta)
                drawn = ctx.sample(*asked, shape=shape, reference=ctx.sft.load())
            else:
                drawn = ctx.sample(*asked)
            parts.append(replace(drawn, logprobs=None))
            places.append((rows[:, None] * k + torch.tensor(slots)).flatten())
        return Samples.joined(parts).rows(torch.cat(places).argsort().to(policy.lm.device))


def away(logits: Tensor, reference: Tensor | None, beta: float) -> Tensor:
    """Logits (B, vocabulary) of π (π / π_ref)^β, up to their normaliser."""
    assert reference is not None
    return logits + beta * (logits - reference)
