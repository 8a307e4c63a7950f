"""Ask for labels where the members of the reward disagree on which response is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Reward, RunConfig, hookimpl
from ostinato_selection.votes import of_pairs, one_vote, several


class ActivePairs:
    """Have the pairs labelled on which the reward models' votes differ most."""

    paper = "Liu et al. 2024, Sample-Efficient Alignment (arXiv 2411.01493): pure exploration"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        share: float = Field(0.5, gt=0, le=1, description="share of the pairs that is kept (ours)")
        of: Literal["difference", "probability"] = Field(
            "difference",
            description="what differs: r(first) - r(second) (the authors'), or its sigmoid",
        )

    config: Config

    def check_run(self, config: RunConfig, plugins: Mapping[str, Any]) -> Iterator[str]:
        """One vote agrees with itself."""
        yield from one_vote("active_pairs", config, plugins)

    @hookimpl
    def select_comparisons(
        self, comparisons: Dataset, reward_models: Sequence[Reward], ctx: Context
    ) -> Dataset:
        """The ``share`` with the largest Var_e[r_e(x, y) - r_e(x, y')], ddof 1.

        e runs over members and heads of R~_{k-1}. In the first iteration, which has no reward
        model, the same share is drawn at random. Raises UserError where R~_{k-1} has one member.
        """
        count = max(1, round(self.config.share * len(comparisons)))
        if reward_models:
            value = self.values(*of_pairs(reward_models[-1], comparisons, ctx))
            ctx.log(**{"active_pairs/variance": float(value.mean())})
        else:
            value = torch.rand(len(comparisons), generator=ctx.generator("active_pairs"))
        rows = value.argsort(descending=True, stable=True)[:count]
        return comparisons.select(sorted(rows.tolist()))

    def values(self, first: Tensor, second: Tensor) -> Tensor:
        """Variance (C,) of the differences of votes (C, E), or of their sigmoids."""
        difference = several(first, "active_pairs") - second
        return (difference.sigmoid() if self.config.of == "probability" else difference).var(1)
