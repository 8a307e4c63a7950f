"""Active preference learning: prompts that the policy is unsure of, pairs that the reward tells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Policy, PromptSet, Reward, Samples, hookimpl


class APL:
    """Take prompts by the policy's predictive entropy, and pairs by their difference in reward."""

    paper = "Muldrew et al. 2024, Active Preference Learning (arXiv 2402.08114), section 3"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        prompts: float = Field(
            0.5, gt=0, le=1, description="share of the preference prompts, by entropy (ours)"
        )
        pairs: float = Field(
            0.5, gt=0, le=1, description="share of their pairs, by difference in reward (ours)"
        )
        candidates: int = Field(
            2, ge=1, description="RL prompts looked at for each that is taken (ours)"
        )
        responses: int = Field(
            2, ge=1, description="responses in the estimate of an RL prompt's entropy (ours)"
        )

    config: Config

    @hookimpl
    def choose_prompts(self, prompts: PromptSet, count: int, step: int, ctx: Context) -> list[int]:
        """Of ``candidates`` times ``count`` RL prompts those with the largest predictive entropy.

        H(y | x) ~ -1/N sum_n log pi(y_n | x), nats a response, of N fresh responses.
        """
        order = torch.randperm(len(prompts), generator=ctx.generator("apl prompts")).tolist()
        looked = [order[place % len(order)] for place in range(self.config.candidates * count)]
        looked = sorted(set(looked)) if len(order) >= count else looked
        drawn = ctx.sample(ctx.policy, prompts.take(looked), "apl", count=self.config.responses)
        found = entropies(ctx.policy, drawn).view(len(looked), -1).mean(1)
        taken = found.argsort(descending=True, stable=True)[:count]
        ctx.log(**{"apl/entropy": float(found[taken].mean()), "apl/looked": float(found.mean())})
        return [looked[place] for place in taken.tolist()]

    @hookimpl
    def select_comparisons(
        self, comparisons: Dataset, reward_models: Sequence[Reward], ctx: Context
    ) -> Dataset:
        """The ``prompts`` with the largest entropy, of them the ``pairs`` with |r(y) - r(y')|.

        The entropy is that of pi_{k-1}, estimated on the responses that are compared; r is
        R~_{k-1}, where the paper has DPO's implicit reward. In the first iteration, which has no
        reward model, the pairs are drawn.
        """
        before = ctx.policies
        policy = (before.final[-1] if before.final else before.sft).load()
        sides = [ctx.responses(comparisons, side) for side in ("first", "second")]
        unsure = (entropies(policy, sides[0]) + entropies(policy, sides[1])) / 2
        groups: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(comparisons["iteration"], comparisons["group"], strict=True)):
            groups.setdefault(key, []).append(row)
        ranked = sorted(groups.values(), key=lambda rows: -float(unsure[rows].mean()))
        kept = max(1, round(self.config.prompts * len(ranked)))
        rows = [row for group in ranked[:kept] for row in group]
        value = torch.rand(len(comparisons), generator=ctx.generator("apl pairs")).double()
        if reward_models:
            first, second = (reward_models[-1].score_samples(side).total for side in sides)
            value = (first - second).abs().double().cpu()
        rows.sort(key=lambda row: -float(value[row]))
        return comparisons.select(sorted(rows[: max(1, round(self.config.pairs * len(rows)))]))


@torch.no_grad()
def entropies(policy: Policy, samples: Samples) -> Tensor:
    """-log pi(y | x) of each response (B,), nats, in fp64 on the CPU."""
    return -policy.logprobs(samples).double().sum(1).cpu()
