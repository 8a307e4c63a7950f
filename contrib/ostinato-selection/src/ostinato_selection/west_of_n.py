"""Compare the best and the worst of N responses by the last reward model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, Policy, PromptSet, RunConfig, Samples, hookimpl


class WestOfN:
    """Have the best and the worst of N responses labelled, by the last reward model."""

    paper = "Pace et al. 2024, West-of-N (arXiv 2401.12086), section 3"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        n: int = Field(8, ge=2, description="responses drawn to each prompt (N, ours)")

    config: Config

    def check_run(self, config: RunConfig) -> Iterator[str]:
        """As many responses as are compared."""
        if self.config.n < config.preferences.responses:
            yield (
                f"plugins.west_of_n.n: is {self.config.n}, less than the preferences.responses: "
                f"{config.preferences.responses} that are picked of them"
            )

    @hookimpl
    def draw_responses(self, policy: Policy, prompts: PromptSet, ctx: Context) -> Samples:
        """y+ = argmax r(x, y_i), y- = argmin r(x, y_i), i = 1..N, with r = R~_{k-1}.

        With K responses a prompt, the better half of the K are the best of the N and the rest the
        worst. They stand in random order, so that a labeller learns nothing from their places. In
        the first iteration, which has no reward model, the K are plain draws. The run's labeller
        labels the pairs; the paper takes y+ as preferred, by the model's word.
        """
        k, top_p = ctx.config.preferences.responses, ctx.config.generation.preference_top_p
        n = self.config.n if ctx.reward_models else k
        drawn = ctx.sample(policy, prompts, "west_of_n", count=n, top_p=top_p)
        if not ctx.reward_models:
            return drawn
        score = ctx.reward_models[-1].score_samples(drawn).total.cpu().view(-1, n)
        order = score.argsort(dim=1, descending=True, stable=True)
        picked = torch.cat([order[:, : k - k // 2], order[:, n - k // 2 :]], dim=1)  # (prompts, K)
        gap = score.gather(1, picked[:, :1]) - score.gather(1, picked[:, -1:])
        ctx.log(**{"west_of_n/gap": float(gap.mean())})
        places = torch.rand(picked.shape, generator=ctx.generator("west_of_n places")).argsort(1)
        rows = torch.arange(len(prompts))[:, None] * n + picked.gather(1, places)
        return drawn.rows(rows.flatten().to(drawn.mask.device))
